"""A miniature of the published collection for tests: three tasks, two backbones, everything in raw format."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from raymerge.data.splits import read_split
from raymerge.data.transforms import to_pixels
from raymerge.images import write_images
from raymerge.rehearsal.world import TINY, used_part, write_world
from raymerge.suite_file import load_suite_file
from raymerge.suites.published import PublishedSuite
from raymerge.suites.tall_masks import tall_masks
from raymerge.sweep_spec import SweepSpec

TASKS = ("EuroSAT", "MNIST", "FER2013")
BACKBONES = ("ViT-B-32", "ViT-L-14")


def small_world(folder: Path, tasks: Sequence[str] = TASKS, backbones: Sequence[str] = BACKBONES) -> PublishedSuite:
    """Write it to `folder`; images are not cached."""
    spec = SweepSpec.model_validate(
        {
            "name": "x",
            "suite": "tall-masks",
            "tasks": list(tasks),
            "backbones": list(backbones),
            "methods": ["zero-shot"],
        }
    )
    return load_suite_file(write_world(folder, used_part(tall_masks(), spec), TINY, lambda what, share: None))


def cache_images(suite: PublishedSuite) -> PublishedSuite:
    """Cache the images of every task, written apart from the package. Returns the suite with their numbers."""
    for task in suite.tasks:
        counts = {}
        for split in ("val", "test"):
            samples = read_split(suite.datasets[task.name], suite.data, split)
            pixels = np.stack([to_pixels(samples.image(i), suite.image_size) for i in range(len(samples))])
            write_images(suite.images_path(task.name, split), torch.from_numpy(pixels), torch.tensor(samples.labels))
            counts[split] = len(samples)
        (suite.image_cache(task.name) / "dataset.json").write_text(json.dumps({"images": counts}))
    return load_suite_file(suite.option)
