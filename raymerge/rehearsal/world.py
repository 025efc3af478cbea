"""A miniature of a published collection on disk: raw datasets, checkpoints and heads, in the published layout.

<folder>/suite.yaml           written last: its presence means complete
<folder>/data/                the datasets, each in its raw format
<folder>/weights/<backbone>/  as published: <Task>Val/nonlinear_{zeroshot,finetuned}.pt, head_<Task>Val.pt
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from ruamel.yaml import YAML
from torch import Tensor, nn

from raymerge.backbones import build_clip, build_image_encoder
from raymerge.checkpoints import PREFIX, save_head, save_state_dict
from raymerge.data import Dataset, module_of
from raymerge.data.transforms import to_pixels
from raymerge.errors import UsageError
from raymerge.model_config import model_config
from raymerge.rehearsal.pictures import pictures
from raymerge.rehearsal.raw import write_raw
from raymerge.search_space import sweep_cells
from raymerge.suites import Backbone
from raymerge.suites.published import ZERO_SHOT_TASK, PublishedSuite
from raymerge.sweep_spec import SweepSpec
from raymerge.whole_file import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image

Report = Callable[[str, float], None]

RANK = 4
"""Of what fine-tuning changed in every matrix of an expert."""
CHANGE = 0.4
"""Norm of that change, relative to the matrix."""
FAINT = 1e-3
"""Norm of what else has changed, relative to that: no matrix of a real expert has a rank that is exactly low."""
COMMON_PICTURES = 32
"""Whose mean feature tells what all pictures have in common."""


@dataclass(frozen=True)
class Scale:
    """How much smaller than the real thing."""

    name: str
    train_images: int
    test_images: int
    """Per dataset, or one of every class where there are more classes."""
    side: int
    """Height and width of raw pictures, where the format leaves it open."""
    layers: int | None = None
    """Blocks of every image tower; None: all of them."""
    tiny: bool = False
    """Whether widths and image sizes are tiny, too."""

    def config(self, backbone: Backbone) -> dict[str, Any]:
        """The configuration of a backbone at this scale."""
        real = model_config(backbone)
        vision, text = dict(real["vision_cfg"]), dict(real["text_cfg"])
        layers = vision["layers"] if self.layers is None else min(self.layers, vision["layers"])
        if not self.tiny:
            return {"embed_dim": real["embed_dim"], "vision_cfg": {**vision, "layers": layers}, "text_cfg": text}
        # finer patches stay finer, and wider towers wider
        vision = {"image_size": 32, "layers": layers, "width": vision["width"] // 16, "head_width": 16}
        vision["patch_size"] = 8 if real["vision_cfg"]["patch_size"] < 32 else 16
        text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
        return {"embed_dim": real["embed_dim"] // 16, "vision_cfg": vision, "text_cfg": text}


SMALL = Scale("small", train_images=40, test_images=16, side=96, layers=2)
TINY = Scale("tiny", train_images=60, test_images=24, side=40, layers=1, tiny=True)


def write_world(folder: Path, suite: PublishedSuite, scale: Scale, report: Report) -> Path:
    """Write the miniature of a suite, or what is missing of it. Returns the path of its suite file.

    Raises:
        UsageError: a dataset of the suite has no raw format that can be written.
    """
    path = folder / "suite.yaml"
    if path.is_file():
        return path
    num = len(suite.tasks) * (1 + len(suite.backbones))
    for number, task in enumerate(suite.tasks):
        report(f"writing {task.name} in its raw format", number / num)
        _write_dataset(folder / "data", suite, task.name, scale)
    for place, name in enumerate(suite.backbones):
        shares = (len(suite.tasks) * (1 + place), num)
        _write_backbone(folder, suite, name, scale, lambda what, done, s=shares: report(what, (s[0] + done) / s[1]))
    with whole_file(path) as file:
        YAML().dump(_suite_file(suite, scale), file)
    return path


def used_part(suite: PublishedSuite, spec: SweepSpec) -> PublishedSuite:
    """The suite with the backbones and tasks that a sweep uses, and no others."""
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    tasks = {task for cell in cells for task in cell.tasks}
    return replace(
        suite,
        backbones={name: suite.backbones[name] for name in dict.fromkeys(cell.backbone for cell in cells)},
        tasks=tuple(task for task in suite.tasks if task.name in tasks),
    )


def _write_dataset(data: Path, suite: PublishedSuite, task: str, scale: Scale) -> None:
    dataset = suite.datasets[task]
    module = module_of(dataset.name)
    if module is None:
        raise UsageError(f"task '{task}' has images of its own ({dataset.name}), which a rehearsal cannot make up.")
    marker = data / f".{dataset.name}.complete"
    if marker.is_file():
        return
    num_classes = len(dataset.folders or dataset.classes)
    counts = {"train": scale.train_images, "test": scale.test_images}
    if dataset.num_own_val is not None:
        counts["val"] = scale.test_images
    data.mkdir(parents=True, exist_ok=True)
    splits = {
        split: pictures(dataset.name, split, num_classes, count, side=scale.side) for split, count in counts.items()
    }
    write_raw(module, data, splits)
    marker.touch()


def _suite_file(suite: PublishedSuite, scale: Scale) -> dict[str, Any]:
    tasks = []
    for task in suite.tasks:
        known = suite.datasets[task.name]
        entry: dict[str, Any] = {"name": task.name, "dataset": known.name}
        if task.classes != known.classes:
            entry["classes"] = list(task.classes)
        tasks.append(entry)
    return {
        "suite_version": 1,
        "name": f"{suite.name}-{scale.name}",
        "weights": "weights",
        "data": "data",
        "any_size": True,
        "backbones": {
            name: {"model": scale.config(backbone), "quick_gelu": backbone.quick_gelu}
            for name, backbone in suite.backbones.items()
        },
        "tasks": tasks,
    }


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _write_backbone(folder: Path, suite: PublishedSuite, name: str, scale: Scale, report: Report) -> None:
    config = scale.config(suite.backbones[name])
    backbone = Backbone(name, "", model=config, quick_gelu=suite.backbones[name].quick_gelu)
    generator = torch.Generator().manual_seed(len(json.dumps(config)))
    weights = folder / "weights" / name
    zero_shot_path = weights / f"{ZERO_SHOT_TASK}Val" / "nonlinear_zeroshot.pt"
    zero_shot = _published_state(backbone, generator)
    if not zero_shot_path.is_file():
        save_state_dict(zero_shot_path, zero_shot)
    encoder = build_image_encoder(backbone, {})
    for number, task in enumerate(suite.tasks):
        report(f"writing the expert {name}/{task.name}", number)
        own = torch.Generator().manual_seed(hash_of(name, task.name))
        path, head_path = weights / f"{task.name}Val" / "nonlinear_finetuned.pt", weights / f"head_{task.name}Val.pt"
        if head_path.is_file() and path.is_file():
            continue
        expert = {key: value + _change(key, value, own) for key, value in zero_shot.items()}
        save_state_dict(path, expert)
        encoder.load_state_dict({key: expert[PREFIX + key] for key in encoder.state_dict()})
        normalised = _normaliser(suite.backbones[name], config["vision_cfg"]["image_size"])
        save_head(head_path, _head(encoder, normalised, suite.datasets[task.name], folder / "data"))


def _published_state(backbone: Backbone, generator: torch.Generator) -> dict[str, Tensor]:
    """The tensors of a published file: both towers but the blocks of the text tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = build_clip(backbone)
    return {
        PREFIX + name: value.detach().float()
        for name, value in model.state_dict().items()
        if not name.startswith("transformer.") and name != "attn_mask"
    }


def _change(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """What fine-tuning did to a tensor: to a matrix mostly something of low rank; text leftovers never move."""
    if not name.startswith(PREFIX + "visual."):
        return torch.zeros_like(value)
    if value.ndim != 2:
        return 0.02 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
    rank = min(RANK, *value.shape)
    left = torch.randn(value.shape[0], rank, generator=generator)
    change = left @ torch.randn(rank, value.shape[1], generator=generator)
    rest = torch.randn(value.shape, generator=generator)
    return CHANGE * value.norm() * (change / change.norm() + FAINT * rest / rest.norm())


def _normaliser(backbone: Backbone, size: int) -> Callable[["Image"], Tensor]:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    return lambda image: (torch.from_numpy(to_pixels(image, size)).permute(2, 0, 1) / 255 - mean) / std


@torch.no_grad()
def _head(
    encoder: nn.Module, normalised: Callable[["Image"], Tensor], dataset: Dataset, data: Path
) -> Float[Tensor, "classes dim"]:
    """A head that fits an expert: rows are the features of a training picture of each class, less what all share.

    So experts are good, and models with other features are not.
    """
    samples = dataset.find_layout(data).read(data, "train")
    first: dict[int, int] = {}
    for number, label in enumerate(samples.labels):
        first.setdefault(label, number)

    def features(numbers: Iterable[int]) -> Tensor:
        inputs = [normalised(samples.image(number)) for number in numbers]
        return F.normalize(torch.cat([encoder(torch.stack(part)) for part in batched(inputs, 16)]), dim=-1)

    common = features(range(min(COMMON_PICTURES, len(samples)))).mean(dim=0)
    rows = features(first[label] for label in sorted(first))
    return 100 * F.normalize(rows - torch.outer(rows @ common, common) / common.dot(common), dim=-1)


def batched(values: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def hash_of(*parts: str) -> int:
    """A seed for each name."""
    return int.from_bytes("/".join(parts).encode(), "big") % (2**31 - 1)
