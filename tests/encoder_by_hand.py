"""The image tower of CLIP as explicit matrix products in float64; nothing of `raymerge` or `open_clip` is imported."""

from collections.abc import Mapping

import torch
from torch import Tensor


def run_by_hand(state: Mapping[str, Tensor], images: Tensor, num_heads: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of normalised images (n, 3, height, width), and the inputs of every matrix, one row per use.

    Args:
        state: keys as in a checkpoint, `model.visual.*`.
    """
    s = {name: value.double() for name, value in state.items()}
    tower, inputs = "model.visual.", {}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.sum(dim=-1, keepdim=True) / x.shape[-1]
        variance = (centred**2).sum(dim=-1, keepdim=True) / x.shape[-1]
        return centred / (variance + 1e-5).sqrt() * s[name + ".weight"] + s[name + ".bias"]

    def note(name: str, x: Tensor) -> Tensor:
        inputs[name] = x.reshape(-1, x.shape[-1])
        return x

    kernel = s[tower + "conv1.weight"]
    width, _, size, _ = kernel.shape
    patches = [
        images[:, :, top : top + size, left : left + size].double().flatten(1) @ kernel.flatten(1).T
        for top in range(0, images.shape[2], size)
        for left in range(0, images.shape[3], size)
    ]
    tokens = torch.stack([s[tower + "class_embedding"].expand(len(images), -1), *patches], dim=1)
    positions = s[tower + "positional_embedding"]
    inputs[tower + "positional_embedding"] = torch.eye(len(positions), dtype=torch.float64).repeat(len(images), 1)
    x = norm(tokens + positions, tower + "ln_pre")
    for layer in range(sum(name.endswith("in_proj_weight") for name in s)):
        block = f"{tower}transformer.resblocks.{layer}."
        a = note(block + "attn.in_proj_weight", norm(x, block + "ln_1"))
        q, k, v = (
            a @ w.T + b
            for w, b in zip(
                s[block + "attn.in_proj_weight"].split(width), s[block + "attn.in_proj_bias"].split(width), strict=True
            )
        )
        heads, step = [], width // num_heads
        for start in range(0, width, step):
            part = slice(start, start + step)
            scores = (q[..., part] @ k[..., part].mT / step**0.5).exp()
            heads.append(scores / scores.sum(dim=-1, keepdim=True) @ v[..., part])
        joined = note(block + "attn.out_proj.weight", torch.cat(heads, dim=-1))
        x = x + joined @ s[block + "attn.out_proj.weight"].T + s[block + "attn.out_proj.bias"]
        m = note(block + "mlp.c_fc.weight", norm(x, block + "ln_2"))
        hidden = m @ s[block + "mlp.c_fc.weight"].T + s[block + "mlp.c_fc.bias"]
        hidden = note(block + "mlp.c_proj.weight", hidden / (1 + (-1.702 * hidden).exp()))
        x = x + hidden @ s[block + "mlp.c_proj.weight"].T + s[block + "mlp.c_proj.bias"]
    pooled = note(tower + "proj", norm(x[:, 0], tower + "ln_post"))
    return pooled @ s[tower + "proj"], inputs


def moments_by_hand(state: Mapping[str, Tensor], images: Tensor, num_heads: int) -> dict[str, Tensor]:
    """The mean of the squares of every matrix's inputs, (1, cols); (rows, 1) where a row vector meets the matrix."""
    _, inputs = run_by_hand(state, images, num_heads)
    moments = {name: (x**2).sum(dim=0, keepdim=True) / len(x) for name, x in inputs.items()}
    for name in ("model.visual.proj", "model.visual.positional_embedding"):
        moments[name] = moments[name].T
    return moments
