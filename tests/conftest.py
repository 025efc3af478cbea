"""Fixtures of every test."""

import hypothesis
import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)  # as in a sweep; several threads wait for each other where cores are shared

hypothesis.settings.register_profile("raymerge", deadline=None, derandomize=True, database=None, max_examples=40)
hypothesis.settings.load_profile("raymerge")


@pytest.fixture
def task_matrices() -> Tensor:
    """Three generic 7 x 5 task matrices in float64."""
    return torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
