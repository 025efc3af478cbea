import numpy as np
import pytest
import torch
from random_tasks import orthonormal
from torch import Tensor

from raymerge import notes
from raymerge.linalg_joined import joined_polar_factor


def polar(rows: Tensor) -> Tensor:
    u, _, v = np.linalg.svd(rows.numpy(), full_matrices=False)
    return torch.from_numpy(u @ v)


@pytest.mark.parametrize(
    ("common", "added", "cols"), [(20, 5, 30), (20, 5, 25), (5, 20, 25), (0, 8, 9), (6, 6, 12), (1, 1, 40)]
)
def test_agrees_with_the_polar_factor_of_all_rows(common, added, cols):
    generator = torch.Generator().manual_seed(common)
    first = orthonormal(cols, common, generator).mT
    second = torch.randn(added, cols, generator=generator, dtype=torch.float64)
    second /= torch.linalg.vector_norm(second, dim=1, keepdim=True)
    with notes.collected() as said:
        found, values = joined_polar_factor(first, second, 1e-7)
    assert said == []
    whole = torch.cat([first, second])
    torch.testing.assert_close(found, polar(whole), rtol=0, atol=1e-11)
    torch.testing.assert_close(values.sort(descending=True).values, torch.linalg.svdvals(whole))


def test_by_hand():  # e1, and a unit vector at 60 degrees to it: whitened, both turn by 15 degrees
    first = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    second = torch.tensor([[0.5, 3**0.5 / 2]], dtype=torch.float64)
    angles = torch.deg2rad(torch.tensor([-15.0, 75.0], dtype=torch.float64))
    torch.testing.assert_close(
        joined_polar_factor(first, second, 1e-7)[0], torch.stack([angles.cos(), angles.sin()], dim=1)
    )


@pytest.mark.parametrize("common", [3, 20])
def test_nearly_dependent_rows_are_decomposed_in_full(common):
    generator = torch.Generator().manual_seed(0)
    first = orthonormal(40, common, generator).mT
    second = torch.cat(
        [first[:1] + 1e-7 * torch.randn(1, 40, generator=generator), torch.randn(3, 40, generator=generator)]
    )
    second = second / torch.linalg.vector_norm(second, dim=1, keepdim=True)
    with notes.collected() as said:
        found, _ = joined_polar_factor(first, second, 1e-7)
    assert said == ["the right vectors were whitened by a full decomposition: they are nearly dependent"]
    torch.testing.assert_close(found, polar(torch.cat([first, second])), rtol=0, atol=1e-8)
