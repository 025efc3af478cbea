"""Which suite a name stands for: the demo, a published collection, a folder, or a YAML file of the user's own."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from raymerge.data import ByHand, Dataset, Layout, Samples, dataset, datasets
from raymerge.data._readers import class_folders, image_folder
from raymerge.errors import DataError, SuiteError, did_you_mean
from raymerge.method_settings import Section
from raymerge.model_config import has_quick_gelu, image_size
from raymerge.spec_problems import problems_of
from raymerge.suites import CLIP_MEAN, CLIP_STD, Backbone, Suite, Task, check_profile, demo_suite, open_suite
from raymerge.suites.published import Files, PublishedSuite, task_of, with_counts
from raymerge.yaml_file import FileKind, origin_of, read_yaml

SUITES = ("demo", "tall-masks", "fusionbench")
SUITE_FILE = FileKind("suite file", SuiteError, "examples/my_suite.yaml")
DEFAULT_TEMPLATES = ("a photo of a {}.",)


def find_suite(
    name: str,
    profile: str | None = None,
    seed: int = 0,
    *,
    weights: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
) -> Suite:
    """The suite called `name`, whose files need not be there yet; or that of a suite file, or of a folder.

    Args:
        weights: folder of the checkpoints of a published collection; None: in the cache.
        data: folder of the raw datasets; None: in the cache.
    Raises:
        SuiteError: unknown suite or profile, a suite file is wrong, or the folder holds no suite.
    """
    folders = {key: _folder(value) for key, value in (("weights", weights), ("data", data))}
    if name.endswith((".yaml", ".yml")):
        suite = load_suite_file(name, folders["weights"], folders["data"])
        if profile is not None:
            check_profile(suite.name, profile, [suite.profile])
        return suite
    if name == "tall-masks":
        from raymerge.suites.tall_masks import tall_masks

        return tall_masks(profile, **folders)
    if name == "fusionbench":
        from raymerge.suites.fusionbench import fusionbench

        return fusionbench(profile, **folders)
    if given := [key for key, value in folders.items() if value is not None]:
        raise SuiteError(f"suite '{name}' has its {given[0]} in its own folder; leave '{given[0]}' out.")
    if name == "demo":
        return demo_suite(profile, seed)
    if os.sep in name or Path(name).is_dir():
        return open_suite(Path(name))
    raise SuiteError(f"unknown suite '{name}'. {did_you_mean(name, SUITES)} Or give a suite file or a suite's folder.")


def _folder(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path).expanduser().resolve()


# --- suite files -----------------------------------------------------------------------------------------------------


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(_listed(value)))]
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
        return self


def load_suite_file(
    path: str | os.PathLike[str], weights: Path | None = None, data: Path | None = None
) -> PublishedSuite:
    """The suite of a YAML file.

    Args:
        weights, data: folders to use instead of the file's.
    Raises:
        SuiteError: the file cannot be read or is wrong; one line for every problem, with file and line.
    """
    tree, origins = read_yaml(path, SUITE_FILE)
    try:
        spec = SuiteSpec.model_validate(tree)
    except ValidationError as error:
        problems = [(*origin_of(loc, origins), text) for loc, text in problems_of(error, SuiteSpec)]
        problems.sort(key=lambda problem: problem[0])
        raise SuiteError("\n".join(f"{place}: {sentence}" for _, place, sentence in problems)) from None
    file = Path(path)
    here = file.expanduser().resolve().parent
    backbones = {name: _backbone(name, section) for name, section in spec.backbones.items()}
    sizes = {name: image_size(backbone) for name, backbone in backbones.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise SuiteError(f"{file}: the backbones take images of different sizes ({found}); make a suite file for each.")
    usual_weights, usual_data = ((here / Path(name).expanduser()).resolve() for name in (spec.weights, spec.data))
    data = data or usual_data
    made = [_task_and_dataset(section, file, data) for section in spec.tasks]
    suite = PublishedSuite(
        name=spec.name,
        profile="file",
        seed=0,
        root=weights or usual_weights,
        backbones=backbones,
        tasks=tuple(task for task, _ in made),
        data=data,
        datasets={task.name: declared for task, declared in made},
        any_size=spec.any_size,
        image_size=next(iter(sizes.values())),
        files=Files(spec.files.zero_shot, spec.files.expert, spec.files.head),
        option=str(file),
        usual_folders=(usual_weights, usual_data),
    )
    return with_counts(suite)


def _backbone(name: str, section: BackboneSection) -> Backbone:
    quick_gelu = section.pretrained == "openai" if section.quick_gelu is None else section.quick_gelu
    backbone = Backbone(name, "", section.mean, section.std, section.model, quick_gelu, section.pretrained)
    if section.quick_gelu is False and has_quick_gelu(backbone):
        raise SuiteError(f"backbone '{name}': its model has QuickGELU, but 'quick_gelu' is false; leave it out.")
    return replace(backbone, quick_gelu=has_quick_gelu(backbone))


def _task_and_dataset(section: TaskSection, file: Path, data: Path) -> tuple[Task, Dataset]:
    if section.folder is not None:
        declared = _own_dataset(section, data / section.folder)
    else:
        name = section.dataset or section.name
        if name not in datasets():
            raise SuiteError(
                f"{file}: task '{section.name}': no dataset '{name}' is known. {did_you_mean(name, datasets())} "
                "Or give 'folder:' with images of your own."
            )
        declared = dataset(name)
    if section.classes is not None and declared.classes and len(section.classes) != len(declared.classes):
        raise SuiteError(
            f"{file}: task '{section.name}' names {len(section.classes)} classes, {declared.name} has "
            f"{len(declared.classes)}; name them in the order of its labels."
        )
    changes: dict[str, Any] = {"classes": section.classes, "templates": section.templates}
    return task_of(declared, section.name, **{k: v for k, v in changes.items() if v is not None}), declared


def _own_dataset(section: TaskSection, folder: Path) -> Dataset:
    assert section.folder is not None
    classes = section.classes
    if classes is None:  # known once the images are there
        classes = tuple(name.replace("_", " ") for name in class_folders(folder / "test")) if folder.is_dir() else ()
    return Dataset(
        name=f"folder-{section.folder.strip('/').replace('/', '-')}",
        classes=classes,
        templates=section.templates or DEFAULT_TEMPLATES,
        num_train=0,
        num_test=0,
        num_own_val=0 if (folder / "val").is_dir() else None,
        layouts=(Layout("reference", (f"{section.folder}/test",), OwnFolder(section.folder, len(classes))),),
        sources=(ByHand(f"Put images into {section.folder}/train/<class>/, {section.folder}/test/<class>/."),),
    )


@dataclass(frozen=True)
class OwnFolder:
    """Reads images that lie as <folder>/<split>/<class>/<file>."""

    folder: str
    num_classes: int

    def __call__(self, root: Path, split: str) -> Samples:
        folder = root / self.folder / split
        found = class_folders(folder)
        if len(found) != self.num_classes:
            raise DataError(f"{folder}: holds {len(found)} class folders, the suite has {self.num_classes} classes.")
        return image_folder(folder)
