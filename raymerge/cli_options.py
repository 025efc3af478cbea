"""Options that several commands have."""

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from raymerge.errors import UsageError

if TYPE_CHECKING:
    import torch

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")]


class SplitName(enum.StrEnum):
    val = "val"
    test = "test"


class Device(enum.StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def torch_device(device: Device) -> "torch.device":
    """The device that an option stands for on this machine."""
    import torch

    if device == Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == Device.cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch finds no CUDA device on this machine; use auto or cpu.")
    return torch.device(device.value)
