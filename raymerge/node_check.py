"""What one machine has of what a sweep needs: files, memory, disks, versions. No ray here: it runs anywhere."""

import importlib.metadata
import os
import platform
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raymerge import preflight
from raymerge.backbones import build_image_encoder
from raymerge.checkpoints import PREFIX, check_layout, file_sha256, load_head, open_checkpoint
from raymerge.errors import DataError, RaymergeError
from raymerge.moment_files import check_moments
from raymerge.records import SPLITS
from raymerge.suites import Suite, cache_dir, moments_path, stats_command
from raymerge.suites.published import PublishedSuite

PACKAGES = ("raymerge", "ray", "torch", "torchvision", "open_clip_torch", "pyarrow", "numpy", "pillow")
SHM = Path("/dev/shm")  # where Ray keeps objects


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do about it."""

    level: Literal["problem", "warning"]
    what: str
    fix: str = ""
    """A command, or a sentence."""


@dataclass(frozen=True)
class NodeReport:
    """What a machine has, in bytes where it is a size."""

    host: str
    findings: tuple[Finding, ...]
    versions: Mapping[str, str]
    cache_free: int
    shm_size: int | None
    """None where there is no /dev/shm."""
    gpus: tuple[tuple[str, int], ...]
    """Name and memory of each."""
    images_missing: int
    """Bytes of the image caches that are still to be made."""


def inspect_node(
    suite: Suite, tasks: Mapping[str, Sequence[str]], moments: Path | None = None, *, full: bool = False
) -> NodeReport:
    """Look at this machine.

    Args:
        tasks: those a sweep uses, by backbone.
        moments: folder of input moments, where a method needs them.
        full: read every value of every checkpoint, instead of names and shapes.
    """
    findings: list[Finding] = []
    for backbone, names in tasks.items():
        findings += _backbone_findings(suite, backbone, names, full)
        if moments is not None:
            findings += _moment_findings(suite, backbone, names, moments)
    used = list(dict.fromkeys(name for names in tasks.values() for name in names))
    missing = [] if not suite.is_prepared else _without_images(suite, used, findings)
    findings += _cache_findings()
    return NodeReport(
        host=socket.gethostname(),
        findings=tuple(findings),
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        cache_free=shutil.disk_usage(_existing(cache_dir())).free,
        shm_size=shutil.disk_usage(SHM).total if SHM.is_dir() else None,
        gpus=tuple(
            (torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory)
            for i in range(torch.cuda.device_count())
        ),
        images_missing=sum(_image_bytes(suite, name) for name in missing),
    )


# --- checkpoints and heads -------------------------------------------------------------------------------------------


def _backbone_findings(suite: Suite, backbone: str, tasks: Sequence[str], full: bool) -> list[Finding]:
    if not suite.is_prepared:
        return []  # the sweep makes it first
    findings = _Findings(suite, backbone)
    zero_shot: Any = findings.tried("zero-shot model", "", lambda: _check_zero_shot(suite, backbone, full))
    for task in tasks:
        findings.tried("expert", task, lambda task=task: _check_expert(suite, backbone, task, full))
    if suite.backbones[backbone].model is not None:  # the activation is asserted
        findings.tried("activation", "", lambda: build_image_encoder(suite.backbones[backbone], {}))
    if zero_shot:
        embed_dim = zero_shot.shapes.get(f"{PREFIX}visual.proj", (0, 0))[1]
        for task in tasks:
            path, num_classes = suite.head_path(backbone, task), len(suite.task(task).classes)
            findings.tried(
                "head",
                task,
                lambda path=path, n=num_classes: path.is_file() and load_head(path, num_classes=n, embed_dim=embed_dim),
                path,
            )
    return findings.all()


def _check_zero_shot(suite: Suite, backbone: str, full: bool):
    if full:
        preflight.check_backbone(suite, backbone)
    return open_checkpoint(suite.zero_shot_path(backbone))


def _check_expert(suite: Suite, backbone: str, task: str, full: bool) -> None:
    if full:
        preflight.check_expert(suite, backbone, task)
    else:
        expert = open_checkpoint(suite.expert_path(backbone, task))
        if suite.zero_shot_path(backbone).is_file():
            check_layout(expert, open_checkpoint(suite.zero_shot_path(backbone)), task)


class _Findings:
    """Collects what is missing, to tell it in one sentence, and what is broken, one by one."""

    def __init__(self, suite: Suite, backbone: str):
        self._suite, self._backbone = suite, backbone
        self._missing: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        self._broken: list[Finding] = []

    def tried(self, kind: str, task: str, check: Callable[[], object], path: Path | None = None):
        """What `check` returns; None after noting why it failed."""
        if path is None and kind == "zero-shot model":
            path = self._suite.zero_shot_path(self._backbone)
        elif path is None and kind == "expert":
            path = self._suite.expert_path(self._backbone, task)
        if path is not None and not path.exists():
            self._missing[kind].append((task, path))
            return None
        try:
            return check()
        except RaymergeError as error:
            fix = self._fix(kind if kind == "activation" else "broken")
            self._broken.append(Finding("problem", str(error).rstrip("."), fix))
        except OSError as error:
            reason = error.strerror or str(error)
            self._broken.append(Finding("problem", f"{path}: cannot be read ({reason}).", f"ls -l '{path}'"))
        return None

    def all(self) -> list[Finding]:
        found = []
        for kind, entries in self._missing.items():
            tasks = ", ".join(task for task, _ in entries[:5]) + (", ..." if len(entries) > 5 else "")
            count = f"{len(entries)} {kind}s are missing ({tasks})" if entries[0][0] else f"the {kind} is missing"
            what = f"{self._backbone}: {count}; the first would be {entries[0][1]}"
            found.append(Finding("problem", what, self._fix(kind)))
        return found + self._broken

    def _fix(self, kind: str) -> str:
        if not isinstance(self._suite, PublishedSuite):
            return "Prepare the suite again."
        about = f"--suite {self._suite.argument} --backbone {self._backbone}"
        if kind == "activation":
            return "pip install --upgrade open_clip_torch"
        if kind == "head":
            return f"raymerge suite heads {about}"
        if kind == "broken":
            return f"raymerge suite verify {about}"
        if self._suite.needs_conversion:
            return f"raymerge suite fetch {about} && raymerge suite convert {about}"
        if self._suite.option.endswith((".yaml", ".yml")):
            return f"Put them there, or change 'weights' or 'files' in {self._suite.option}."
        if kind == "zero-shot model" and self._suite.profile == "paper-legacy":
            return f"raymerge suite convert {about}"  # the collection has none: it is made of open_clip's weights
        return f"raymerge suite fetch {about}"


def _moment_findings(suite: Suite, backbone: str, tasks: Sequence[str], moments: Path) -> list[Finding]:
    command = stats_command(suite, moments)
    missing = [task for task in tasks if not moments_path(moments, backbone, task).is_file()]
    if missing:
        what = f"{backbone}: input moments of {len(missing)} experts are missing under {moments}, first {missing[0]}"
        return [Finding("problem", what, command)]
    for task in tasks:
        expert = suite.expert_path(backbone, task)
        if expert.is_file():
            try:
                check_moments(
                    moments_path(moments, backbone, task),
                    expert_sha256=file_sha256(expert),
                    shapes=open_checkpoint(expert).shapes,
                    command=command,
                )
            except RaymergeError as error:
                return [Finding("problem", str(error).rstrip("."), command)]
    return []


# --- images ----------------------------------------------------------------------------------------------------------


def _without_images(suite: Suite, tasks: Sequence[str], findings: list[Finding]) -> list[str]:
    """The tasks whose images are not cached; appends what to do about it."""
    missing, raw, absent = [], [], []
    for task in tasks:
        if all(suite.images_path(task, split).is_file() for split in SPLITS):
            try:
                for split in SPLITS:
                    preflight.check_images(suite, task, split)
            except RaymergeError as error:
                findings.append(Finding("problem", str(error).rstrip(".")))  # the error names the command
            continue
        missing.append(task)
        if isinstance(suite, PublishedSuite):
            try:
                suite.datasets[task].find_layout(suite.data)
                raw.append(task)
            except DataError:
                absent.append(task)
    if raw and isinstance(suite, PublishedSuite):
        what = f"images of {len(raw)} tasks are not cached yet ({', '.join(raw)}); their raw files are there"
        findings.append(Finding("problem", what, _command("prepare", suite, raw, tasks)))
    if absent and isinstance(suite, PublishedSuite):
        what = f"{len(absent)} datasets are not under {suite.data} ({', '.join(absent)})"
        commands = [_command(verb, suite, absent, tasks) for verb in ("fetch", "prepare")]
        findings.append(Finding("problem", what, " && ".join(commands)))
    if missing and not isinstance(suite, PublishedSuite):
        findings.append(Finding("problem", f"images of {', '.join(missing)} are missing", "Prepare the suite again."))
    return missing


def _command(verb: str, suite: PublishedSuite, tasks: Sequence[str], used: Sequence[str]) -> str:
    """A command for some of the tasks in use; without names where it is all of the suite."""
    everything = list(tasks) == [task.name for task in suite.tasks] == list(used)
    names = "" if everything else f" {' '.join(tasks)}"
    return f"raymerge data {verb}{names} --suite {suite.data_argument}"


def _image_bytes(suite: Suite, task: str) -> int:
    size = suite.image_size if isinstance(suite, PublishedSuite) else 0
    return sum(suite.task(task).images.values()) * size * size * 3


# --- the machine -----------------------------------------------------------------------------------------------------


def _cache_findings() -> list[Finding]:
    folder = _existing(cache_dir())
    if os.access(folder, os.W_OK):
        return []
    return [Finding("problem", f"{folder}: cannot be written to", "Set RAYMERGE_HOME to a folder that can.")]


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
