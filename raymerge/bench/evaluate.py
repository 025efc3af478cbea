"""What evaluation costs: an evaluator as sweeps use it, a bare loop of the same encoder, and the published way.

The evaluator is a real Ray actor that reads a cached Arrow file; the bare loop gets normalised tensors in memory, in
batches of the same size; the published way decodes photos. All have the same weights, images and threads, and take
turns, so that whatever else the machine does hits all of them.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from raymerge import cluster
from raymerge.backbones import build_image_encoder
from raymerge.bench import published_way
from raymerge.bench.shapes import TOWERS
from raymerge.checkpoints import PREFIX, open_checkpoint, save_head, save_state_dict
from raymerge.data.transforms import to_pixels
from raymerge.errors import EvaluationError
from raymerge.evaluation import PRECISIONS, Evaluator
from raymerge.images import open_images, write_images
from raymerge.records import EvalJob, Scored
from raymerge.suites import CLIP_MEAN, CLIP_STD, Backbone, Suite, Task
from raymerge.sweep_spec import EvaluationSettings, ResourceSettings

MODELS: dict[str, str | Mapping[str, Any]] = {name: name for name in TOWERS}
"""The image encoders that can be timed: open_clip's name or configuration of each."""
TASK = "photos"
NUM_CLASSES = 100
SWITCHES = 5
"""Of alpha, that are timed."""


@dataclass(frozen=True)
class Turn:
    """One side over all images: on the clock, and on the processor in the process that evaluates."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Timed:
    """One backbone in one precision: turns over the same images.

    agreed: images to which the evaluator gives the class that the published way gives in fp32.
    switch_s: seconds of setting theta_0 + alpha * update, with the update resident.
    """

    backbone: str
    precision: str
    batch_size: int
    images: int
    evaluator: tuple[Turn, ...]
    bare: tuple[Turn, ...]
    published: tuple[Turn, ...]
    agreed: int
    switch_s: tuple[float, ...]

    @property
    def shares(self) -> list[float]:
        """Speed of the evaluator, as a share of the bare loop's, in every round of turns."""
        return [bare.wall_s / ours.wall_s for bare, ours in zip(self.bare, self.evaluator, strict=True)]

    @property
    def cpu_shares(self) -> list[float]:
        """The same of time on the processor, which other work on the machine changes little. Of no use on a GPU."""
        return [bare.cpu_s / ours.cpu_s for bare, ours in zip(self.bare, self.evaluator, strict=True)]

    @property
    def gains(self) -> list[float]:
        """How many times as fast as the published way, in every round of turns."""
        return [published.wall_s / ours.wall_s for published, ours in zip(self.published, self.evaluator, strict=True)]

    @property
    def cpu_gains(self) -> list[float]:
        return [published.cpu_s / ours.cpu_s for published, ours in zip(self.published, self.evaluator, strict=True)]

    @property
    def images_per_s(self) -> float:
        return self.images / statistics.median(turn.wall_s for turn in self.evaluator)

    @property
    def switch_in_batches(self) -> float:
        """What a switch of alpha costs, in batches of the bare loop."""
        batch_s = statistics.median(turn.wall_s for turn in self.bare) * self.batch_size / self.images
        return statistics.median(self.switch_s) / batch_s


@dataclass(frozen=True)
class _World:
    """A suite of one backbone with random weights and one task of made-up photos, on disk."""

    suite: Suite
    photos: Path
    weight: Tensor
    bias: Tensor

    @property
    def backbone(self) -> Backbone:
        return next(iter(self.suite.backbones.values()))


def time_backbone(
    name: str,
    *,
    images: int,
    repeats: int,
    precisions: Sequence[str] = ("fp32",),
    batch_size: int | None = None,
    threads: int = 1,
    loader_workers: int = 0,
    device: torch.device,
    report: Callable[[str], None] = lambda _: None,
) -> list[Timed]:
    """Time one of `MODELS` with random weights. Ray has to be connected, and torch to have its threads.

    Args:
        batch_size: of evaluator and bare loop; None: as sweeps choose it.
        loader_workers: processes that decode photos for the published way; 0: none beside the one that evaluates.
    Raises:
        EvaluationError: the evaluator failed.
    """
    with tempfile.TemporaryDirectory(prefix="raymerge-bench-") as folder:
        report(f"{name}: making {images} photos and random weights")
        world = _make_world(Path(folder), name, images, device, loader_workers)
        return [
            _time(world, precision, repeats, batch_size, threads, loader_workers, device, report)
            for precision in precisions
        ]


def _time(
    world: _World,
    precision: str,
    repeats: int,
    batch_size: int | None,
    threads: int,
    loader_workers: int,
    device: torch.device,
    report: Callable[[str], None],
) -> Timed:
    name, cached = world.backbone.name, open_images(world.suite.images_path(TASK, "val"))
    report(f"{name}, {precision}: starting an evaluator")
    ours, encoder = _evaluator(world, precision, batch_size, device)
    bare = _bare_turn(encoder, precision, _normalised(world, device), ours.batch_size)
    plain = _evaluator(world, "fp32", batch_size, device)[1] if precision != "fp32" else encoder
    loader = published_way.photo_loader(world.photos, _transform(world), loader_workers)
    published = partial(published_way.evaluate, plain, loader, world.weight, world.bias)
    settings = EvaluationSettings.model_validate({"precision": precision, "batch_size": ours.batch_size})
    actor = _Actor(world, settings, threads, device)
    agreed = actor.count_correct(len(cached))  # warms up as well
    bare()
    sides: dict[str, tuple[Callable[[], Any], Callable[[], float]]] = {
        "evaluator": (lambda: actor.count_correct(len(cached)), actor.cpu_s),
        "bare": (bare, time.process_time),
        "published": (lambda: torch.cat(list(published())), _with_children),
    }
    turns: dict[str, list[Turn]] = {side: [] for side in sides}
    for number in range(repeats):
        report(f"{name}, {precision}: turn {number + 1} of {repeats}")
        first = number % len(sides)
        for side in [*sides, *sides][first : first + len(sides)]:
            turns[side].append(_turn(*sides[side], device))
    report(f"{name}, {precision}: switching alpha")
    return Timed(
        backbone=name,
        precision=precision,
        batch_size=ours.batch_size,
        images=len(cached),
        **{side: tuple(of_side) for side, of_side in turns.items()},
        agreed=agreed,
        switch_s=_switch_seconds(ours, encoder, device),
    )


# --- sides -----------------------------------------------------------------------------------------------------------


class _Actor:
    """An evaluator of a sweep, in a process of its own."""

    def __init__(self, world: _World, settings: EvaluationSettings, threads: int, device: torch.device):
        resources = ResourceSettings(cpus_per_evaluator=float(threads), gpus_per_evaluator=float(device.type == "cuda"))
        self._backbone, self._shard_images = world.backbone.name, settings.shard_images
        started = cluster.start_evaluator(world.suite, settings, resources, [self._backbone])
        cluster.get([started.ready])
        self._handle = started.actor

    def count_correct(self, count: int) -> int:
        """How many of the first `count` images it gets right, shard by shard as in a sweep, one in flight."""
        correct = 0
        for start in range(0, count, self._shard_images):
            stop = min(start + self._shard_images, count)
            job = EvalJob(self._backbone, TASK, "val", start, stop, "theta_0", 0.0, None)
            ((outcome,),) = cluster.get([self._handle.run.remote(job)])
            if not isinstance(outcome, Scored):
                raise EvaluationError(outcome.error)
            correct += outcome.correct
        return correct

    def cpu_s(self) -> float:
        """Time that its process has spent on processors."""
        return cluster.get([self._handle.cpu_s.remote()])[0]


def _bare_turn(encoder: nn.Module, precision: str, pixels: Tensor, batch_size: int) -> Callable[[], None]:
    """A loop of nothing but the encoder, whose matrices are held in the precision already."""
    dtype = PRECISIONS[precision]

    def turn() -> None:
        with torch.inference_mode(), torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
            for batch in pixels.split(batch_size):
                encoder(batch)

    return turn


def _switch_seconds(evaluator: Evaluator, encoder: nn.Module, device: torch.device) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(2)
    update = {
        PREFIX + name: (1e-3 * torch.randn(parameter.shape, generator=generator)).to(device)
        for name, parameter in encoder.named_parameters()
    }
    evaluator.set_weights(update, 0.5)
    return tuple(_seconds(lambda k=k: evaluator.set_weights(update, k / 10), device) for k in range(SWITCHES))


def _evaluator(
    world: _World, precision: str, batch_size: int | None, device: torch.device
) -> tuple[Evaluator, nn.Module]:
    zero_shot = open_checkpoint(world.suite.zero_shot_path(world.backbone.name))
    encoder = build_image_encoder(world.backbone, zero_shot.shapes)
    evaluator = Evaluator(
        encoder,
        zero_shot,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        device=device,
        precision=precision,
        batch_size=batch_size,
    )
    return evaluator, encoder


def _turn(run: Callable[[], Any], cpu_s: Callable[[], float], device: torch.device) -> Turn:
    before = cpu_s()
    seconds = _seconds(run, device)
    return Turn(seconds, cpu_s() - before)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - started


def _with_children() -> float:
    """Time that this process and those it has started and ended, as loaders do, have spent on processors."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- what is evaluated -----------------------------------------------------------------------------------------------


def _make_world(folder: Path, name: str, count: int, device: torch.device, loader_workers: int) -> _World:
    """Random weights and photos; the label of a photo is the class that the published way gives it."""
    backbone = Backbone(name, f"{name}/zeroshot.pt", model=MODELS[name])
    task = Task(TASK, tuple(f"class {number}" for number in range(NUM_CLASSES)), {"val": count, "test": count})
    suite = Suite("bench", "random", 0, folder, {name: backbone}, (task,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_image_encoder(backbone, {})
        for parameter in encoder.parameters():
            if parameter.ndim >= 2:  # as built, towers give nearly the same features to all images
                parameter.data.mul_(1.5)
        weight = torch.randn(NUM_CLASSES, encoder.visual.proj.shape[1])  # type: ignore[union-attr]
    save_state_dict(suite.zero_shot_path(name), {PREFIX + key: value for key, value in encoder.state_dict().items()})
    paths = published_way.write_photos(folder / "raw", count)
    pixels = torch.stack([_pixels(path, _side(encoder)) for path in paths])
    write_images(suite.images_path(TASK, "val"), pixels, torch.zeros(count, dtype=torch.int64))
    world = _World(suite, folder / "raw", weight.to(device), torch.zeros(NUM_CLASSES, device=device))
    evaluator, encoder = _evaluator(world, "fp32", None, device)
    features = torch.cat(
        [f / f.norm(dim=-1, keepdim=True) for f in evaluator.encode(pixels[: published_way.BATCH_SIZE])]
    )
    # what all photos have in common would make them all of one class
    bias = -(world.weight @ features.mean(dim=0))
    save_head(suite.head_path(name, TASK), weight, bias.cpu())
    world = _World(suite, world.photos, world.weight, bias)
    loader = published_way.photo_loader(world.photos, _transform(world), loader_workers)
    labels = torch.cat(list(published_way.evaluate(encoder, loader, world.weight, bias))).cpu()
    write_images(suite.images_path(TASK, "val"), pixels, labels)
    return world


def _pixels(path: Path, side: int) -> Tensor:
    with Image.open(path) as photo:
        return torch.from_numpy(to_pixels(photo, side))


def _side(encoder: nn.Module) -> int:
    return encoder.visual.image_size[0]  # type: ignore[union-attr, index, return-value]


def _transform(world: _World) -> Callable[[Image.Image], Tensor]:
    """CLIP's own, from a photo to normalised pixels."""
    from open_clip import image_transform

    height, _ = open_images(world.suite.images_path(TASK, "val")).size
    return image_transform(height, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)  # type: ignore[return-value]


def _normalised(world: _World, device: torch.device) -> Tensor:
    """All cached images as the encoder takes them, in memory."""
    cached = open_images(world.suite.images_path(TASK, "val"))
    pixels, _ = cached.read(0, len(cached))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (CLIP_MEAN, CLIP_STD))
    return ((pixels.permute(0, 3, 1, 2).float() - mean) / std).contiguous().to(device)
