"""Fixtures of every test."""

import os

import hypothesis
import pytest
import torch
from torch import Tensor


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow",
        action="store_true",
        help="also run what takes minutes, or does on a real cluster what faster tests do too",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)  # the others fill the cores while these wait
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


os.environ.pop("COLUMNS", None)  # xdist tells its workers the width of the terminal, and tables would be cut to it
torch.set_num_threads(1)  # as in a sweep; several threads wait for each other where cores are shared

hypothesis.settings.register_profile("raymerge", deadline=None, derandomize=True, database=None, max_examples=40)
hypothesis.settings.load_profile("raymerge")


@pytest.fixture
def task_matrices() -> Tensor:
    """Three generic 7 x 5 task matrices in float64."""
    return torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
