"""Which suite a name stands for: the demo, a published collection, a folder, or a YAML file of the user's own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from raymerge.data import ByHand, Dataset, Layout, Samples, dataset, datasets
from raymerge.data._readers import class_folders, image_folder
from raymerge.errors import DataError, SuiteError, did_you_mean
from raymerge.model_config import has_quick_gelu, image_size
from raymerge.spec_problems import Loc, problems_of
from raymerge.suite_spec import BackboneSection, SuiteSpec, TaskSection
from raymerge.suites import Backbone, Suite, Task, check_profile, demo_suite, open_suite
from raymerge.suites.published import SUFFIXES, Files, PublishedSuite, task_of, with_counts
from raymerge.yaml_file import FileKind, Origins, origin_of, read_yaml

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
        raise _problems([(loc, text) for loc, text in problems_of(error, SuiteSpec)], origins) from None
    file = Path(path)
    here = file.expanduser().resolve().parent
    usual = ((here / Path(spec.weights).expanduser()).resolve(), (here / Path(spec.data).expanduser()).resolve())
    weights, data = weights or usual[0], data or usual[1]
    backbones, sizes, made, problems = {}, {}, [], []
    for name, section in spec.backbones.items():
        try:
            backbones[name] = _backbone(name, section, here)
            sizes[name] = image_size(backbones[name])
        except SuiteError as error:
            problems.append((("backbones", name), str(error)))
    for number, section in enumerate(spec.tasks):
        try:
            made.append(_task_and_dataset(section, data))
        except (SuiteError, DataError) as error:
            problems.append((("tasks", number), str(error)))
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        problems.append(
            (("backbones",), f"the backbones take images of different sizes ({found}); make a suite file for each.")
        )
    if problems:
        raise _problems(problems, origins)
    suite = PublishedSuite(
        name=spec.name,
        profile="file",
        seed=0,
        root=weights,
        backbones=backbones,
        tasks=tuple(task for task, _ in made),
        data=data,
        datasets={task.name: declared for task, declared in made},
        any_size=spec.any_size,
        image_size=next(iter(sizes.values())),
        files=Files(spec.files.zero_shot, spec.files.expert, spec.files.head),
        option=str(file),
        usual=usual,
    )
    return with_counts(suite)


def _problems(problems: Sequence[tuple[Loc, str]], origins: Origins) -> SuiteError:
    """One line for each, in the order of the file."""
    placed = sorted((*origin_of(loc, origins), text) for loc, text in problems)
    return SuiteError("\n".join(f"{place}: {sentence}" for _, place, sentence in placed))


def _backbone(name: str, section: BackboneSection, here: Path) -> Backbone:
    pretrained = section.pretrained
    if pretrained and (os.sep in pretrained or Path(pretrained).suffix in SUFFIXES):  # a file, not a tag
        pretrained = str((here / Path(pretrained).expanduser()).resolve())
    quick_gelu = section.pretrained == "openai" if section.quick_gelu is None else section.quick_gelu
    backbone = Backbone(name, "", section.mean, section.std, section.model, quick_gelu, pretrained)
    if section.quick_gelu is False and has_quick_gelu(backbone):
        raise SuiteError(f"backbone '{name}': its model has QuickGELU, but 'quick_gelu' is false; leave it out.")
    return replace(backbone, quick_gelu=has_quick_gelu(backbone))


def _task_and_dataset(section: TaskSection, data: Path) -> tuple[Task, Dataset]:
    if section.folder is not None:
        declared = _own_dataset(section, data / section.folder)
    else:
        name = section.dataset or section.name
        if name not in datasets():
            raise SuiteError(
                f"task '{section.name}': no dataset '{name}' is known; give 'folder:' with images of your own, or a "
                f"known one. {did_you_mean(name, datasets())}"
            )
        declared = dataset(name)
    if section.classes is not None and declared.classes and len(section.classes) != len(declared.classes):
        raise SuiteError(
            f"task '{section.name}' names {len(section.classes)} classes, {declared.name} has "
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
        name=f"folder-{quote(section.folder.strip('/'), safe='')}",  # names a folder of the image cache
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
    """Reads images that lie as <folder>/<split>/<class>/<file>; every split has the classes of the test split."""

    folder: str
    num_classes: int

    def __call__(self, root: Path, split: str) -> Samples:
        expected = class_folders(root / self.folder / "test")
        if len(expected) != self.num_classes:
            raise DataError(
                f"{root / self.folder / 'test'}: holds {len(expected)} class folders, the suite has "
                f"{self.num_classes} classes."
            )
        return image_folder(root / self.folder / split, expected)
