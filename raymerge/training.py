"""The training loop of every fine-tuning: the demo's own, and the published recipe on real images.

A `Trainer` holds a model, its optimizer and how far they are; `train` feeds it from a `Source` of images. Neither knows
files, datasets or tasks.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from raymerge.errors import TrainingError

Schedule = Callable[[int, int, int], float]
"""From the step, counted from 0, the number of steps and those of the warm-up to a share of the peak learning rate."""


def warmup_then_cosine(step: int, steps: int, warmup: int) -> float:
    """A linear warm-up, then half a cosine over the steps that are left: `cosine_lr` of the published code."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def warmup_times_cosine(step: int, steps: int, warmup: int) -> float:
    """A linear warm-up times half a cosine over all steps."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class TrainingRecipe:
    """AdamW on cross-entropy, with clipped gradients."""

    steps: int
    """Of the optimizer."""
    learning_rate: float
    """The peak of the schedule."""
    weight_decay: float
    warmup: int
    schedule: Schedule = warmup_then_cosine
    decays_vectors: bool = True
    """Whether weight decay acts on biases and gains too, and not on tensors of two or more dimensions alone."""
    gradient_norm: float = 1.0
    """Of all gradients together; longer ones are cut to it."""
    autocast: torch.dtype | None = None
    """What the encoder computes in; None: float32. Weights, head and loss stay in float32. float16 scales the loss."""


class Batch(NamedTuple):
    """Images of one forward pass."""

    images: UInt8[Tensor, "images height width 3"]
    labels: Int64[Tensor, " images"]


Batches = Generator[Sequence[Batch], None, None]
"""What each step is made of; the gradients of its batches are accumulated."""
Source = Callable[[int], Batches]
"""From a step, counted from 0, to the batches of that step and of those that follow."""


class Trainer:
    """An image encoder, its optimizer and how far they are."""

    def __init__(
        self,
        encoder: nn.Module,
        head: Float[Tensor, "classes dim"],
        recipe: TrainingRecipe,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device,
        bias: Float[Tensor, " classes"] | None = None,
    ):
        """Take an encoder, which is trained in place, all of it.

        Args:
            encoder: maps normalised images (n, 3, height, width) to features (n, dim).
            head, bias: what unit features are classified by; frozen.
            mean, std: per channel, of images in [0, 1].
        """
        self.encoder = encoder.to(device).train()
        self.recipe = recipe
        self.losses: list[float] = []
        """Mean loss of every step so far."""
        self._device = device
        self._head = head.to(device)
        self._bias = None if bias is None else bias.to(device)
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)
        self._parameters = list(encoder.parameters())
        decay = recipe.weight_decay
        groups = decay_groups(self._parameters, decay, 0.0 if not recipe.decays_vectors else decay)
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.autocast is torch.float16)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.losses)

    def advance(self, batches: Sequence[Batch]) -> float:
        """One step of the optimizer along the mean gradient of all images of the batches. Returns their mean loss.

        Raises:
            TrainingError: the loss or a gradient is not finite; the weights are those before this step.
        """
        recipe = self.recipe
        share = recipe.schedule(self.step, recipe.steps, recipe.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate * share
        self._optimizer.zero_grad()
        num_images = sum(len(batch.labels) for batch in batches)
        total = torch.zeros((), device=self._device)
        for batch in batches:
            # the mean over all images of the step, however they are cut into batches
            loss = self._loss(batch) * (len(batch.labels) / num_images)
            self._scaler.scale(loss).backward()
            total += loss.detach()
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, recipe.gradient_norm)
        mean_loss, gradient_norm = torch.stack([total, norm]).tolist()
        self._check(mean_loss, gradient_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.losses.append(mean_loss)
        return mean_loss

    def _loss(self, batch: Batch) -> Float[Tensor, ""]:
        pixels = batch.images.to(self._device).permute(0, 3, 1, 2) / 255
        dtype = self.recipe.autocast
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            features = self.encoder((pixels - self._mean) / self._std)
        logits = F.normalize(features.float(), dim=-1) @ self._head.mT
        if self._bias is not None:
            logits = logits + self._bias
        return F.cross_entropy(logits, batch.labels.to(self._device))

    def _check(self, loss: float, gradient_norm: float) -> None:
        where = f"at step {self.step + 1} of {self.recipe.steps}"
        if not math.isfinite(loss):
            what = f"the loss is {loss} {where}"
        elif math.isfinite(gradient_norm):
            return
        elif not self._scaler.is_enabled():
            what = f"gradients are not finite {where}"
        elif self._scaler.get_scale() >= 1:
            return  # float16 overflows now and then: the step is left out and the scale halved
        else:
            what = f"gradients overflow float16 {where}, however the loss is scaled"
        raise TrainingError(f"{what}; use a smaller learning rate, a longer warm-up, or float32.")

    def state(self) -> dict[str, Any]:
        """All that a training needs to continue elsewhere, as tensors and plain values."""
        return {
            "encoder": self.encoder.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned. Sets torch's random state."""
        self.encoder.load_state_dict(state["encoder"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self.losses = state["losses"].tolist()
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and state["device_random"] is not None:
            torch.cuda.set_rng_state(state["device_random"], self._device)


def train(trainer: Trainer, source: Source, on_step: Callable[[], bool] = lambda: False) -> nn.Module:
    """Train to the end of the recipe, from wherever the trainer is. Returns the encoder, in evaluation mode.

    Args:
        on_step: called after every step; returns whether to stop there.
    Raises:
        TrainingError: the training diverged.
    """
    with closing(source(trainer.step)) as steps:
        for batches in islice(steps, trainer.recipe.steps - trainer.step):
            trainer.advance(batches)
            if on_step():
                break
    return trainer.encoder.eval()


def decay_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, of_vectors: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: tensors of two or more dimensions, and the others with a decay of their own."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": of_vectors},
    ]
