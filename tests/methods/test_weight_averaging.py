import torch

from raymerge.methods import METHODS
from raymerge.methods.weight_averaging import weight_averaging


def test_alpha_times_update_is_the_mean_of_the_experts():
    zero_shot = torch.tensor([1.0, -1.0])
    experts = torch.tensor([[2.0, 3.0], [6.0, -1.0], [1.0, 4.0]])
    update = weight_averaging(experts - zero_shot)
    assert update.tolist() == [6.0, 9.0]
    alpha = METHODS["weight-averaging"].alpha.at(len(experts))
    torch.testing.assert_close(zero_shot + alpha * update, torch.tensor([3.0, 2.0]))
