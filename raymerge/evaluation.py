"""Top-1 accuracy of an encoder whose weights are theta_0 + alpha * update."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from raymerge.checkpoints import PREFIX, Checkpoint
from raymerge.errors import CheckpointError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Evaluator:
    """One image encoder on one device, with theta_0 resident beside it."""

    def __init__(
        self,
        encoder: nn.Module,
        zero_shot: Checkpoint,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device,
        precision: str = "fp32",
        batch_size: int | None = None,
    ):
        """Load theta_0 into the encoder.

        Args:
            encoder: maps normalised images (n, 3, height, width) to features (n, dim); its parameters are named as
                in the checkpoint after `model.`.
            mean, std: per channel, of images in [0, 1].
            batch_size: images per forward pass; None: 64 on a CPU, 256 on a GPU.
        Raises:
            CheckpointError: the checkpoint does not fit the encoder.
        """
        self.device = device
        self._encoder = encoder.to(device).eval().requires_grad_(False)
        self._dtype = PRECISIONS[precision]
        self.batch_size = batch_size or (256 if device.type == "cuda" else 64)
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255
        self._zero_shot: dict[str, Tensor] = {}
        available = set(zero_shot.names)
        for name, parameter in self._named_weights():
            if name not in available:
                raise CheckpointError(f"{zero_shot.path}: lacks '{name}', which the encoder needs. Another backbone?")
            value = zero_shot.tensor(name)
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"{zero_shot.path}: '{name}' is {tuple(value.shape)}, the encoder expects "
                    f"{tuple(parameter.shape)}. Another backbone?"
                )
            # a copy: the parameter is overwritten in place, and the file's mapping must not be
            self._zero_shot[name] = value.to(device=device, dtype=torch.float32, copy=True)
        self.set_weights({}, 0.0)

    @property
    def embed_dim(self) -> int:
        """Size of a feature, which a head must fit."""
        return self._zero_shot[PREFIX + "visual.proj"].shape[1]

    def _named_weights(self) -> list[tuple[str, Tensor]]:
        return [(PREFIX + name, parameter) for name, parameter in self._encoder.named_parameters()]

    @torch.no_grad()
    def set_weights(self, update: Mapping[str, Tensor], alpha: float) -> None:
        """theta = theta_0 + alpha * update, in place. Tensors missing from `update` stay at theta_0."""
        for name, parameter in self._named_weights():
            if name in update:
                torch.add(self._zero_shot[name], update[name].to(self.device), alpha=alpha, out=parameter)
            else:
                parameter.copy_(self._zero_shot[name])

    @torch.inference_mode()
    def count_correct(
        self,
        images: UInt8[Tensor, "images height width 3"],
        labels: Int64[Tensor, " images"],
        weight: Float[Tensor, "classes dim"],
        bias: Float[Tensor, " classes"],
    ) -> int:
        """How many images the head classifies correctly.

        As published: features are divided by their L2 norm, then meet the head.
        """
        weight, bias, labels = weight.to(self.device), bias.to(self.device), labels.to(self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for features, batch_labels in zip(self.encode(images), labels.split(self.batch_size), strict=True):
            logits = features / features.norm(dim=-1, keepdim=True) @ weight.T + bias
            correct += (logits.argmax(dim=-1) == batch_labels).sum()
        return int(correct)

    def encode(self, images: UInt8[Tensor, "images height width 3"]) -> Iterator[Float[Tensor, "batch dim"]]:
        """Features of the images as the encoder gives them, batch after batch."""
        for batch in images.split(self.batch_size):
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None),
            ):
                pixels = batch.to(self.device).permute(0, 3, 1, 2)
                features = self._encoder((pixels.float() - self._mean) / self._std)
            yield features.float()
