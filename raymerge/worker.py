"""EvalWorker: one process's encoders, heads and images. No policy, no search, no ray."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymerge.backbones import build_image_encoder
from raymerge.checkpoints import load_head, open_checkpoint
from raymerge.errors import RaymergeError, UpdateNotHereError
from raymerge.evaluation import Evaluator
from raymerge.images import ImageSplit, cached_split
from raymerge.records import EvalJob, Failed, NotYet, Predictions, Scored
from raymerge.suites import Suite
from raymerge.sweep_spec import EvaluationSettings

RESIDENT_UPDATES = 2
"""Merged updates a worker keeps at hand, so that another alpha of the same update costs no transfer."""


@dataclass(frozen=True)
class WorkerSetup:
    """All a worker needs to know to start."""

    suite: Suite
    settings: EvaluationSettings
    num_threads: int = 1
    """Of torch. Not a matter of speed alone: it is the same for every number of workers, so results are too."""
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    """By backbone, where a batch size of auto was measured: once for all workers, so that they round alike."""


class EvalWorker:
    """Scores shards of datasets under theta_0 + alpha * update, one at a time."""

    def __init__(self, setup: WorkerSetup, fetch: Callable[[Any], Sequence[Mapping[str, np.ndarray]]]):
        """
        Args:
            fetch: turns `EvalJob.update` into the shards of the update; may raise UpdateNotHereError.
        """
        self._setup = setup
        self._fetch = fetch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._evaluators: dict[str, Evaluator] = {}
        self._weights: dict[str, str] = {}
        self._updates: dict[str, dict[str, Tensor]] = {}
        torch.set_num_threads(setup.num_threads)

    def ready(self, backbones: Sequence[str]) -> str:
        """Load the encoders, so that a bad checkpoint stops the sweep and not each job. Returns the device's name."""
        for backbone in backbones:
            self._evaluator(backbone)
        return torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"

    def run(self, job: EvalJob) -> Scored | Failed | NotYet:
        """Score one shard. Errors meant for the user become the trial's failure; bugs still propagate."""
        started = time.monotonic()
        try:
            evaluator = self._evaluator(job.backbone)
            if self._weights.get(job.backbone) != job.weights_id:
                self._weights.pop(job.backbone, None)  # until all tensors are set, the encoder is neither
                evaluator.set_weights(self._update(job), job.alpha)
                self._weights[job.backbone] = job.weights_id
            images, labels = self._images(job.task, job.split).view(job.start, job.stop)
            head = self._head(job.backbone, job.task, evaluator.embed_dim)
            predicted = evaluator.predict(images, *head).cpu()
        except UpdateNotHereError as error:
            self._updates.clear()  # what is at hand occupies the store that the missing one may need
            return NotYet(str(error))
        except (RaymergeError, torch.OutOfMemoryError) as error:
            return Failed(f"{job.backbone}/{job.task} ({job.split}): {error}")
        correct = int((predicted == labels).sum())
        predictions = Predictions(_classes(predicted), _classes(labels)) if job.with_predictions else None
        return Scored(correct, job.stop - job.start, time.monotonic() - started, predictions)

    def _evaluator(self, backbone: str) -> Evaluator:
        if backbone not in self._evaluators:
            suite, settings = self._setup.suite, self._setup.settings
            batch_size = self._setup.batch_sizes.get(backbone)
            zero_shot = open_checkpoint(suite.zero_shot_path(backbone))
            self._evaluators[backbone] = Evaluator(
                build_image_encoder(suite.backbones[backbone], zero_shot.shapes),
                zero_shot,
                mean=suite.backbones[backbone].mean,
                std=suite.backbones[backbone].std,
                device=self._device,
                precision=settings.precision,
                batch_size=batch_size if settings.batch_size == "auto" else settings.batch_size,
            )
        return self._evaluators[backbone]

    def _update(self, job: EvalJob) -> Mapping[str, Tensor]:
        if job.update_id is None:
            return {}
        if job.update_id not in self._updates:
            while len(self._updates) >= RESIDENT_UPDATES:
                del self._updates[next(iter(self._updates))]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "not writable": these arrays are shared, and only read
                self._updates[job.update_id] = {
                    name: torch.from_numpy(array).to(self._device)
                    for shard in self._fetch(job.update)
                    for name, array in shard.items()
                }
        return self._updates[job.update_id]

    @cache  # noqa: B019 - the worker lives as long as its process
    def _images(self, task: str, split: Any) -> ImageSplit:
        return cached_split(self._setup.suite, task, split)

    @cache  # noqa: B019
    def _head(self, backbone: str, task: str, embed_dim: int) -> tuple[Tensor, Tensor]:
        suite = self._setup.suite
        path, num_classes = suite.head_path(backbone, task), len(suite.task(task).classes)
        return load_head(path, num_classes=num_classes, embed_dim=embed_dim)


def _classes(classes: Tensor) -> bytes:
    """As `Predictions` holds them."""
    return classes.numpy().astype("<i4").tobytes()
