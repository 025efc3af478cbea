"""The published collection: 20 tasks, three of OpenAI's ViTs, as TALL-masks, TSV-M and Iso use it.

Two profiles, because one of its experts was replaced: DTD's was first trained on its own test images.
"""

from dataclasses import replace
from pathlib import Path

from raymerge.data import Dataset, dataset
from raymerge.data.fer2013 import PUBLISHED_CLASSES
from raymerge.suites import Task, check_profile
from raymerge.suites.published import (
    PublishedSuite,
    default_data,
    default_weights,
    openai_backbone,
    task_of,
    with_counts,
)

NAME = "tall-masks"
PROFILES = {
    "paper-legacy": "the older weights (Google Drive), which the papers' figures come from; DTD's validation images "
    "are drawn from all of its images, as published",
    "corrected": "the newer weights (Hugging Face), with DTD trained again on its official training images",
}
BACKBONES = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
TASKS = (
    *("Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SVHN", "SUN397"),
    *("STL10", "OxfordIIITPet", "Flowers102", "CIFAR100", "PCAM", "FER2013"),
    *("CIFAR10", "Food101", "FashionMNIST", "RenderedSST2", "EMNIST", "KMNIST"),
)
"""In the canonical order: the first 8, 14 and all 20 are the three benchmarks."""


def tall_masks(profile: str | None = None, weights: Path | None = None, data: Path | None = None) -> PublishedSuite:
    """The collection, whether its files are there or not.

    Raises:
        SuiteError: unknown profile.
    """
    profile = check_profile(NAME, profile or "paper-legacy", PROFILES)
    datasets = {task: _dataset(task, profile) for task in TASKS}
    suite = PublishedSuite(
        name=NAME,
        profile=profile,
        seed=0,
        root=weights or default_weights(NAME, profile),
        backbones={name: openai_backbone(name) for name in BACKBONES},
        tasks=tuple(_task(task, datasets[task]) for task in TASKS),
        data=data or default_data(),
        datasets=datasets,
        option=NAME,
    )
    return with_counts(suite)


def _dataset(task: str, profile: str) -> Dataset:
    return dataset("DTD-leaky" if (task, profile) == ("DTD", "paper-legacy") else task)


def _task(name: str, declared: Dataset) -> Task:
    task = task_of(declared, name)
    # the published FER2013 experts were trained with a head whose rows are those of another order of classes
    return replace(task, classes=PUBLISHED_CLASSES) if name == "FER2013" else task
