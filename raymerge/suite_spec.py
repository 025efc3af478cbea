"""What a suite file may say: the keys of its YAML, their types and defaults."""

import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from raymerge.method_settings import Section
from raymerge.suites import CLIP_MEAN, CLIP_STD
from raymerge.suites.published import SUFFIXES, Files


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _without_suffix(pattern: Any) -> Any:
    """A name of files, with only the two placeholders, and inside the folder of the weights."""
    if not isinstance(pattern, str):
        return pattern
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(pattern)]
    except ValueError as error:
        raise ValueError(f"{pattern!r} is no name of files ({error})") from None
    for name, spec, conversion in fields:
        if name is not None and (name not in ("backbone", "task") or spec or conversion):
            raise ValueError(f"{pattern!r} has a placeholder {{{name}}}, expected {{backbone}} or {{task}}")
    if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise ValueError(f"{pattern!r} should be a path below the weights")
    return next((pattern.removesuffix(suffix) for suffix in SUFFIXES if pattern.endswith(suffix)), pattern)


Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
Pattern = Annotated[str, BeforeValidator(_without_suffix)]
Patterns = Annotated[
    tuple[Pattern, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: tuple(listed) if isinstance(listed := _listed(value), list) else value),
]
Channels = Annotated[
    tuple[float, float, float], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]


class FilesSection(Section):
    """Names of the files below the weights, without suffix; `{backbone}` and `{task}` stand for the names."""

    zero_shot: Patterns = Field(default=Files.zero_shot, description="Zero-shot checkpoint; the first one found.")
    expert: Patterns = Field(default=Files.expert, description="Expert of a task; the first one found.")
    head: Patterns = Field(default=Files.head, description="Head of a task; the first one found.")


class BackboneSection(Section):
    """An image encoder that open_clip can build."""

    model: str | dict[str, Any] = Field(
        description="Name of an open_clip model, or a configuration as its files have it."
    )
    pretrained: str | None = Field(
        default=None, description="open_clip's tag, or a file, of the weights whose text tower builds missing heads."
    )
    quick_gelu: bool | None = Field(
        default=None, description="Whether blocks have QuickGELU; null: if pretrained is openai, or the model says so."
    )
    mean: Channels = Field(default=CLIP_MEAN, description="Of images in [0, 1], per channel.")
    std: Channels = Field(default=CLIP_STD, description="Of images in [0, 1], per channel.")


class TaskSection(Section):
    """A task: a known dataset, or a folder of images."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the task, which names its files.")
    dataset: str | None = Field(default=None, description="Known dataset; null: that of the task's name.")
    folder: str | None = Field(
        default=None, description="Images as {train,val,test}/<class>/*.jpg below the data; val may be left out."
    )
    classes: Names | None = Field(default=None, description="Class names for prompts, in the order of the labels.")
    templates: Names | None = Field(default=None, description="Prompts with one {} for the class.")

    @model_validator(mode="after")
    def _check(self) -> "TaskSection":
        if self.folder and self.dataset:
            raise ValueError("'dataset' and 'folder' exclude each other")
        for template in self.templates or ():
            if template.count("{}") != 1:
                raise ValueError(f"the template {template!r} should hold {{}} once")
        return self


def _named_task(value: Any) -> Any:
    return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


class SuiteSpec(Section):
    """Backbones and tasks of one's own, in a YAML file. Paths are relative to the file."""

    suite_version: Literal[1] = Field(default=1, description="Version of this format.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the suite, for results.")
    weights: str = Field(default="weights", min_length=1, description="Folder of the checkpoints and heads.")
    data: str = Field(default="data", min_length=1, description="Folder of the raw datasets.")
    any_size: bool = Field(default=False, description="Whether datasets may differ in size from what is known of them.")
    files: FilesSection = Field(default=FilesSection(), description="Names of the files below the weights.")
    backbones: dict[str, BackboneSection] = Field(min_length=1, description="Image encoders by name.")
    tasks: Annotated[tuple[TaskSection, ...], BeforeValidator(lambda v: tuple(_named_task(v) or ()))] = Field(
        min_length=1, description="Tasks in order: names of known datasets, or mappings."
    )

    @model_validator(mode="after")
    def _check(self) -> "SuiteSpec":
        names = [task.name for task in self.tasks]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"task '{min(twice)}' stands there twice")
        for kind, patterns in (("expert", self.files.expert), ("head", self.files.head)):
            if len(names) > 1 and (same := [pattern for pattern in patterns if "{task}" not in pattern]):
                raise ValueError(f"'files.{kind}' {same[0]!r} is one file for every task; put {{task}} into it")
        patterns = (*self.files.zero_shot, *self.files.expert, *self.files.head)
        if len(self.backbones) > 1 and (same := [pattern for pattern in patterns if "{backbone}" not in pattern]):
            raise ValueError(f"'files' has {same[0]!r}, one file for every backbone; put {{backbone}} into it")
        return self
