"""Against numpy: full SVDs, every projection written out."""

import numpy as np
import pytest
import reference
import torch

from raymerge.errors import MergeInputError
from raymerge.layer_analysis import AnalysisSettings, Merged, analyse_matrix, analyse_other

SETTINGS = AnalysisSettings({2: (0.5,), 4: (0.25, 0.75)}, betas=(0.0, 0.4, 1.0))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=[(10, 14), (14, 10), (12, 12)], ids=["wide", "tall", "square"])
def tasks(request) -> np.ndarray:
    return random(4, *request.param).numpy() * np.array([1.0, 2.0, 0.5, 1.5])[:, None, None]


@pytest.fixture
def found(tasks):
    return analyse_matrix(torch.from_numpy(tasks), SETTINGS)


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(matrix, full_matrices=False)


def polar(matrix: np.ndarray) -> np.ndarray:
    u, _, v = svd(matrix)
    return u @ v


def iso_cts_left(tasks: np.ndarray, fraction: float) -> np.ndarray:
    """Common directions, then those of every task, orthogonalised."""
    k, per_task = reference.iso_cts_sizes(min(tasks.shape[1:]), len(tasks), fraction)
    u = svd(tasks.sum(axis=0))[0][:, :k]
    return polar(np.concatenate([u, *(svd(t - u @ u.T @ t)[0][:, :per_task] for t in tasks)], axis=1))


def ratio(source: np.ndarray, basis: np.ndarray, k: int) -> float:
    kept = basis[:, :k]
    return float(np.linalg.norm(kept @ kept.T @ source) / np.linalg.norm(source))


def rank(values: np.ndarray, rule: str) -> int:
    energy = np.cumsum(values**2) / np.sum(values**2)
    if rule == "released_code":
        return int(np.argmax(np.sqrt(energy) > 0.95))
    return next(k for k in range(len(values) + 1) if k and np.sqrt(max(0.0, 1 - energy[k - 1])) <= 0.05)


def merged_of(tasks: np.ndarray) -> dict[Merged, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Left basis, singular values and matrix of everything that SETTINGS asks for."""
    merged = {}
    for n, fractions in SETTINGS.fractions.items():
        u, s, v = svd(tasks[:n].sum(axis=0))
        merged[Merged("task-arithmetic", n)] = (u, s, u @ np.diag(s) @ v)
        merged[Merged("iso-c", n)] = (u, np.full_like(s, s.mean()), s.mean() * u @ v)
        for fraction in fractions:
            matrix = reference.iso_cts(torch.from_numpy(tasks[:n]), fraction).numpy()
            merged[Merged("iso-cts", n, fraction)] = (iso_cts_left(tasks[:n], fraction), svd(matrix)[1], matrix)
    return merged


def test_spectra(tasks, found):
    spectra = {spectrum.of: spectrum.values.numpy() for spectrum in found.spectra}
    assert len(spectra) == len(found.spectra)
    expected = {i: svd(task)[1] for i, task in enumerate(tasks)}
    expected |= {of: values for of, (_, values, _) in merged_of(tasks).items()}
    assert spectra.keys() == expected.keys()
    for of, values in expected.items():
        np.testing.assert_allclose(spectra[of], values, rtol=1e-9)


def test_ranks_and_alignments_of_tasks_with_what_is_merged(tasks, found):
    everything = merged_of(tasks)
    for n in SETTINGS.fractions:
        u, s, _ = everything[Merged("task-arithmetic", n)]
        for beta in SETTINGS.betas:
            s_beta = (1 - beta) * s + beta * s.mean()
            everything[Merged("spectrum-interpolation", n, beta=beta)] = (u, s_beta, u)
    ranks = {(r.of, r.rule): r.k for r in found.ranks}
    sars = {(a.source, a.target, a.rule): a for a in found.alignments if isinstance(a.target, Merged)}
    assert ranks.keys() == {(of, rule) for of in everything for rule in ("paper", "released_code")}
    assert all(r.num_values == min(tasks.shape[1:]) for r in found.ranks)
    for (of, rule), k in ranks.items():
        left, values, _ = everything[of]
        assert k == rank(values, rule)
        for source in range(of.num_tasks):
            alignment = sars.pop((source, of, rule))
            assert (alignment.k, alignment.by) == (k, of)
            assert alignment.sar == pytest.approx(ratio(tasks[source], left, k), rel=1e-7)
    assert not sars


def test_alignments_of_pairs_of_tasks_use_the_rank_of_task_arithmetic(tasks, found):
    pairs = [a for a in found.alignments if isinstance(a.target, int)]
    assert len(pairs) == 2 * (2**2 + 4**2)
    for a in pairs:
        k = rank(svd(tasks[: a.by.num_tasks].sum(axis=0))[1], a.rule)
        assert (a.k, a.by.method) == (k, "task-arithmetic")
        assert a.sar == pytest.approx(ratio(tasks[a.source], svd(tasks[a.target])[0], k), rel=1e-9)


def test_products_give_cosines(tasks, found):
    everything = {of: matrix for of, (_, _, matrix) in merged_of(tasks).items()} | dict(enumerate(tasks))
    seen = set()
    for p in found.products:
        source, target = tasks[p.source].ravel(), everything[p.target].ravel()
        assert p.value == pytest.approx(source @ target, rel=1e-9, abs=1e-9)
        assert p.source_squared == pytest.approx(source @ source)
        assert p.target_squared == pytest.approx(target @ target)
        seen.add((p.source, p.target))
    merged = {(s, of) for of in everything if isinstance(of, Merged) for s in range(of.num_tasks)}
    assert seen == merged | {(i, j) for i in range(4) for j in range(4)}


def test_what_is_no_matrix_is_summed_or_averaged():
    vectors = random(4, 7)
    found = analyse_other(vectors, SETTINGS)
    assert (found.spectra, found.ranks, found.alignments) == ([], [], [])
    products = {(p.source, p.target): p for p in found.products}
    for n, fractions in SETTINGS.fractions.items():
        summed = products[1, Merged("task-arithmetic", n)]
        assert summed.value == pytest.approx(float(vectors[1] @ vectors[:n].sum(dim=0)))
        for of in (Merged("iso-c", n), *(Merged("iso-cts", n, f) for f in fractions)):
            assert products[1, of].value == pytest.approx(float(vectors[1] @ vectors[:n].mean(dim=0)))
            assert products[1, of].target_squared == pytest.approx(summed.target_squared / n**2)


def test_a_large_layer_in_float32():
    """By the fast ways of the merge engine, which are taken from 64 rows on."""
    tasks = random(4, 70, 90).float()
    found = analyse_matrix(tasks, AnalysisSettings({4: (0.8,)}, betas=()))
    wide = tasks.double().numpy()
    left = iso_cts_left(wide, 0.8)
    for a in found.alignments:
        if isinstance(a.target, Merged) and a.target.method == "iso-cts":
            assert a.sar == pytest.approx(ratio(wide[a.source], left, a.k), rel=1e-4)


def test_deficient_ranks_and_experts_that_left_a_layer_alone():
    task = random(6, 1, seed=3) @ random(1, 8, seed=4)
    found = analyse_matrix(torch.stack([task, torch.zeros(6, 8).double(), 2 * task]), AnalysisSettings({3: (0.5,)}))
    spectra = {s.of: s.values for s in found.spectra}
    assert all(len(values) == 6 for values in spectra.values())
    assert spectra[1].eq(0).all()
    assert spectra[Merged("iso-c", 3)].tolist() == pytest.approx([3 * float(torch.linalg.norm(task)) / 6] + [0.0] * 5)
    for a in found.alignments:
        assert np.isnan(a.sar) == (a.source == 1)
    sar = {(a.source, a.target): a.sar for a in found.alignments if a.rule == "paper"}
    assert sar[0, Merged("task-arithmetic", 3)] == pytest.approx(1.0)
    assert sar[0, 2] == pytest.approx(1.0)
    assert sar[0, 1] == 0


@pytest.mark.parametrize("analyse", [analyse_matrix, analyse_other])
def test_values_that_are_not_finite(analyse):
    tasks = random(4, 5, 6)
    tasks[2, 1, 1] = torch.nan
    with pytest.raises(MergeInputError, match="task tensor 2 of 4 has nan"):
        analyse(tasks, SETTINGS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu():
    tasks = random(4, 70, 90).float()
    expected, found = (analyse_matrix(tasks.to(device), SETTINGS) for device in ("cpu", "cuda"))
    for one, other in zip(found.alignments, expected.alignments, strict=True):
        assert (one.source, one.target, one.k) == (other.source, other.target, other.k)
        assert one.sar == pytest.approx(other.sar, rel=1e-4)
