"""Suites of files that others wrote: published checkpoints, or a user's own, with datasets as they were downloaded.

Weights are looked for in the published layout, whatever folder it was downloaded into:

    <weights>/<backbone>/<Task>Val/nonlinear_finetuned.{safetensors,pt}
    <weights>/<backbone>/<Task>Val/nonlinear_zeroshot.{safetensors,pt}    that of MNIST, or any
    <weights>/<backbone>/head_<Task>Val.pt                                or a head built from prompts, in the cache

What `raymerge suite convert` wrote comes first, in the cache. Images are those that `raymerge data prepare` cached.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raymerge.data import Dataset
from raymerge.records import SPLITS, Split, content_id
from raymerge.suites import Backbone, Suite, Task, cache_dir

SUBFOLDERS = ("", "single_task", "checkpoints", "models/checkpoints", "ckpts", "models/ckpts")
"""Where the backbones' folders lie in the collections that are around."""
SUFFIXES = (".safetensors", ".pt")
ZERO_SHOT_TASK = "MNIST"
"""Of its twenty equal zero-shot files, the published code reads this task's."""


@dataclass(frozen=True)
class Files:
    """Names of the files below the weights, without suffix; `{backbone}` and `{task}` stand for the names."""

    zero_shot: tuple[str, ...] = (
        f"{{backbone}}/{ZERO_SHOT_TASK}Val/nonlinear_zeroshot",
        "{backbone}/{task}Val/nonlinear_zeroshot",
        "{backbone}/zeroshot",
    )
    expert: tuple[str, ...] = ("{backbone}/{task}Val/nonlinear_finetuned",)
    head: tuple[str, ...] = ("{backbone}/head_{task}Val",)


@dataclass(frozen=True)
class PublishedSuite(Suite):
    """`root` is the folder of the weights."""

    data: Path = Path()
    """The folder of the raw datasets."""
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    """By task."""
    any_size: bool = False
    """Whether datasets may have other sizes than they are known to have."""
    image_size: int = 224
    """Height and width of the cached images, the same for every backbone."""
    files: Files = Files()
    needs_conversion: bool = False
    """Whether the weights are of another format, so that only converted files are read."""
    option: str = ""
    """What `--suite` calls it."""
    usual_folders: tuple[Path, Path] | None = None
    """Of weights and data, unless options say otherwise; None: in the cache."""

    @property
    def is_prepared(self) -> bool:
        return True  # there is nothing to make: what is missing has to be fetched, and its check says so

    @property
    def argument(self) -> str:
        usual = self.usual_folders[0] if self.usual_folders else default_weights(self.name, self.profile)
        return self.data_argument + ("" if self.root == usual else f" --weights {shlex.quote(str(self.root))}")

    @property
    def data_argument(self) -> str:
        """As `argument`, for commands that do not look at weights."""
        name = shlex.quote(self.option)
        if not self.option.endswith((".yaml", ".yml")):
            name += f" --profile {self.profile}"
        usual = self.usual_folders[1] if self.usual_folders else default_data()
        return name + ("" if self.data == usual else f" --data {shlex.quote(str(self.data))}")

    def images_remedy(self, task: str) -> str:
        return f"Make it with: {self.prepare_command(task)}"

    def prepare_command(self, task: str) -> str:
        return f"raymerge data prepare {task} --suite {self.data_argument}"

    def fetch_command(self, task: str) -> str:
        return f"raymerge data fetch {task} --suite {self.data_argument}"

    @property
    def converted(self) -> Path:
        """Folder of the converted weights, in the published layout."""
        return cache_dir() / "converted" / f"{self.name}-{self.profile}-{_hash(str(self.root))}"

    @property
    def images_folder(self) -> Path:
        """Folder of the cached images of all datasets that lie in `data`, whichever suite uses them."""
        return cache_dir() / "images" / f"{self.data.name}-{_hash(str(self.data))}"

    def zero_shot_path(self, backbone: str) -> Path:
        names = [name.format(backbone=backbone, task=task.name) for name in self.files.zero_shot for task in self.tasks]
        return self.find(list(dict.fromkeys(names)))

    def expert_path(self, backbone: str, task: str) -> Path:
        return self.find([name.format(backbone=backbone, task=task) for name in self.files.expert])

    def head_path(self, backbone: str, task: str) -> Path:
        """The published head, or the place of the one that is built from prompts, whether it is there yet or not."""
        names = [name.format(backbone=backbone, task=task) for name in self.files.head]
        published = self._existing(names, (".pt", ".safetensors"))
        return published or self.built_head_path(backbone, task)

    def built_head_path(self, backbone: str, task: str) -> Path:
        """Where the head that is built from the prompts of a task is kept."""
        encoder, declared = self.backbones[backbone], self.task(task)
        content = [encoder.model, encoder.pretrained, encoder.quick_gelu, declared.classes, declared.templates]
        return cache_dir() / "heads" / backbone / f"{task}-{content_id(content)}.pt"

    def has_declared_sizes(self, task: str) -> bool:
        """Whether the splits of a task have to have the sizes that are known of its dataset."""
        return not self.any_size and self.datasets[task].num_train > 0

    def image_cache(self, task: str) -> Path:
        """Folder of a task's cached images."""
        return self.images_folder / self.datasets[task].name / f"{self.image_size}px"

    def images_path(self, task: str, split: Split) -> Path:
        return self.image_cache(task) / f"{split}.arrow"

    def file_label(self, path: Path) -> str:
        for folder, label in ((self.converted, "converted"), (self.root, "weights"), (cache_dir() / "heads", "heads")):
            if path.is_relative_to(folder):
                return f"{label}/{path.relative_to(folder)}"
        return path.name

    def find(self, names: Sequence[str]) -> Path:
        """The file with the first of some names, less suffix, that exists; else where it is expected."""
        return self._existing(names, SUFFIXES) or (
            self.converted / f"{names[0]}.safetensors" if self.needs_conversion else self.root / f"{names[0]}.pt"
        )

    def _existing(self, names: Sequence[str], suffixes: Sequence[str]) -> Path | None:
        folders = [self.converted]
        if not self.needs_conversion:
            folders += [self.root / sub for sub in SUBFOLDERS]
        for name in names:
            for folder in folders:
                for suffix in suffixes:
                    if found := existing_path(folder, name + suffix):
                        return found
        return None


def with_counts(suite: PublishedSuite) -> PublishedSuite:
    """The suite with the numbers of images that are cached, where they are not known beforehand."""
    tasks = []
    for task in suite.tasks:
        if suite.has_declared_sizes(task.name):
            tasks.append(task)
            continue
        try:
            counted = json.loads((suite.image_cache(task.name) / "dataset.json").read_text())["images"]
            images: Mapping[Split, int] = {split: int(counted[split]) for split in SPLITS}
        except (OSError, ValueError, KeyError, TypeError):
            images = task.images
        tasks.append(replace(task, images=images))
    return replace(suite, tasks=tuple(tasks))


def task_of(dataset: Dataset, name: str | None = None, **changes: Any) -> Task:
    """A task with the classes, prompts and sizes of a dataset."""
    images: Mapping[Split, int] = {"val": dataset.num_val, "test": dataset.num_test}
    return replace(Task(name or dataset.name, dataset.classes, images, dataset.templates), **changes)


def openai_backbone(name: str) -> Backbone:
    """One of OpenAI's image encoders, by its name in open_clip."""
    return Backbone(name=name, zero_shot="", model=name, quick_gelu=True, pretrained="openai")


def default_weights(name: str, profile: str) -> Path:
    return cache_dir() / "weights" / f"{name}-{profile}"


def default_data() -> Path:
    return cache_dir() / "data"


def existing_path(folder: Path, relative: str) -> Path | None:
    """The file at a relative path, its folders and name compared without case where they are not found as they are."""
    path = folder / relative
    if path.exists():
        return path
    path = folder
    for part in Path(relative).parts:
        exact = path / part
        if not exact.exists():
            try:
                alike = sorted(entry for entry in path.iterdir() if entry.name.lower() == part.lower())
            except OSError:
                return None
            if not alike:
                return None
            exact = alike[0]
        path = exact
    return path


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
