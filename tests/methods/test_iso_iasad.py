import pytest
import reference
import torch
from random_tasks import decaying
from test_scale_svd import DEFAULTS, error_of, moments_of

from raymerge import notes
from raymerge.errors import MergeInputError
from raymerge.methods.iso_c import iso_c, iso_c_factorise
from raymerge.methods.iso_iasad import iso_iasad, iso_iasad_factorise


@pytest.mark.parametrize("center", ["restore_mean", "none"])
@pytest.mark.parametrize("prune_level", ["row", "element"])
@pytest.mark.parametrize("shape", [(3, 70, 70), (3, 90, 66), (3, 66, 90), (1, 20, 30), (5, 12, 12)])
def test_agrees_with_the_reference(shape, prune_level, center):
    tasks, moments = decaying(*shape), moments_of(shape[0], shape[2])
    setting = DEFAULTS | {"prune_level": prune_level}
    found = iso_iasad(iso_iasad_factorise(tasks, moments=moments), **setting, center=center)
    assert error_of(found, reference.iso_iasad(tasks, moments, center, *setting.values())) <= 1e-6


def test_the_mean_is_lost_where_it_is_dropped():
    """Centred matrices add up to zero: what is left are approximation errors, far smaller and said so."""
    tasks, moments = decaying(4, 70, 70), moments_of(4, 70)
    setting = DEFAULTS | {"sparsity": 0.0, "rank_ratio": 0.02, "num_iters": 20}
    factors = iso_iasad_factorise(tasks, moments=moments)
    kept, dropped = (
        torch.linalg.matrix_norm(iso_iasad(factors, **setting, center=c)) for c in ("restore_mean", "drop_mean")
    )
    assert dropped < 0.05 * kept
    with notes.collected() as said:
        iso_iasad(factors, **setting | {"rank_ratio": 0.0}, center="drop_mean")  # exact: rounding errors are left
    assert any(text.startswith("the terms cancel to") for text in said)
    with notes.collected() as said:
        iso_iasad(factors, **setting, center="restore_mean")
    assert said == []


def test_dropped_mean_agrees_with_the_reference():
    tasks, moments = decaying(3, 70, 80), moments_of(3, 80)
    setting = DEFAULTS | {"sparsity": 0.6}
    found = iso_iasad(iso_iasad_factorise(tasks, moments=moments), **setting, center="drop_mean")
    assert error_of(found, reference.iso_iasad(tasks, moments, "drop_mean", *setting.values())) <= 1e-5


@pytest.mark.parametrize("center", ["restore_mean", "none"])
def test_an_exact_decomposition_is_iso_c(center):
    tasks, moments = decaying(3, 20, 25), moments_of(3, 25)
    setting = DEFAULTS | {"sparsity": 0.0, "rank_ratio": 0.0}
    found = iso_iasad(iso_iasad_factorise(tasks, moments=moments), **setting, center=center)
    torch.testing.assert_close(found, iso_c(iso_c_factorise(tasks)))


def test_spectrum_is_flat():
    tasks, moments = decaying(3, 30, 40), moments_of(3, 40)
    update = iso_iasad(iso_iasad_factorise(tasks, moments=moments), **DEFAULTS, center="restore_mean")
    values = torch.linalg.svdvals(update)
    torch.testing.assert_close(values, values.mean().expand(30))


def test_missing_moments_are_no_ones():
    with pytest.raises(MergeInputError, match="no input moments for every task"):
        iso_iasad_factorise(torch.ones(2, 5, 6), moments=None)


def test_unknown_centre():
    factors = iso_iasad_factorise(torch.ones(1, 5, 6), moments=[torch.ones(1, 6)])
    with pytest.raises(MergeInputError, match="center is 'median'"):
        iso_iasad(factors, **DEFAULTS, center="median")
