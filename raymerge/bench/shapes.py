"""The matrices of the published backbones, and random task matrices of their shapes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Tower:
    """Sizes of an image tower."""

    width: int
    layers: int
    patch: int
    tokens: int
    embed_dim: int


TOWERS: Mapping[str, Tower] = {
    "ViT-B-32": Tower(768, 12, 32, 50, 512),
    "ViT-B-16": Tower(768, 12, 16, 197, 512),
    "ViT-L-14": Tower(1024, 24, 14, 257, 768),
}


@dataclass(frozen=True)
class MatrixShape:
    """One kind of matrix of a tower, and how many there are."""

    name: str
    rows: int
    cols: int
    count: int


def matrices_of(tower: Tower) -> list[MatrixShape]:
    """What the SVD methods decompose."""
    w = tower.width
    return [
        MatrixShape("attn.in_proj", 3 * w, w, tower.layers),
        MatrixShape("attn.out_proj", w, w, tower.layers),
        MatrixShape("mlp.c_fc", 4 * w, w, tower.layers),
        MatrixShape("mlp.c_proj", w, 4 * w, tower.layers),
        MatrixShape("positional_embedding", tower.tokens, w, 1),
        MatrixShape("proj", w, tower.embed_dim, 1),
    ]


def state_of(tower: Tower) -> dict[str, tuple[int, ...]]:
    """The tensors of a published checkpoint, text leftovers included, by name and shape."""
    w = tower.width
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, tower.embed_dim),
        "text_projection": (tower.embed_dim, tower.embed_dim),
        "logit_scale": (),
        "visual.class_embedding": (w,),
        "visual.positional_embedding": (tower.tokens, w),
        "visual.proj": (w, tower.embed_dim),
        "visual.conv1.weight": (w, 3, tower.patch, tower.patch),
        "token_embedding.weight": (49408, tower.embed_dim),
    }
    norms = {"ln_final": tower.embed_dim, "visual.ln_pre": w, "visual.ln_post": w}
    for layer in range(tower.layers):
        block = f"visual.transformer.resblocks.{layer}"
        norms |= {f"{block}.ln_1": w, f"{block}.ln_2": w}
        for name, outputs, inputs in (("out_proj", w, w), ("c_fc", 4 * w, w), ("c_proj", w, 4 * w)):
            module = f"{block}.attn.{name}" if name == "out_proj" else f"{block}.mlp.{name}"
            shapes |= {f"{module}.weight": (outputs, inputs), f"{module}.bias": (outputs,)}
        shapes |= {f"{block}.attn.in_proj_weight": (3 * w, w), f"{block}.attn.in_proj_bias": (3 * w,)}
    shapes |= {f"{norm}.{part}": (size,) for norm, size in norms.items() for part in ("weight", "bias")}
    return {f"model.{name}": shape for name, shape in sorted(shapes.items())}


def decaying(num_tasks: int, rows: int, cols: int, seed: int = 0) -> Float[Tensor, "tasks rows cols"]:
    """Singular values i^(-1/2) in random directions, and half as much that all tasks share: as experts look."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, min(rows, cols) + 1).float() ** -0.5

    def one() -> Tensor:
        left, right = (_orthonormal(size, len(spectrum), generator) for size in (rows, cols))
        return (left * spectrum) @ right.mT

    shared = 0.5 * one()
    return torch.stack([1e-2 * (shared + one()) for _ in range(num_tasks)])


def gaussian(num_tasks: int, rows: int, cols: int, seed: int = 0) -> Float[Tensor, "tasks rows cols"]:
    """Independent entries: singular values that nearly tie everywhere, the hardest case for anything iterative."""
    return 1e-3 * torch.randn(num_tasks, rows, cols, generator=torch.Generator().manual_seed(seed))


SPECTRA: Mapping[str, Callable[..., Tensor]] = {"decaying": decaying, "gaussian": gaussian}


def _orthonormal(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, cols, generator=generator))[0]
