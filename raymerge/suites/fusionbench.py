"""FusionBench's experts on Hugging Face: the same 20 names, image towers of transformers, to be converted.

Its EMNIST is letters, another task than the digits of the published collection.
"""

from dataclasses import dataclass
from pathlib import Path

from raymerge.data import dataset
from raymerge.suites import check_profile
from raymerge.suites.published import (
    Kind,
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
NOTE = "its EMNIST is letters (26 classes), another task than the digits of tall-masks"
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


SOURCE_FILES = ("model", "pytorch_model")
"""Names of the weights in a repository, without suffix."""


@dataclass(frozen=True)
class FusionBench(PublishedSuite):
    """A suite whose weights lie below its root as their repositories are called, with or without the owner."""

    needs_conversion: bool = True

    def source_names(self, kind: Kind, backbone: str, task: str | None = None) -> list[str]:
        if kind == "head":
            return self.names(kind, backbone, task)
        repo = zero_shot_repo(backbone) if task is None else expert_repo(backbone, task)
        folders = (repo, repo.partition("/")[2], repo.replace("/", "--"))
        return [f"{folder}/{name}" for folder in folders for name in SOURCE_FILES]


def fusionbench(profile: str | None = None, weights: Path | None = None, data: Path | None = None) -> PublishedSuite:
    """The collection, whether its files are there or not.

    Raises:
        SuiteError: unknown profile.
    """
    profile = check_profile(NAME, profile or "hub", PROFILES)
    datasets = {task: dataset("EMNIST-letters" if task == "EMNIST" else task) for task in TASKS}
    suite = FusionBench(
        name=NAME,
        profile=profile,
        seed=0,
        root=weights or default_weights(NAME, profile),
        backbones={name: openai_backbone(name) for name in BACKBONES},
        tasks=tuple(task_of(datasets[task], task) for task in TASKS),
        data=data or default_data(),
        datasets=datasets,
        option=NAME,
    )
    return with_counts(suite)


def expert_repo(backbone: str, task: str) -> str:
    """The repository on Hugging Face, which is also the folder below the weights."""
    return f"tanganke/clip-vit-{BACKBONES[backbone]}_{SUFFIXES.get(task, task.lower())}"


def zero_shot_repo(backbone: str) -> str:
    return f"openai/clip-vit-{BACKBONES[backbone]}"
