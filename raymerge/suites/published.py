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
from typing import Any, Literal

from raymerge.data import Dataset
from raymerge.records import SPLITS, Split, content_id
from raymerge.suites import Backbone, Suite, Task, cache_dir

SUBFOLDERS = ("", "single_task", "checkpoints", "models/checkpoints", "ckpts", "models/ckpts")
"""Where the backbones' folders lie in the collections that are around."""
SUFFIXES = (".safetensors", ".pt", ".bin")
HEAD_SUFFIXES = (".pt", ".safetensors")
ZERO_SHOT_TASK = "MNIST"
"""Of its twenty equal zero-shot files, the published code reads this task's."""
SAME_TIME_S = 2
"""Difference of two times of modification that are meant to be equal; file systems round them."""

Kind = Literal["zero-shot", "expert", "head"]
Item = tuple[Kind, str | None]
"""One file of a backbone: of a task, or None for the zero-shot model."""


def items_of(tasks: Sequence[str]) -> list[Item]:
    """The zero-shot model, then the expert and the head of every task."""
    items: list[Item] = [("zero-shot", None)]
    for task in tasks:
        items.append(("expert", task))
        items.append(("head", task))
    return items


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

    def names(self, kind: Kind, backbone: str, tasks: Sequence[str]) -> list[str]:
        """What a file may be called, the best first. A zero-shot model may lie with any of its tasks."""
        patterns = {"zero-shot": self.zero_shot, "expert": self.expert, "head": self.head}[kind]
        names = [pattern.format(backbone=backbone, task=task) for pattern in patterns for task in tasks]
        return list(dict.fromkeys(names))


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
    """Whether the weights are of another format, so that only converted ones are read."""
    option: str = ""
    """What `--suite` calls it."""
    usual: tuple[Path, Path] | None = None
    """Where weights and data are unless options say otherwise; None: in the cache."""

    @property
    def is_prepared(self) -> bool:
        return True  # there is nothing to make: what is missing has to be fetched, and its check says so

    @property
    def argument(self) -> str:
        usual = self.usual[0] if self.usual else default_weights(self.name, self.profile)
        return self.data_argument + ("" if self.root == usual else f" --weights {shlex.quote(str(self.root))}")

    @property
    def data_argument(self) -> str:
        """As `argument`, for commands that do not look at weights."""
        usual = self.usual[1] if self.usual else default_data()
        is_file = self.option.endswith((".yaml", ".yml"))  # which has one profile
        name = shlex.quote(self.option) + ("" if is_file else f" --profile {self.profile}")
        return name + ("" if self.data == usual else f" --data {shlex.quote(str(self.data))}")

    @property
    def converted(self) -> Path:
        """Folder of the converted weights, under the names of `files`."""
        return cache_dir() / "converted" / f"{self.name}-{self.profile}-{_hash(str(self.root))}"

    @property
    def images_folder(self) -> Path:
        """Folder of the cached images of all datasets that lie in `data`, whichever suite uses them."""
        return cache_dir() / "images" / f"{self.data.name}-{_hash(str(self.data))}"

    # --- weights ---

    def zero_shot_path(self, backbone: str) -> Path:
        return self._chosen("zero-shot", backbone) or self.expected_path("zero-shot", backbone)

    def expert_path(self, backbone: str, task: str) -> Path:
        return self._chosen("expert", backbone, task) or self.expected_path("expert", backbone, task)

    def head_path(self, backbone: str, task: str) -> Path:
        """The published head, or the place of the one that is built from prompts, whether it is there yet or not."""
        return self._chosen("head", backbone, task) or self.built_head_path(backbone, task)

    def expected_path(self, kind: Kind, backbone: str, task: str | None = None) -> Path:
        """Where a file that is not there is looked for first."""
        name = self.names(kind, backbone, task)[0]
        is_converted = self.needs_conversion and kind != "head"
        return self.converted / f"{name}.safetensors" if is_converted else self.root / f"{name}.pt"

    def names(self, kind: Kind, backbone: str, task: str | None = None) -> list[str]:
        """What a file may be called below the weights, less its suffix, the best first."""
        return self.files.names(kind, backbone, [task] if task else [known.name for known in self.tasks])

    def source_names(self, kind: Kind, backbone: str, task: str | None = None) -> list[str]:
        """What a file may be called as it was fetched, in whatever format it is."""
        return self.names(kind, backbone, task)

    def source(self, kind: Kind, backbone: str, task: str | None = None) -> Path | None:
        """A file as it was fetched, in whatever format it is."""
        suffixes = HEAD_SUFFIXES if kind == "head" else SUFFIXES
        folders = [self.root / folder for folder in SUBFOLDERS]
        return first_existing(self.source_names(kind, backbone, task), folders, suffixes)

    def converted_file(self, kind: Kind, backbone: str, task: str | None = None) -> Path | None:
        """A file that `raymerge suite convert` wrote, be it of this source or of an older one."""
        return first_existing(self.names(kind, backbone, task), [self.converted], (".safetensors",))

    def _chosen(self, kind: Kind, backbone: str, task: str | None = None) -> Path | None:
        """The converted file, unless another source has come since; else the source, if it can be read."""
        converted, source = self.converted_file(kind, backbone, task), self.source(kind, backbone, task)
        if self.needs_conversion and kind != "head":
            return converted
        if converted and (source is None or has_time_of(converted, source)):
            return converted
        return source

    def built_head_path(self, backbone: str, task: str) -> Path:
        """Where the head that is built from the prompts of a task is kept: by what it is built from."""
        encoder, declared = self.backbones[backbone], self.task(task)
        content = [encoder.model, encoder.pretrained, encoder.quick_gelu, declared.classes, declared.templates]
        if encoder.pretrained and (path := Path(encoder.pretrained)).is_file():
            content += [path.stat().st_size, path.stat().st_mtime_ns]
        return cache_dir() / "heads" / backbone / f"{task}-{content_id(content)}.pt"

    # --- images ---

    def has_declared_sizes(self, task: str) -> bool:
        """Whether the splits of a task have to have the sizes that are known of its dataset."""
        return not self.any_size and self.datasets[task].num_train > 0

    def files_remedy(self, backbone: str) -> str:
        command = f"raymerge suite verify --suite {self.argument} --backbone {backbone}"
        return f"'{command}' lists what is missing, and how to get it."

    def images_remedy(self, task: str) -> str:
        return f"Make it with: {self.prepare_command(task)}"

    def prepare_command(self, task: str) -> str:
        return f"raymerge data prepare {task} --suite {self.data_argument}"

    def fetch_command(self, task: str) -> str:
        return f"raymerge data fetch {task} --suite {self.data_argument}"

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


def first_existing(names: Sequence[str], folders: Sequence[Path], suffixes: Sequence[str]) -> Path | None:
    """The file with the first of some names that exists in the first of some folders."""
    for name in names:
        for folder in folders:
            for suffix in suffixes:
                if found := existing_file(folder, name + suffix):
                    return found
    return None


def existing_file(folder: Path, relative: str) -> Path | None:
    """The file at a relative path; where it is not found as it is, its folders and name are compared without case."""
    path = folder / relative
    if path.is_file():
        return path
    candidates = [folder]
    for part in Path(relative).parts:
        candidates = [entry for candidate in candidates for entry in _alike(candidate, part)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def existing_folder(folder: Path, name: str) -> Path | None:
    """The folder of a name in a folder, compared without case where it is not found as it is."""
    return next((found for found in _alike(folder, name) if found.is_dir()), None)


def _alike(folder: Path, name: str) -> list[Path]:
    try:
        found = [entry for entry in folder.iterdir() if entry.name.lower() == name.lower()]
    except OSError:
        return []
    return sorted(found, key=lambda entry: (entry.name != name, entry.name))


def has_time_of(converted: Path, source: Path) -> bool:
    """Whether a converted file was made of this source, whose time of modification it was given."""
    return abs(converted.stat().st_mtime - source.stat().st_mtime) < SAME_TIME_S


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
