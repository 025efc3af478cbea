import torch

from raymerge.methods import METHODS
from raymerge.methods.fine_tuned import own_task_vector


def test_own_slice():
    tasks = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert own_task_vector(tasks, 1).tolist() == [3.0, 4.0]
    assert own_task_vector(tasks, 0).tolist() == [1.0, 2.0]


def test_gives_no_merged_model():
    assert METHODS["fine-tuned"].merge is None
    assert METHODS["fine-tuned"].alpha.at(20) == 1
