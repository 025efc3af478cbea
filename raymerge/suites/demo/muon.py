"""Muon: momentum, orthogonalised. It reaches a given pre-training accuracy in far fewer steps than AdamW here.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scale of the update is that of Liu et al.
2025, arXiv:2502.16982. `torch.optim.Muon` works in bfloat16, which is slow on most CPUs.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic p(x) = ax + bx^3 + cx^5, which drives singular values towards 1."""
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """For weight matrices only."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                direction = orthogonalise(matrix.grad.lerp(momentum, MOMENTUM))  # Nesterov
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                # entries of an orthogonal matrix are small where it is large: bring them to AdamW's usual 0.2
                matrix.add_(direction, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalise(matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    """About the polar factor: singular vectors kept, singular values in the range 0.7..1.2 unless they were tiny."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x
