"""Fine-tuning the image encoder of a suite on one of its tasks, from raw images to a file in the published layout."""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import raymerge
from raymerge.backbones import build_image_encoder
from raymerge.checkpoints import PREFIX, Checkpoint, file_sha256
from raymerge.data import Samples
from raymerge.data.splits import index_hash, read_split
from raymerge.errors import CheckpointError, DataError, OutputError, RaymergeError, TrainingError
from raymerge.evaluation import PRECISIONS
from raymerge.finetuning.files import ExpertFiles, alone, read_resume, write_record, write_resume, writing
from raymerge.finetuning.images import TrainingImages, steps_per_epoch
from raymerge.finetuning.recipe import FinetuneRecipe
from raymerge.finetuning.start import load_frozen_head, tensors_of
from raymerge.linalg import all_finite
from raymerge.suites.published import PublishedSuite
from raymerge.training import Trainer, TrainingRecipe, train
from raymerge.whole_file import whole_file

RECORD_FORMAT = 1

Watch = Callable[[int, int, float], bool]
"""Told of every step: how many are done, how many there are, and the loss. Returns whether to stop there."""


@dataclass(frozen=True)
class Job:
    """One expert to be made."""

    suite: PublishedSuite
    backbone: str
    task: str
    recipe: FinetuneRecipe
    files: ExpertFiles
    zero_shot: Path
    """Where the training starts from."""
    force: bool = False
    """Whether to start over where a training of another kind was begun."""

    def __str__(self) -> str:
        return f"{self.backbone}/{self.task}"


@dataclass(frozen=True)
class Machine:
    """Where and how a job runs. Of these, only the device and its threads can change a bit of the result."""

    device: str = "cpu"
    threads: int = 1
    """Of torch, on a CPU."""
    workers: int = 1
    """Threads that decode images."""
    save_every_s: float = 300.0
    """Between two files to continue from."""


@dataclass(frozen=True)
class Finetuned:
    """A job that is done."""

    steps: int
    loss: float
    """Mean of the last epoch."""
    seconds: float


def finetune(job: Job, machine: Machine, watch: Watch = lambda done, steps, loss: False) -> Finetuned | None:
    """Make one expert, from wherever an earlier training of the same kind stopped.

    Returns:
        What was done, or None if it was stopped; the same call then continues.
    Raises:
        TrainingError: the loss is not finite, or the device has too little memory.
        DataError: the images are missing or damaged.
        CheckpointError: weights or head do not fit.
        OutputError: files cannot be written, or belong to another training.
    """
    device = torch.device(machine.device)
    threads = torch.get_num_threads()
    with _told_of(job), alone(job.files):
        torch.set_num_threads(machine.threads)
        try:
            with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
                torch.manual_seed(job.recipe.seed)
                return _finetune(job, machine, device, watch)
        finally:
            torch.set_num_threads(threads)


def _finetune(job: Job, machine: Machine, device: torch.device, watch: Watch) -> Finetuned | None:
    samples, zero_shot = read_samples(job), Checkpoint(job.zero_shot)
    images = _images(job, samples, machine.workers)
    trainer = Trainer(
        _encoder(job, zero_shot),
        load_frozen_head(job.suite, job.task, job.files.head, zero_shot),
        training_recipe(job.recipe, len(samples)),
        mean=job.suite.backbones[job.backbone].mean,
        std=job.suite.backbones[job.backbone].std,
        device=device,
    )
    about = _about(job, samples)
    seconds_before = _restore(job, trainer, about)
    started = saved = time.monotonic()
    stopped = False

    def on_step() -> bool:
        nonlocal saved, stopped
        wants_to_stop = watch(trainer.step, trainer.recipe.steps, trainer.losses[-1])
        stopped = wants_to_stop and trainer.step < trainer.recipe.steps
        now = time.monotonic()
        if stopped or now - saved >= machine.save_every_s:
            write_resume(job.files.resume, about, seconds_before + now - started, trainer.state())
            saved = time.monotonic()
        return stopped

    encoder = train(trainer, images, on_step)
    if stopped:
        return None
    seconds = seconds_before + time.monotonic() - started
    by_epoch = _means(trainer.losses, images.steps_per_epoch)
    made = {
        "steps": trainer.step,
        "loss": {"first_step": trainer.losses[0], "last_step": trainer.losses[-1], "by_epoch": by_epoch},
        "seconds": round(seconds, 1),
        **_circumstances(machine),
    }
    _write(job, zero_shot, encoder, {**about, **made})
    return Finetuned(trainer.step, by_epoch[-1], seconds)


def read_samples(job: Job) -> Samples:
    """The training images of a job: those of the training split that are not held out for validation.

    Raises:
        DataError: they are missing, damaged, of another number than known, or their labels do not fit the classes.
    """
    declared, task = job.suite.datasets[job.task], job.suite.task(job.task)
    samples = read_split(declared, job.suite.data, "train")
    expected = declared.num_train - (declared.num_val if declared.num_own_val is None else 0)
    if declared.num_train and not job.suite.any_size and len(samples) != expected:
        raise DataError(
            f"{declared.name}: {len(samples)} training images under {job.suite.data}, expected {expected}; get the "
            "dataset again, or say 'any_size: true' in the suite file."
        )
    if not len(samples):
        raise DataError(f"{declared.name}: no training images under {job.suite.data}; get the dataset again.")
    low, high = min(samples.labels), max(samples.labels)
    if low < 0 or high >= len(task.classes):
        raise DataError(
            f"{declared.name}: labels run from {low} to {high}, but task '{task.name}' has {len(task.classes)} classes."
        )
    return samples


def training_recipe(recipe: FinetuneRecipe, num_images: int) -> TrainingRecipe:
    """A recipe for so many images."""
    steps = recipe.epochs * steps_per_epoch(num_images, recipe.images_per_step)
    return TrainingRecipe(
        steps=min(steps, recipe.max_steps or steps),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup=recipe.warmup,
        gradient_norm=recipe.gradient_norm,
        autocast=PRECISIONS[recipe.precision],
    )


def _images(job: Job, samples: Samples, workers: int) -> TrainingImages:
    return TrainingImages(
        samples,
        size=job.suite.image_size,
        batch_size=job.recipe.batch_size,
        accumulate=job.recipe.accumulate,
        epochs=job.recipe.epochs,
        seed=f"{job.recipe.seed}/{job.task}",
        threads=workers,
    )


def _encoder(job: Job, zero_shot: Checkpoint) -> nn.Module:
    encoder = build_image_encoder(job.suite.backbones[job.backbone], zero_shot.shapes)
    names = set(zero_shot.names)
    missing = [name for name in encoder.state_dict() if PREFIX + name not in names]
    if missing:
        raise CheckpointError(f"{zero_shot.path}: lacks '{PREFIX}{missing[0]}', which {job.backbone} needs.")
    try:
        encoder.load_state_dict({name: zero_shot.tensor(PREFIX + name) for name in encoder.state_dict()})
    except RuntimeError as error:  # a shape, in its last line
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{zero_shot.path}: does not fit {job.backbone}: {reason}") from None
    return encoder


def _about(job: Job, samples: Samples) -> dict[str, Any]:
    """All that decides on the expert, as JSON values."""
    backbone = job.suite.backbones[job.backbone]
    return {
        "backbone": job.backbone,
        "task": job.task,
        "dataset": job.suite.datasets[job.task].name,
        "num_images": len(samples),
        "labels": index_hash(samples.labels),
        "image_size": job.suite.image_size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "zero_shot_sha256": file_sha256(job.zero_shot),
        "head_sha256": file_sha256(job.files.head),
        "recipe": job.recipe.as_dict(),
    }


def _circumstances(machine: Machine) -> dict[str, Any]:
    packages = ("torch", "torchvision", "open_clip_torch", "pillow")
    return {
        "device": torch.cuda.get_device_name() if machine.device == "cuda" else machine.device,
        "threads": machine.threads,
        "versions": {"raymerge": raymerge.__version__, **{package: version(package) for package in packages}},
    }


def _restore(job: Job, trainer: Trainer, about: Mapping[str, Any]) -> float:
    """Continue an earlier training, where there is one. Returns the seconds it has taken."""
    if not job.files.resume.exists():
        return 0.0
    try:
        seconds, state = read_resume(job.files.resume, about)
    except OutputError:
        if not job.force:
            raise
        job.files.resume.unlink()
        return 0.0
    trainer.restore(state)
    return seconds


def _write(job: Job, zero_shot: Checkpoint, encoder: nn.Module, record: Mapping[str, Any]) -> None:
    """Write the expert as the published ones are, and its record, which is there before the expert is."""
    # integers, such as counters, are shared with the zero-shot model; what is left of the text tower is not trained
    trained = {PREFIX + name: value for name, value in encoder.state_dict().items() if value.is_floating_point()}
    for name, value in trained.items():
        if not all_finite(value):
            raise TrainingError(f"'{name}' is not finite after the last step; use a smaller learning rate, or float32.")
    state: dict[str, Tensor] = OrderedDict(
        (name, value.detach().cpu().clone().contiguous()) for name, value in (tensors_of(zero_shot) | trained).items()
    )
    with writing(job.files.expert):
        with whole_file(job.files.expert) as file:
            torch.save(state, file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            suite = {"suite": job.suite.name, "profile": job.suite.profile}
            write_record(job.files.record, {"format": RECORD_FORMAT, "expert_sha256": digest, **suite, **record})
        job.files.resume.unlink(missing_ok=True)


def _means(values: Sequence[float], length: int) -> list[float]:
    """Of every so many values, the last of which may be fewer."""
    parts = [values[start : start + length] for start in range(0, len(values), length)]
    return [math.fsum(part) / len(part) for part in parts]


@contextmanager
def _told_of(job: Job) -> Iterator[None]:
    """Errors that name the job."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"{job}: the GPU has too little memory for {job.recipe.batch_size} images at a time; use a smaller "
            "--batch-size with a larger --accumulate."
        ) from None
    except RaymergeError as error:
        raise type(error)(f"{job}: {error}") from None
