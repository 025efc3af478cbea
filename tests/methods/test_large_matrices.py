"""The SVD methods where they take their fast ways, against full float64 decompositions."""

import pytest
import reference
import torch
from random_tasks import decaying, gaussian, orthonormal
from torch import Tensor

from raymerge import linalg_leading, notes
from raymerge.methods import METHODS
from raymerge.methods._method import Use

# (tasks, rows, cols): square, tall, wide, barly tall and wide, two and many tasks
SHAPES = [(6, 220, 220), (6, 300, 210), (6, 210, 300), (5, 211, 210), (4, 70, 500), (2, 230, 260), (20, 260, 260)]
FRACTIONS = [0.0, 0.1, 0.5, 0.8, 0.95, 1.0]


def merge(name: str, tasks: Tensor, **setting: float) -> Tensor:
    method = METHODS[name]
    assert method.merge is not None
    return method.merge(method.factors(tasks), **setting)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.matrix_norm(found.double() - expected) / torch.linalg.matrix_norm(expected))


def exact(name: str, tasks: Tensor, **setting: float) -> Tensor:
    return {"iso-c": reference.iso_c, "tsv-m": reference.tsv_m, "iso-cts": reference.iso_cts}[name](
        tasks, *setting.values()
    )


@pytest.mark.parametrize("make", [gaussian, decaying])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["iso-c", "tsv-m"])
def test_agrees_with_the_reference(name, shape, make):
    tasks = make(*shape)
    assert relative_error(merge(name, tasks), exact(name, tasks)) <= (1e-6 if name == "iso-c" else 2e-5)


@pytest.mark.parametrize("make", [gaussian, decaying])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_fraction_agrees_with_the_reference(shape, make):
    tasks, method = make(*shape), METHODS["iso-cts"]
    uses = [Use(shape[0], {"common_space_fraction": fraction}) for fraction in FRACTIONS]
    factors = method.factors(tasks, uses=uses)
    assert factors.grams is not None
    for fraction in FRACTIONS:
        setting = {"common_space_fraction": fraction}
        expected = exact("iso-cts", tasks, **setting)
        assert relative_error(method.merge(factors, **setting), expected) <= 2e-5, fraction
        assert relative_error(merge("iso-cts", tasks, **setting), expected) <= 2e-5, f"{fraction}, unplanned"


@pytest.mark.parametrize("make", [gaussian, decaying])
@pytest.mark.parametrize("shape", [(8, 230, 230), (8, 320, 210), (8, 210, 450), (20, 260, 270)])
def test_products_in_float32(shape, make, monkeypatch):
    """As for matrices too large for these tests. Plain float32 decompositions are off by 4e-6 to 6e-5 here."""
    monkeypatch.setattr(linalg_leading, "FLOAT32_SIZE", 200)
    tasks, method = make(*shape), METHODS["iso-cts"]
    factors = method.factors(tasks, uses=[Use(shape[0], {"common_space_fraction": f}) for f in FRACTIONS])
    grams = factors.grams.trailing if shape[1] <= shape[2] else factors.grams.outside
    assert grams.dtype == torch.float32
    for fraction in FRACTIONS:
        expected = exact("iso-cts", tasks, common_space_fraction=fraction)
        assert relative_error(method.merge(factors, common_space_fraction=fraction), expected) <= 4e-5, fraction
    assert relative_error(merge("tsv-m", tasks), exact("tsv-m", tasks)) <= 4e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["iso-c", "tsv-m", "iso-cts"])
def test_other_precisions(name, dtype):
    tasks = decaying(4, 210, 230).to(dtype)
    setting = {"common_space_fraction": 0.7} if name == "iso-cts" else {}
    found = merge(name, tasks, **setting)
    assert found.dtype == dtype
    bound = 1e-11 if dtype == torch.float64 else torch.finfo(dtype).eps
    assert relative_error(found, exact(name, tasks, **setting)) <= bound


@pytest.mark.parametrize("rank", [3, 60])
@pytest.mark.parametrize("name", ["iso-c", "tsv-m", "iso-cts"])
@pytest.mark.parametrize("shape", [(3, 220, 240), (3, 240, 220)])
def test_experts_of_low_rank(name, rank, shape):
    """As of adapters: what has no direction is given none, whatever the order of the tasks."""
    num_tasks, rows, cols = shape
    generator = torch.Generator().manual_seed(0)
    factors = (torch.randn(num_tasks, n, rank, generator=generator, dtype=torch.float64) for n in (rows, cols))
    left, right = factors
    tasks = (left @ right.mT).float()
    setting = {"common_space_fraction": 0.5} if name == "iso-cts" else {}
    found = merge(name, tasks, **setting)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(
        merge(name, tasks.flip(0), **setting), found, rtol=0, atol=1e-4 * float(found.abs().max())
    )
    # float32 leaves noise of 1e-7 beyond the rank; in float64 there is none to lift
    clean = merge(name, left @ right.mT, **setting)
    assert torch.linalg.matrix_rank(clean, rtol=1e-9) <= num_tasks * rank


@pytest.mark.parametrize("name", ["iso-c", "tsv-m", "iso-cts"])
def test_a_task_that_left_the_layer_alone(name):
    tasks = torch.cat([decaying(3, 220, 230), torch.zeros(1, 220, 230)])
    setting = {"common_space_fraction": 0.5} if name == "iso-cts" else {}
    with notes.collected() as said:
        found = merge(name, tasks, **setting)
    assert torch.isfinite(found).all()
    assert name == "iso-c" or any("merged by full decompositions" in text for text in said)
    if name == "iso-c":
        assert relative_error(found, reference.iso_c(tasks)) <= 1e-6
    elif name == "tsv-m":  # the idle task has no direction, the others as many as ever
        u, s, vh = torch.linalg.svd(tasks[:3].double(), full_matrices=False)
        left, right = (torch.cat(list(x)) for x in (u[..., :55].mT, vh[:, :55]))
        isometries = [torch.linalg.svd(x, full_matrices=False) for x in (left, right)]
        left, right = (a @ b for a, _, b in isometries)
        assert relative_error(found, left.mT @ torch.diag(s[:, :55].flatten()) @ right) <= 1e-5


@pytest.mark.parametrize("shape", [(7, 220, 230), (7, 230, 220)])
@pytest.mark.parametrize("name", ["tsv-m", "iso-cts"])
@pytest.mark.parametrize("float32_size", [linalg_leading.FLOAT32_SIZE, 200])
def test_values_that_nearly_tie_at_the_cut(name, shape, float32_size, monkeypatch):
    """A gap of 1e-6: too small for products in float32, and decided exactly all the same."""
    monkeypatch.setattr(linalg_leading, "FLOAT32_SIZE", float32_size)
    num_tasks, rows, cols = shape
    num_values, fraction = min(rows, cols), 0.6
    per_task = (
        reference.iso_cts_sizes(num_values, num_tasks, fraction)[1] if name == "iso-cts" else num_values // num_tasks
    )
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.linspace(1, 0.1, num_values, dtype=torch.float64)
    spectrum[per_task] = spectrum[per_task - 1] * (1 - 1e-6)
    if name == "tsv-m":
        stack = [
            (orthonormal(rows, num_values, generator) * spectrum) @ orthonormal(cols, num_values, generator).mT
            for _ in range(num_tasks)
        ]
        tasks, setting = torch.stack(stack).float(), {}
    else:  # every task is diagonal in the basis of the sum, and ties in what the common space leaves
        num_common = num_values - per_task * num_tasks
        u, v = orthonormal(rows, num_values, generator), orthonormal(cols, num_values, generator)
        rest = spectrum[: num_values - num_common]
        stack = []
        for task in range(num_tasks):
            values = torch.cat(
                [torch.linspace(9, 5, num_common, dtype=torch.float64), 0.5 * rest.roll(per_task * task)]
            )
            stack.append((u * values) @ v.mT)
        tasks, setting = torch.stack(stack).float(), {"common_space_fraction": fraction}
    with notes.collected() as said:
        found = merge(name, tasks, **setting)
    assert relative_error(found, exact(name, tasks, **setting)) <= 2e-5
    assert bool(said) is (float32_size == 200)


def test_an_ill_conditioned_sum_is_said_so():
    generator = torch.Generator().manual_seed(0)
    left, right = orthonormal(210, 210, generator), orthonormal(210, 210, generator)
    tasks = ((left * torch.logspace(0, -7, 210).double()) @ right.mT).float()[None].expand(2, -1, -1)
    for name, setting in (("iso-c", {}), ("iso-cts", {"common_space_fraction": 0.5})):
        with notes.collected() as said:
            found = merge(name, tasks, **setting)
        assert any("the sum of the task matrices has singular values from 1 to" in text for text in said)
        if name == "iso-c":
            assert relative_error(found, reference.iso_c(tasks)) <= 1e-6


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_directions_of_a_task_are_shared_by_sets_of_tasks(num_tasks):
    method, tasks = METHODS["tsv-m"], decaying(5, 220, 230)
    uses = [Use(n, {}) for n in (2, 3, 5)]
    assert method.task_factors is not None
    shared = method.task_factors(tasks, uses)
    assert all(directions.s.shape == (110,) for directions in shared)
    factors = method.factors(tasks[:num_tasks], task_factors=shared[:num_tasks])
    assert method.merge is not None
    assert relative_error(method.merge(factors), reference.tsv_m(tasks[:num_tasks])) <= 2e-5


def test_a_fraction_of_one_is_iso_c_to_the_bit():
    tasks = decaying(3, 220, 210)
    assert torch.equal(merge("iso-cts", tasks, common_space_fraction=1.0), merge("iso-c", tasks))
