"""Second moments of the inputs of every matrix of an image encoder, summed while images pass through it.

The input moment of feature j of a matrix is E[x_j^2], over all images and over all tokens that meet the matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raymerge.checkpoints import PREFIX
from raymerge.errors import EvaluationError, SuiteError

Kind = Literal["resid", "attention", "mlp", "position"]
"""Where an input comes from: the residual stream, normalised; the heads of an attention; the hidden layer of an MLP; or
the position of a token."""

_ARGUMENTS = signature(nn.MultiheadAttention.forward)


@dataclass
class _Inputs:
    """What has been seen of the inputs of one matrix."""

    kind: Kind
    shape: tuple[int, int]
    """Of the matrix."""
    along: Literal["rows", "cols"]
    """Which side of the matrix the inputs meet: W x has them along the columns, x W along the rows."""
    total: Tensor | float = 0.0
    """Sum of squares, float64, one per feature."""
    count: int = 0


class InputMoments:
    """Watches an encoder: enter it as a context, put images through the encoder, then ask for `moments`.

    Inputs are taken where they enter a module, and the encoder computes what it computes unwatched.
    """

    def __init__(self, encoder: nn.Module):
        """
        Args:
            encoder: built of open_clip's vision transformer; its parameters are named as in the checkpoint after
                `model.`.
        Raises:
            SuiteError: the encoder has a matrix whose inputs cannot be watched.
        """
        self._inputs: dict[str, _Inputs] = {}
        self._attach: list[Callable[[], RemovableHandle]] = []
        self._handles: list[RemovableHandle] = []
        for name, module in encoder.named_modules():
            if isinstance(module, ResidualAttentionBlock):
                self._watch_block(PREFIX + name, module)
            elif isinstance(module, VisionTransformer):
                self._watch_tower(PREFIX + name, module)
        matrices = [PREFIX + n for n, p in encoder.named_parameters(remove_duplicate=False) if p.ndim == 2]
        if unknown := [key for key in matrices if key not in self._inputs]:
            raise SuiteError(
                f"the encoder has {len(unknown)} matrices (of {len(matrices)}) whose inputs cannot be watched, first "
                f"'{unknown[0]}': expected open_clip's VisionTransformer with plain nn.MultiheadAttention. Leave this "
                "backbone out."
            )

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of input of every matrix, by the checkpoint's key of the matrix."""
        return {key: inputs.kind for key, inputs in sorted(self._inputs.items())}

    def __enter__(self) -> "InputMoments":
        self._handles = [attach() for attach in self._attach]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch_block(self, name: str, block: ResidualAttentionBlock) -> None:
        parts = dict(block.named_modules())
        if isinstance(attention := parts["attn"], nn.MultiheadAttention) and _is_plain(attention):
            in_proj = self._enter(f"{name}.attn.in_proj_weight", attention.in_proj_weight, "resid")
            out_proj = self._enter(f"{name}.attn.out_proj.weight", attention.out_proj.weight, "attention")
            hook = partial(_see_attention, in_proj, out_proj)
            self._attach.append(partial(attention.register_forward_pre_hook, hook, with_kwargs=True))
        layers: tuple[tuple[str, Kind], ...] = (("mlp.c_fc", "resid"), ("mlp.c_proj", "mlp"))
        for path, kind in layers:
            if isinstance(linear := parts.get(path), nn.Linear):
                hook = partial(_see_linear, self._enter(f"{name}.{path}.weight", linear.weight, kind))
                self._attach.append(partial(linear.register_forward_pre_hook, hook))

    def _watch_tower(self, name: str, tower: VisionTransformer) -> None:
        self._enter(f"{name}.positional_embedding", tower.positional_embedding, "position", along="rows")
        if tower.attn_pool is None and tower.proj is not None:
            hook = partial(_see_last_norm, self._enter(f"{name}.proj", tower.proj, "resid", along="rows"), tower)
            self._attach.append(partial(tower.ln_post.register_forward_hook, hook))

    def _enter(self, key: str, matrix: Tensor, kind: Kind, along: Literal["rows", "cols"] = "cols") -> _Inputs:
        self._inputs[key] = _Inputs(kind, (matrix.shape[0], matrix.shape[1]), along)
        return self._inputs[key]

    def moments(self) -> dict[str, Float[Tensor, "rows cols"]]:
        """The moments by key, float32: (1, cols) or (rows, 1), as inputs run along the columns or rows of the matrix.

        A positional embedding is read by the position of a token, a one-hot vector: its moments are 1 / tokens.

        Raises:
            EvaluationError: a matrix met no input, or one that is not finite.
        """
        return {key: _moments(key, inputs) for key, inputs in sorted(self._inputs.items())}


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    """Whether queries, keys and values come from one matrix and from nothing but the inputs."""
    return attention.in_proj_weight is not None and attention.bias_k is None and not attention.add_zero_attn


def _see_linear(inputs: _Inputs, module: nn.Module, args: tuple[Any, ...]) -> None:
    _add(inputs, args[0])


def _see_attention(
    in_proj: _Inputs, out_proj: _Inputs, attention: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    given = _ARGUMENTS.bind(attention, *args, **kwargs).arguments
    x = given["query"]
    is_masked = given.get("attn_mask") is not None or given.get("key_padding_mask") is not None
    if given["key"] is not x or given["value"] is not x or is_masked or (attention.training and attention.dropout):
        raise EvaluationError(
            "the encoder called an attention with a mask, dropout, or keys and values other than its queries, whose "
            "inputs cannot be watched. Leave this backbone out."
        )
    _add(in_proj, x)
    # the module uses out_proj's weight without calling out_proj, so a hook there would see nothing
    _add(out_proj, attended(attention, x))


def _see_last_norm(
    inputs: _Inputs, tower: VisionTransformer, norm: nn.Module, args: tuple[Any, ...], output: Tensor
) -> None:
    _add(inputs, output if tower.final_ln_after_pool else tower._global_pool(output)[0])


def _add(inputs: _Inputs, x: Float[Tensor, "*batch features"]) -> None:
    x = x.detach().flatten(0, -2)
    # not in place: the sum may outlive an inference mode that its terms were made in
    inputs.total = inputs.total + x.square().sum(dim=0, dtype=torch.float64)
    inputs.count += len(x)


def _moments(key: str, inputs: _Inputs) -> Float[Tensor, "rows cols"]:
    rows, _ = inputs.shape
    if inputs.kind == "position":
        return torch.full((rows, 1), 1 / rows)
    if not isinstance(inputs.total, Tensor):
        raise EvaluationError(f"'{key}' met no input while images passed through the encoder. Leave this backbone out.")
    values = (inputs.total / inputs.count).float().cpu()
    if not torch.isfinite(values).all():
        raise EvaluationError(f"'{key}' met inputs that are NaN or infinite. Fetch or train the expert again.")
    return values[None] if inputs.along == "cols" else values[:, None]


def attended(
    attention: nn.MultiheadAttention, inputs: Float[Tensor, "first second width"]
) -> Float[Tensor, "first second width"]:
    """What `out_proj` of a plain self-attention multiplies: the heads' weighted sums of values, side by side.

    Per head softmax(Q K^T / sqrt(d)) V, where [Q K V] = x W^T + b and W is `in_proj_weight`.

    Args:
        inputs: (images, tokens, width), or (tokens, images, width) for an attention that is not `batch_first`.
    """
    x = inputs if attention.batch_first else inputs.transpose(0, 1)
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)  # type: ignore[arg-type]
    q, k, v = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v)  # (images, heads, tokens, width of a head)
    joined = heads.transpose(1, 2).flatten(2)
    return joined if attention.batch_first else joined.transpose(0, 1)
