"""Top-1 accuracy of an encoder whose weights are theta_0 + alpha * update."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from raymerge.allocator import give_freed_memory_back, keep_freed_memory
from raymerge.batch_size import GPU_DEFAULT, cpu_batch_size, fastest_batch_size, image_size, is_out_of_memory
from raymerge.checkpoints import PREFIX, Checkpoint
from raymerge.errors import CheckpointError, EvaluationError
from raymerge.staging import batches_on

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MATRIX_MODULES = (nn.Linear, nn.MultiheadAttention, nn.modules.conv._ConvNd)
"""What autocast computes in half precision, parameter by parameter."""

_measured: dict[tuple, int] = {}
"""Batch sizes that were measured in this process, by encoder, precision and GPU."""


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
        keep_batch_size: bool = False,
    ):
        """Load theta_0 into the encoder.

        Args:
            encoder: maps normalised images (n, 3, height, width) to features (n, dim); its parameters are named as
                in the checkpoint after `model.`.
            mean, std: per channel, of images in [0, 1].
            batch_size: images per forward pass; None: by the rule of `batch_size.py` on a CPU, measured on a GPU.
            keep_batch_size: when memory is out, raise torch's error instead of going on with half the batch. For
                those who watch the encoder, to whom a batch that is passed again would count twice.
        Raises:
            CheckpointError: the checkpoint does not fit the encoder.
        """
        if device.type == "cpu":
            keep_freed_memory()
        self.device = device
        self._encoder = encoder.to(device).eval().requires_grad_(False)
        self._dtype = PRECISIONS[precision]
        _hold_matrices(self._encoder, self._dtype or torch.float32)
        self._keep_batch_size = keep_batch_size
        self._mean = torch.tensor(mean, device=device) * 255
        self._std = torch.tensor(std, device=device) * 255
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
        self._batch_size = batch_size or self._auto_batch_size()

    @property
    def embed_dim(self) -> int:
        """Size of a feature, which a head must fit."""
        return self._zero_shot[PREFIX + "visual.proj"].shape[1]

    @property
    def batch_size(self) -> int:
        """Images per forward pass; halved for good whenever memory is out."""
        return self._batch_size

    def _named_weights(self) -> list[tuple[str, Tensor]]:
        return [(PREFIX + name, parameter) for name, parameter in self._encoder.named_parameters()]

    @torch.no_grad()
    def set_weights(self, update: Mapping[str, Tensor], alpha: float) -> None:
        """theta = theta_0 + alpha * update, in place. Tensors missing from `update` stay at theta_0.

        The sum is in single precision; what computes in half precision is rounded to it once.
        """
        for name, parameter in self._named_weights():
            if name in update:
                torch.add(self._zero_shot[name], update[name].to(self.device), alpha=alpha, out=parameter)
            else:
                parameter.copy_(self._zero_shot[name])

    def count_correct(
        self,
        images: UInt8[Tensor, "images height width 3"],
        labels: Int64[Tensor, " images"],
        weight: Float[Tensor, "classes dim"],
        bias: Float[Tensor, " classes"],
    ) -> int:
        """How many images the head classifies correctly."""
        return int((self.predict(images, weight, bias) == labels.to(self.device)).sum())

    @torch.inference_mode()
    def predict(
        self,
        images: UInt8[Tensor, "images height width 3"],
        weight: Float[Tensor, "classes dim"],
        bias: Float[Tensor, " classes"],
    ) -> Int64[Tensor, " images"]:
        """The class that the head gives every image, on the device.

        As published: features are divided by their L2 norm, then meet the head.
        """
        weight, bias = weight.to(self.device), bias.to(self.device)
        found = [
            (features / features.norm(dim=-1, keepdim=True) @ weight.T + bias).argmax(dim=-1)
            for features in self.encode(images)
        ]
        return torch.cat(found)

    def encode(self, images: UInt8[Tensor, "images height width 3"]) -> Iterator[Float[Tensor, "batch dim"]]:
        """Features of the images as the encoder gives them, batch after batch.

        Raises:
            EvaluationError: there is not even memory for one image.
        """
        done = 0
        while done < len(images):
            try:
                for batch in batches_on(self.device, images[done:], self._batch_size):
                    features = self._features(batch)
                    done += len(batch)
                    yield features
                continue
            except (RuntimeError, MemoryError) as error:
                if self._keep_batch_size or not is_out_of_memory(error):
                    raise
                reason = str(error).split(". ")[0].strip() or type(error).__name__
            self._halve(reason)  # out here, where the error no longer holds the tensors it was about

    @torch.inference_mode()
    def _features(self, images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch dim"]:
        width = images.shape[2]
        # whole rows of red, green, blue, so that all memory is passed in order: a third of the time, the same values
        rows = images.flatten(start_dim=2).float().sub_(self._mean.repeat(width)).div_(self._std.repeat(width))
        pixels = rows.unflatten(2, (width, 3)).permute(0, 3, 1, 2)
        with _full_precision(), torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            return self._encoder(pixels).float()

    def _halve(self, reason: str) -> None:
        if self._batch_size == 1:
            raise EvaluationError(
                f"{_device_name(self.device)}: no memory for one image at a time ({reason}); free some, or let fewer "
                "evaluators share it."
            )
        self._batch_size = (self._batch_size + 1) // 2
        logger.warning("out of memory (%s): going on with %d images at a time", reason, self._batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            give_freed_memory_back()

    def _auto_batch_size(self) -> int:
        size = image_size(self._encoder)
        if self.device.type != "cuda":
            return cpu_batch_size(self._encoder)
        if size is None:
            return GPU_DEFAULT
        shapes = tuple(tuple(parameter.shape) for parameter in self._encoder.parameters())
        key = (shapes, self._dtype, _device_name(self.device))
        if key not in _measured:
            _measured[key] = self.measure_batch_size(*size)
        return _measured[key]

    def measure_batch_size(self, height: int, width: int) -> int:
        """The fastest number of images per forward pass, measured on images of this size. Changes nothing."""

        def seconds_of(size: int) -> float:
            images = torch.zeros(size, height, width, 3, dtype=torch.uint8, device=self.device)
            times = []
            for _ in range(4):  # the first one warms up
                _wait_for(self.device)
                started = time.perf_counter()
                self._features(images)
                _wait_for(self.device)
                times.append(time.perf_counter() - started)
            return min(times[1:])

        try:
            return fastest_batch_size(seconds_of)
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def _hold_matrices(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Keep the parameters of matrix products in the precision that they are computed in.

    autocast would round them to the same values before every batch; it remembers them only while training.
    """
    for module in encoder.modules():
        if isinstance(module, MATRIX_MODULES):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """fp32 is the reference: no TF32, which torch would use for convolutions on a GPU."""
    cudnn = torch.backends.cudnn
    allowed = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed[0])
        cudnn.allow_tf32 = allowed[1]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
