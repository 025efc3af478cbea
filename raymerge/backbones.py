"""Image encoders and text towers, with the activation the checkpoints were trained with."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raymerge.errors import CheckpointError, FetchError, SuiteError, did_you_mean
from raymerge.model_config import has_quick_gelu, model_config
from raymerge.suites import Backbone
from raymerge.suites.demo import clip as demo_clip

WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of open_clip's weights in a repository of the Hugging Face Hub."""


def build_image_encoder(backbone: Backbone, shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """An encoder whose parameters are named as in the checkpoint after `model.`; its values are still random.

    Args:
        shapes: of every tensor of a checkpoint of this backbone.
    Raises:
        SuiteError: open_clip has no such model.
        CheckpointError: the shapes are of another backbone.
    """
    if backbone.model is None:
        return demo_clip.build_image_encoder(shapes)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
        return demo_clip.ImageEncoder(_vision_tower(backbone)).eval()


def encoder_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a backbone's image encoder, by its name in a checkpoint; takes no memory.

    Raises:
        SuiteError: open_clip has no such model.
    """
    with torch.device("meta"):
        state = _vision_tower(backbone).state_dict()
    return {f"{demo_clip.PREFIX}visual.{name}": tuple(value.shape) for name, value in state.items()}


def _vision_tower(backbone: Backbone) -> nn.Module:
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    config, quick_gelu = model_config(backbone), has_quick_gelu(backbone)
    with _configured(backbone):
        visual = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), quick_gelu)
    check_activation(visual, backbone, quick_gelu)
    return visual


def build_clip(backbone: Backbone) -> nn.Module:
    """The whole model, both towers, with random values.

    Raises:
        SuiteError: open_clip has no such model, or its configuration has no text tower.
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config, quick_gelu = model_config(backbone), has_quick_gelu(backbone)
    if "text_cfg" not in config or "hf_model_name" in config["text_cfg"]:
        raise SuiteError(f"backbone '{backbone.name}': its text tower is not one of CLIP's; give the heads as files.")
    with torch.random.fork_rng(devices=[]), _configured(backbone):  # the caller's random state is left alone
        vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
        model = CLIP(config["embed_dim"], vision, text, quick_gelu=quick_gelu)
    check_activation(model.visual, backbone, quick_gelu)
    check_activation(model.transformer, backbone, quick_gelu)
    return model.eval()


@contextlib.contextmanager
def _configured(backbone: Backbone) -> Iterator[None]:
    """Whatever open_clip makes of a configuration that is wrong, as one sentence."""
    try:
        yield
    except (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0].replace("__init__() ", "") if str(error) else "a size is wrong"
        raise SuiteError(
            f"backbone '{backbone.name}': open_clip cannot build its model ({type(error).__name__}: {reason}); "
            "write it as open_clip's files do."
        ) from error


def pretrained_clip(backbone: Backbone) -> nn.Module:
    """The whole model with the weights of `backbone.pretrained`: a file, or a tag of open_clip, which it downloads.

    Raises:
        CheckpointError: there are none, they cannot be had, or they do not fit.
        SuiteError: the model cannot be built, or was trained with another activation.
    """
    if not backbone.pretrained:
        raise CheckpointError(
            f"backbone '{backbone.name}' has no pretrained text tower, so no head can be built from prompts; give the "
            "heads as files, or 'pretrained:' in the suite's file."
        )
    from raymerge.checkpoints import open_checkpoint

    path = Path(backbone.pretrained).expanduser()
    if path.is_file():
        checkpoint = open_checkpoint(path)
        state = {name.removeprefix(demo_clip.PREFIX): checkpoint.tensor(name) for name in checkpoint.names}
    else:
        state = _open_clip_state(backbone)
    model = build_clip(backbone)
    missing = [name for name in model.state_dict() if name not in state]
    if missing:
        raise CheckpointError(f"{backbone.pretrained}: lacks '{missing[0]}', which {backbone.name} needs.")
    try:
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{backbone.pretrained}: does not fit {backbone.name}: {reason}") from None
    return model


def _open_clip_state(backbone: Backbone) -> Mapping[str, Tensor]:
    """The weights of one of open_clip's tags, from the cache or by its download."""
    import open_clip

    tag, name = str(backbone.pretrained), backbone.model
    known = open_clip.list_pretrained_tags_by_model(name) if isinstance(name, str) else []
    if not isinstance(name, str) or tag not in known:
        hint = f" {did_you_mean(tag, known)}" if known else ""
        owner = name if isinstance(name, str) else "a model that is written out"
        raise CheckpointError(
            f"backbone '{backbone.name}': '{tag}' is neither a file nor weights that open_clip has for {owner}.{hint}"
        )
    about: Mapping[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    quick_gelu = has_quick_gelu(backbone)
    if bool(about.get("quick_gelu")) != quick_gelu:
        raise SuiteError(
            f"backbone '{backbone.name}': the weights '{tag}' of {name} were trained with "
            f"{'GELU' if quick_gelu else 'QuickGELU'}, but it has {'QuickGELU' if quick_gelu else 'GELU'}; say "
            f"'quick_gelu: {'false' if quick_gelu else 'true'}', or take another model."
        )
    try:
        with _quiet_logs():
            weights = _cached_or_reachable(about) or tag
            return open_clip.create_model(name, pretrained=weights, force_quick_gelu=quick_gelu).state_dict()
    except Exception as error:  # of requests, huggingface_hub, or open_clip itself
        reason = str(error).strip().splitlines()[0].split(". ")[0].split("; ")[0].rstrip(".")
        raise CheckpointError(
            f"backbone '{backbone.name}': the weights '{tag}' of {name} cannot be loaded ({reason}); is there a "
            "network, or are they in the cache of HF_HOME?"
        ) from error


def _cached_or_reachable(about: Mapping[str, Any]) -> str | None:
    """The file of some weights in the cache; None where they can be downloaded.

    open_clip tries an unreachable hub for a minute, under several names, before it gives up.

    Raises:
        FetchError: neither.
    """
    from raymerge.suite_files.hub_files import cached_file, is_offline, list_files

    repo, _, file = str(about.get("hf_hub", "")).rpartition("/")
    if not repo:
        return None
    if found := cached_file(repo, (file,) if file else WEIGHTS_FILES):
        return str(found)
    if is_offline():
        raise FetchError(f"HF_HUB_OFFLINE is set, and the cache has nothing of {repo}")
    list_files(repo)
    return None


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """open_clip and huggingface_hub log, as errors, what becomes one sentence here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def tokenizer(backbone: Backbone) -> Callable[[list[str]], Tensor]:
    """Texts to the tokens that the text tower takes.

    Raises:
        SuiteError: its tokenizer is not CLIP's own.
    """
    from open_clip.tokenizer import SimpleTokenizer

    text = model_config(backbone).get("text_cfg", {})
    if foreign := text.get("hf_tokenizer_name"):
        raise SuiteError(
            f"backbone '{backbone.name}': its text tower takes the tokens of {foreign}, not of CLIP; give the heads "
            "as files."
        )
    return SimpleTokenizer(context_length=text.get("context_length", 77))


def check_activation(tower: nn.Module, backbone: Backbone, quick_gelu: bool) -> None:
    """An activation has no parameters: the wrong one loads cleanly and lowers every accuracy in silence.

    Raises:
        SuiteError: a block has QuickGELU where it should not, or the other way round.
    """
    found = {
        type(module.gelu).__name__
        for name, module in tower.named_modules()
        if name.endswith(".mlp") and hasattr(module, "gelu")
    }
    if (("QuickGELU" in found) != quick_gelu and found) or (quick_gelu and found != {"QuickGELU"}):
        raise SuiteError(
            f"backbone '{backbone.name}': open_clip built it with {', '.join(sorted(found)) or 'no such blocks'}, "
            f"expected {'QuickGELU' if quick_gelu else 'GELU'}; install open_clip_torch>=2.29."
        )
