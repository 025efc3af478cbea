"""Image encoders and text towers, with the activation the checkpoints were trained with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from raymerge.errors import CheckpointError, SuiteError, did_you_mean
from raymerge.model_config import has_quick_gelu, model_config
from raymerge.suites import Backbone
from raymerge.suites.demo import clip as demo_clip


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
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    config, quick_gelu = model_config(backbone), has_quick_gelu(backbone)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
        visual = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), quick_gelu)
    check_activation(visual, backbone, quick_gelu)
    return demo_clip.ImageEncoder(visual).eval()


def build_clip(backbone: Backbone) -> nn.Module:
    """The whole model, both towers, with random values.

    Raises:
        SuiteError: open_clip has no such model, or its configuration has no text tower.
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config, quick_gelu = model_config(backbone), has_quick_gelu(backbone)
    if "text_cfg" not in config or "hf_model_name" in config["text_cfg"]:
        raise SuiteError(f"backbone '{backbone.name}': its text tower is not one of CLIP's; give the heads as files.")
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
        vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
        model = CLIP(config["embed_dim"], vision, text, quick_gelu=quick_gelu)
    check_activation(model.visual, backbone, quick_gelu)
    return model.eval()


def pretrained_clip(backbone: Backbone) -> nn.Module:
    """The whole model with the weights of `backbone.pretrained`: a file, or a tag of open_clip, which it downloads.

    Raises:
        CheckpointError: there are none, they cannot be had, or they do not fit.
    """
    if not backbone.pretrained:
        raise CheckpointError(
            f"backbone '{backbone.name}' has no pretrained text tower, so no head can be built from prompts; give the "
            "heads as files, or 'pretrained:' in the suite's file."
        )
    import open_clip

    from raymerge.checkpoints import open_checkpoint

    model, path = build_clip(backbone), Path(backbone.pretrained).expanduser()
    if path.is_file():
        checkpoint = open_checkpoint(path)
        state = {name.removeprefix(demo_clip.PREFIX): checkpoint.tensor(name) for name in checkpoint.names}
    else:
        known = open_clip.list_pretrained_tags_by_model(str(backbone.model))
        if backbone.pretrained not in known:
            raise CheckpointError(
                f"backbone '{backbone.name}': '{backbone.pretrained}' is neither a file nor weights that open_clip "
                f"has for {backbone.model}. {did_you_mean(backbone.pretrained, known)}"
            )
        try:
            state = open_clip.create_model(
                str(backbone.model), pretrained=backbone.pretrained, force_quick_gelu=has_quick_gelu(backbone)
            ).state_dict()
        except Exception as error:  # of requests, huggingface_hub, or open_clip itself
            raise CheckpointError(
                f"backbone '{backbone.name}': the weights '{backbone.pretrained}' of {backbone.model} cannot be loaded "
                f"({str(error).strip().splitlines()[0]}); is there a network, or are they in the cache of HF_HOME?"
            ) from None
    missing = [name for name in model.state_dict() if name not in state]
    if missing:
        raise CheckpointError(f"{backbone.pretrained}: lacks '{missing[0]}', which {backbone.name} needs.")
    try:
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{backbone.pretrained}: does not fit {backbone.name}: {reason}") from None
    return model


def tokenizer(backbone: Backbone) -> Callable[[list[str]], Tensor]:
    """Texts to the tokens that the text tower takes."""
    from open_clip.tokenizer import SimpleTokenizer

    context_length = model_config(backbone)["text_cfg"].get("context_length", 77)
    return SimpleTokenizer(context_length=context_length)


def check_activation(visual: nn.Module, backbone: Backbone, quick_gelu: bool) -> None:
    """An activation has no parameters: the wrong one loads cleanly and lowers every accuracy in silence.

    Raises:
        SuiteError: a block has QuickGELU where it should not, or the other way round.
    """
    found = {
        type(module.gelu).__name__
        for name, module in visual.named_modules()
        if name.endswith(".mlp") and hasattr(module, "gelu")
    }
    if (("QuickGELU" in found) != quick_gelu and found) or (quick_gelu and found != {"QuickGELU"}):
        raise SuiteError(
            f"backbone '{backbone.name}': open_clip built it with {', '.join(sorted(found)) or 'no such blocks'}, "
            f"expected {'QuickGELU' if quick_gelu else 'GELU'}; install open_clip_torch>=2.29."
        )
