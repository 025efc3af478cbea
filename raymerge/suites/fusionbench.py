"""FusionBench's experts on Hugging Face: the same 20 names, image towers of transformers, to be converted.

Its EMNIST is letters, another task than the digits of the published collection.
"""

from pathlib import Path

from raymerge.data import dataset
from raymerge.suites import check_profile
from raymerge.suites.published import (
    Files,
    PublishedSuite,
    default_data,
    default_weights,
    openai_backbone,
    task_of,
    with_counts,
)
from raymerge.suites.tall_masks import TASKS

NAME = "fusionbench"
PROFILES = {"hub": "the models of tanganke/clip-vit-* on Hugging Face"}
BACKBONES = {"ViT-B-32": "base-patch32", "ViT-B-16": "base-patch16", "ViT-L-14": "large-patch14"}
SUFFIXES = {
    "Cars": "stanford-cars",
    "OxfordIIITPet": "oxford-iiit-pet",
    "Flowers102": "oxford_flowers102",
    "FashionMNIST": "fashion_mnist",
    "RenderedSST2": "rendered-sst2",
    "EMNIST": "emnist_letters",
}
"""Where the name of the model is not that of the task in lower case."""


def fusionbench(profile: str | None = None, weights: Path | None = None, data: Path | None = None) -> PublishedSuite:
    """The collection, whether its files are there or not.

    Raises:
        SuiteError: unknown profile.
    """
    profile = check_profile(NAME, profile or "hub", PROFILES)
    datasets = {task: dataset("EMNIST-letters" if task == "EMNIST" else task) for task in TASKS}
    suite = PublishedSuite(
        name=NAME,
        profile=profile,
        seed=0,
        root=weights or default_weights(NAME, profile),
        backbones={name: openai_backbone(name) for name in BACKBONES},
        tasks=tuple(task_of(datasets[task], task) for task in TASKS),
        data=data or default_data(),
        datasets=datasets,
        files=Files(),
        needs_conversion=True,
        option=NAME,
    )
    return with_counts(suite)


def expert_repo(backbone: str, task: str) -> str:
    """The repository on Hugging Face, which is also the folder below the weights."""
    return f"tanganke/clip-vit-{BACKBONES[backbone]}_{SUFFIXES.get(task, task.lower())}"


def zero_shot_repo(backbone: str) -> str:
    return f"openai/clip-vit-{BACKBONES[backbone]}"
