"""The classes that published checkpoints were made with, written again from their description.

An `ImageEncoder` holds open_clip's CLIP as `model`, without the blocks of the text tower; a `ClassificationHead` is a
Linear that divides features by their length first. Nothing of `raymerge` is imported.
"""

import contextlib
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
MODULE = "src.models.modeling"


@contextlib.contextmanager
def modules_of_the_published_code(name: str = MODULE) -> Iterator[Any]:
    """A module called `name` that holds the classes, which can be imported while the context lasts."""
    parts = name.split(".")
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    module: Any = sys.modules[names[-1]]
    module.ImageEncoder = type("ImageEncoder", (_ImageEncoder,), {"__module__": names[-1]})
    module.ClassificationHead = type("ClassificationHead", (_ClassificationHead,), {"__module__": names[-1]})
    try:
        yield module
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old


class _ImageEncoder(torch.nn.Module):
    def __init__(self, vision: Mapping[str, Any], embed_dim: int, *, quick_gelu: bool = True, keep_lang: bool = False):
        super().__init__()
        self.model = CLIP(embed_dim, CLIPVisionCfg(**vision), CLIPTextCfg(**TEXT), quick_gelu=quick_gelu)
        if not keep_lang and hasattr(self.model, "transformer"):
            delattr(self.model, "transformer")

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)


class _ClassificationHead(torch.nn.Linear):
    def __init__(self, normalize: bool, weights: Tensor, biases: Tensor | None = None):
        num_classes, dim = weights.shape
        super().__init__(dim, num_classes)
        self.normalize = normalize
        self.weight = torch.nn.Parameter(weights.clone())
        self.bias = torch.nn.Parameter(torch.zeros_like(self.bias) if biases is None else biases.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        if self.normalize:
            inputs = inputs / inputs.norm(dim=-1, keepdim=True)
        return super().forward(inputs)


class Classifier(torch.nn.Module):
    """An encoder and a head, as published accuracies are measured."""

    def __init__(self, encoder: torch.nn.Module, head: torch.nn.Module):
        super().__init__()
        self.image_encoder, self.classification_head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        return self.classification_head(self.image_encoder(images))


def write_collection(
    folder: Path,
    backbone: str,
    vision: Mapping[str, Any],
    embed_dim: int,
    classes: Mapping[str, int],
    *,
    quick_gelu: bool = True,
    seed: int = 0,
) -> dict[str, Classifier]:
    """Save zero-shot model, experts and heads as the published code does. Returns a classifier for every task.

    Args:
        folder: of the weights.
        classes: how many each task has.
    """
    classifiers = {}
    with modules_of_the_published_code() as code, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        zero_shot = code.ImageEncoder(vision, embed_dim, quick_gelu=quick_gelu)
        (folder / backbone / "MNISTVal").mkdir(parents=True, exist_ok=True)
        torch.save(zero_shot.state_dict(), folder / backbone / "MNISTVal" / "nonlinear_zeroshot.pt")
        for task, count in classes.items():
            (folder / backbone / f"{task}Val").mkdir(exist_ok=True)
            expert = code.ImageEncoder(vision, embed_dim, quick_gelu=quick_gelu)
            expert.load_state_dict(zero_shot.state_dict())
            with torch.no_grad():
                for name, parameter in expert.named_parameters():
                    if name.startswith("model.visual."):
                        parameter += 0.1 * parameter.std(correction=0) * torch.randn_like(parameter) + 0.01
            head = code.ClassificationHead(normalize=True, weights=10 * torch.randn(count, embed_dim))
            torch.save(expert.state_dict(), folder / backbone / f"{task}Val" / "nonlinear_finetuned.pt")
            torch.save(head, folder / backbone / f"head_{task}Val.pt")
            classifiers[task] = Classifier(expert, head).eval()
    return classifiers
