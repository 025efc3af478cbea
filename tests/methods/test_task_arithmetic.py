import torch

from raymerge.methods import METHODS
from raymerge.methods.task_arithmetic import task_arithmetic


def test_by_hand():
    assert task_arithmetic(torch.tensor([[[1.0, 2.0]], [[10.0, -5.0]], [[0.5, 0.0]]])).tolist() == [[11.5, -3.0]]


def test_published_grid():
    grid = METHODS["task-arithmetic"].alpha.paper.values()
    assert len(grid) == 30
    assert (grid[0], grid[14], grid[-1]) == (1 / 30, 0.5, 1.0)
