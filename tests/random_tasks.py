"""Random task matrices with spectra like those of experts, and with those that make trouble."""

import torch
from torch import Tensor


def gaussian(num_tasks: int, rows: int, cols: int, seed: int = 0) -> Tensor:
    """Flat spectra: neighbouring singular values nearly tie everywhere."""
    return torch.randn(num_tasks, rows, cols, generator=torch.Generator().manual_seed(seed))


def decaying(num_tasks: int, rows: int, cols: int, seed: int = 0, power: float = 0.5, shared: float = 0.5) -> Tensor:
    """Singular values i^-power in random directions of every task, plus a part that all tasks share."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, min(rows, cols) + 1).double() ** -power

    def one() -> Tensor:
        return (orthonormal(rows, len(spectrum), generator) * spectrum) @ orthonormal(cols, len(spectrum), generator).mT

    common = shared * one()
    return torch.stack([common + one() for _ in range(num_tasks)]).float()


def orthonormal(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, cols, generator=generator, dtype=torch.float64))[0]
