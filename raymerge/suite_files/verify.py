"""Checking every file of a suite before anything is built on it: what is present, missing or broken."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from raymerge.backbones import encoder_shapes
from raymerge.checkpoints import (
    Checkpoint,
    check_checkpoint,
    check_layout,
    check_values,
    file_sha256,
    load_head,
    read_head,
)
from raymerge.errors import CheckpointError, RaymergeError
from raymerge.model_config import embed_dim
from raymerge.suite_files.converted_file import is_made_of, metadata_of, sources_in
from raymerge.suite_files.hash_list import FileHash, HashList, file_key
from raymerge.suite_files.weight_formats import VISUAL, recipe_of
from raymerge.suites import Suite, cache_dir
from raymerge.suites.published import SUBFOLDERS, Kind, PublishedSuite, existing_folder, items_of

MAX_THREADS = 4
"""Reading is limited by the disk, and memory by the largest tensors that are in use together."""

Status = Literal["present", "missing", "broken"]
Origin = Literal["source", "converted", "built"]
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Finding:
    """What is known of one file of a suite."""

    kind: Kind
    backbone: str
    task: str | None
    path: Path
    status: Status = "present"
    origin: Origin = "source"
    """Whether it is read as it was fetched, converted, or built by raymerge from prompts."""
    fetched: FileHash | None = None
    """Of the file as it was fetched; None: not there, not asked for, or not known."""
    problem: str = ""
    note: str = ""

    @property
    def key(self) -> str:
        return file_key(self.kind, self.backbone, self.task)


def verify_suite(
    suite: Suite,
    tasks: Mapping[str, Sequence[str]],
    *,
    quick: bool = False,
    known: HashList | None = None,
    report: Report = lambda what, share: None,
) -> list[Finding]:
    """Check zero-shot models, experts and heads: the file that is read, and that it is of what was fetched.

    Args:
        tasks: by backbone.
        quick: only what can be told without reading values: names, shapes, dtypes and sizes.
        known: hashes that files should have; those it does not list are not compared.
    """
    findings: list[Finding] = []
    num = sum(1 + 2 * len(names) for names in tasks.values())
    pool = ThreadPoolExecutor(max(1, min(MAX_THREADS, os.cpu_count() or 1)))
    try:
        for backbone, names in tasks.items():
            verifier = _Verifier(suite, backbone, quick, known)
            findings.append(verifier.zero_shot_finding)
            futures = [pool.submit(verifier.expert, name) for name in names]
            futures += [pool.submit(verifier.head, name) for name in names]
            for future in futures:
                findings.append(future.result())
                report(findings[-1].key, len(findings) / num)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return findings


class _Verifier:
    """Checks the files of one backbone; the zero-shot model first, because experts are compared with it."""

    def __init__(self, suite: Suite, backbone: str, quick: bool, known: HashList | None):
        self._suite, self._backbone, self._quick, self._known = suite, backbone, quick, known
        self._encoder = suite.backbones[backbone]
        self.zero_shot: Checkpoint | None = None
        self.zero_shot_finding = self._finding("zero-shot", None, suite.zero_shot_path(backbone), self._check_zero_shot)
        if self.zero_shot_finding.status == "present":
            self.zero_shot = Checkpoint(self.zero_shot_finding.path)

    def expert(self, task: str) -> Finding:
        return self._finding("expert", task, self._suite.expert_path(self._backbone, task), self._check_expert)

    def head(self, task: str) -> Finding:
        return self._finding("head", task, self._suite.head_path(self._backbone, task), self._check_head)

    def _finding(self, kind: Kind, task: str | None, path: Path, check: Callable[[Path, str | None], None]) -> Finding:
        finding = Finding(kind, self._backbone, task, path, origin=self._origin(path))
        if not path.is_file():
            return replace(finding, status="missing", problem=self._how_to_get(finding))
        try:
            check(path, task)
            finding = self._compare_with_source(finding)
        except RaymergeError as error:
            return replace(finding, status="broken", problem=str(error))
        except OSError as error:
            problem = f"{path}: cannot be read ({error.strerror or error})."
            return replace(finding, status="broken", problem=problem)
        return finding

    # --- content ---

    def _check_zero_shot(self, path: Path, task: str | None) -> None:
        self._check_format(Checkpoint(path), f"zero-shot of {self._backbone}")

    def _check_expert(self, path: Path, task: str | None) -> None:
        expert, zero_shot = Checkpoint(path), self.zero_shot  # which is closed again, and its pages with it
        if zero_shot is None:
            self._check_format(expert, f"expert '{task}'")
            return
        if self._quick:
            check_layout(expert, zero_shot, str(task))
            self._check_dtypes(expert, f"expert '{task}'")
            return
        check_checkpoint(expert, zero_shot, str(task))
        check_still(expert, zero_shot, str(task))

    def _check_format(self, checkpoint: Checkpoint, owner: str) -> None:
        """Names and shapes of a checkpoint by itself, and its values."""
        recipe = recipe_of(checkpoint)
        if recipe.format != "published":
            raise CheckpointError(
                f"{checkpoint.path}: {owner}: has the names of {recipe.format}, which are not read; "
                f"'raymerge suite convert --suite {self._suite.argument}' makes a file that is."
            )
        if self._encoder.model is not None:
            expected, found = encoder_shapes(self._encoder), checkpoint.shapes
            for name in sorted(expected.keys() | {name for name in found if name.startswith(VISUAL)}):
                if found.get(name) != expected.get(name):
                    raise CheckpointError(
                        f"{checkpoint.path}: {owner}: '{name}' is {found.get(name, 'missing')}, {self._backbone} has "
                        f"{expected.get(name, 'no such tensor')}. Is it of another backbone?"
                    )
        if self._quick:
            self._check_dtypes(checkpoint, owner)
        else:
            for name in checkpoint.names:
                check_values(checkpoint, name, owner)

    def _check_dtypes(self, checkpoint: Checkpoint, owner: str) -> None:
        for name in checkpoint.names:
            dtype = checkpoint.dtype(name)
            if not dtype.is_floating_point or dtype.itemsize < 2:
                raise CheckpointError(f"{checkpoint.path}: {owner}: '{name}' has dtype {dtype}, expected float32.")

    def _check_head(self, path: Path, task: str | None) -> None:
        num_classes, dim = len(self._suite.task(str(task)).classes), 0
        if self._encoder.model is not None:
            dim = embed_dim(self._encoder)
        elif self.zero_shot is not None:
            dim = self.zero_shot.shapes[VISUAL + "proj"][1]
        found = read_head(path)[0].shape
        load_head(path, num_classes=num_classes or found[0], embed_dim=dim or found[-1])

    # --- where it comes from ---

    def _origin(self, path: Path) -> Origin:
        if not isinstance(self._suite, PublishedSuite):
            return "source"
        if path.is_relative_to(self._suite.converted):
            return "converted"
        return "built" if path.is_relative_to(cache_dir() / "heads") else "source"

    def _compare_with_source(self, finding: Finding) -> Finding:
        """Whether a converted file is of its source as it is now, and the source what it should be."""
        source = finding.path
        if isinstance(self._suite, PublishedSuite):
            convert = f"'raymerge suite convert --suite {self._suite.argument}'"
            converted = self._suite.converted_file(finding.kind, finding.backbone, finding.task)
            source = self._suite.source(finding.kind, finding.backbone, finding.task)
            if finding.origin == "converted":
                metadata = metadata_of(finding.path)
                if source is not None and not self._is_of(metadata, source):
                    raise CheckpointError(
                        f"{finding.path}: was converted from another file than {source} is now; {convert} repeats it."
                    )
                if source is None:
                    recorded = sources_in(metadata)
                    fetched = FileHash(recorded[0]["bytes"], recorded[0]["sha256"]) if recorded else None
                    finding = replace(finding, fetched=fetched)
                    self._compare_with_known(finding, f"{finding.path}, by what it was converted from")
                    return finding
            elif converted is not None:
                note = f"{converted} is of an older file and is not read; {convert} repeats it."
                finding = replace(finding, note=note)
        if source is None or finding.origin == "built":
            return finding
        if self._quick:
            known = (self._known or {}).get(finding.key)
            size = source.stat().st_size
            if known is not None and known.num_bytes != size:
                raise CheckpointError(f"{source}: has {size:,} bytes, {self._label} says {known.num_bytes:,}.")
            return finding
        finding = replace(finding, fetched=FileHash(source.stat().st_size, file_sha256(source)))
        self._compare_with_known(finding, str(source))
        return finding

    def _is_of(self, metadata: Mapping[str, str], source: Path) -> bool:
        sources = [source]
        if len(sources_in(metadata)) > 1:  # completed with tensors of the zero-shot model
            sources.append(self._suite.zero_shot_path(self._backbone))
        return is_made_of(metadata, sources, full=not self._quick)

    def _compare_with_known(self, finding: Finding, name: str) -> None:
        known, found = (self._known or {}).get(finding.key), finding.fetched
        if known is not None and found is not None and known.sha256 != found.sha256:
            raise CheckpointError(
                f"{name}: has SHA-256 {found.sha256[:12]}... ({found.num_bytes:,} bytes), {self._label} says "
                f"{known.sha256[:12]}... ({known.num_bytes:,} bytes). Is it another version? Fetch it again."
            )

    @property
    def _label(self) -> str:
        return self._known.label if self._known is not None and self._known.label else "the list"

    def _how_to_get(self, finding: Finding) -> str:
        suite, path = self._suite, finding.path
        if not isinstance(suite, PublishedSuite):
            return f"{path}: no such file."
        arguments = f"--suite {suite.argument} --backbone {finding.backbone}"
        arguments += f" --tasks {finding.task}" if finding.task else ""
        if finding.kind == "head":
            return f"{path}: no such head; 'raymerge suite heads {arguments}' builds it."
        if suite.source(finding.kind, finding.backbone, finding.task):
            return f"{path}: was fetched, but not converted; 'raymerge suite convert {arguments}' does."
        if finding.kind == "zero-shot":
            return f"{path}: no such file; 'raymerge suite convert {arguments}' makes it of open_clip's weights."
        if suite.option.endswith((".yaml", ".yml")):
            return f"{path}: no such file; put it there, or say in {suite.option} where it is."
        return f"{path}: no such file; 'raymerge suite fetch {arguments}' fetches it."


def check_still(expert: Checkpoint, zero_shot: Checkpoint, task: str) -> None:
    """Only the image encoder of an expert was fine-tuned, and it was.

    Raises:
        CheckpointError: something else has moved, or nothing has.
    """
    for name in expert.names:
        if not name.startswith(VISUAL) and not _is_equal(expert, zero_shot, name):
            raise CheckpointError(
                f"{expert.path}: expert '{task}': '{name}' differs from the zero-shot model, but is no part of the "
                "image encoder. Was it fine-tuned from another model?"
            )
    if all(_is_equal(expert, zero_shot, name) for name in expert.names if name.startswith(VISUAL)):
        raise CheckpointError(f"{expert.path}: expert '{task}' is the zero-shot model itself. Fetch it again.")


def _is_equal(expert: Checkpoint, zero_shot: Checkpoint, name: str) -> bool:
    ours, theirs = expert.tensor(name), zero_shot.tensor(name)
    return torch.equal(ours, theirs if ours.dtype == theirs.dtype else theirs.to(ours.dtype))


def extra_files(suite: PublishedSuite, backbones: Sequence[str]) -> list[Path]:
    """Files beside those that a suite reads, in the folders of its backbones; they do no harm."""
    used: set[Path] = set()
    found: set[Path] = set()
    for backbone in backbones:
        items = items_of([task.name for task in suite.tasks])
        used |= {path.resolve() for kind, task in items if (path := suite.source(kind, backbone, task)) is not None}
        for subfolder in SUBFOLDERS:
            place = existing_folder(suite.root / subfolder, backbone)
            if place is not None:
                found |= {path for path in place.rglob("*") if path.is_file()}
    return sorted(path for path in found if path.resolve() not in used)
