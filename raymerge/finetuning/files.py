"""Where fine-tuned experts go, what is there already, and the file from which a training continues.

    <output>/<backbone>/<Task>Val/nonlinear_zeroshot.pt           once for a backbone
    <output>/<backbone>/<Task>Val/nonlinear_finetuned.pt
    <output>/<backbone>/<Task>Val/nonlinear_finetuned.json        how it was made
    <output>/<backbone>/<Task>Val/nonlinear_finetuned.resume.pt   until it is finished
    <output>/<backbone>/head_<Task>Val.pt

A suite file may name weights otherwise; experts in its own folder of weights get the names that it gives them.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from raymerge.errors import CheckpointError, OutputError, UsageError
from raymerge.suites.published import ZERO_SHOT_TASK, Files, PublishedSuite
from raymerge.whole_file import whole_file

LOCK_TIMEOUT_S = 30.0
"""How long a process that was killed may need to go away."""

Status = Literal["to do", "finished", "another's"]


@dataclass(frozen=True)
class ExpertFiles:
    """The files of one expert."""

    expert: Path
    head: Path

    @property
    def record(self) -> Path:
        return self.expert.with_suffix(".json")

    @property
    def resume(self) -> Path:
        return self.expert.with_suffix(".resume.pt")

    @property
    def lock(self) -> Path:
        return self.expert.with_name(f".{self.expert.stem}.lock")

    def status(self, force: bool) -> Status:
        """What there is to do. An expert that was not written here is left alone.

        Raises:
            OutputError: it is to be replaced, but was not written here.
        """
        if not self.expert.exists():
            return "to do"
        if self.resume.exists() or force:  # it will be replaced
            if self._is_as_written():
                return "to do"
            if force:
                raise OutputError(
                    f"{self.expert}: is not what 'raymerge finetune' wrote, by {self.record.name} beside it, so it is "
                    "not replaced; move it away, or choose another --output."
                )
        return "finished" if self.record.exists() else "another's"

    def _is_as_written(self) -> bool:
        from raymerge.checkpoints import file_sha256  # imports torch

        return read_record(self.record).get("expert_sha256") == file_sha256(self.expert)


@dataclass(frozen=True)
class Output:
    """The folder that the experts of a suite are written to."""

    suite: PublishedSuite
    root: Path

    @property
    def is_own(self) -> bool:
        """Whether these are the weights that the suite reads."""
        return self.root == self.suite.root

    @property
    def files(self) -> Files:
        """Names of what is written: the published ones, or in a suite's own folder those it reads."""
        return self.suite.files if self.is_own else Files()

    def of_expert(self, backbone: str, task: str) -> ExpertFiles:
        expert, head = (
            self.root / f"{names[0].format(backbone=backbone, task=task)}.pt"
            for names in (self.files.expert, self.files.head)
        )
        if self.is_own and (found := self.suite.expert_path(backbone, task)).exists():
            expert = found  # under another of its names
        return ExpertFiles(expert, head)

    def zero_shot(self, backbone: str) -> Path:
        """The zero-shot weights that are in the folder, or the place for them."""
        if self.is_own and (found := self.suite.zero_shot_path(backbone)).exists():
            return found
        places = [self.root / f"{name}.pt" for name in self._zero_shot_names(backbone)]
        return next((place for place in places if place.exists()), places[0])

    def _zero_shot_names(self, backbone: str) -> Iterator[str]:
        """Of the files that readers look for, without that of a task that the suite does not have, if they can."""
        tasks = [task.name for task in self.suite.tasks]
        patterns = self.files.zero_shot
        if ZERO_SHOT_TASK not in tasks:
            patterns = [name for name in patterns if f"{ZERO_SHOT_TASK}Val" not in name] or patterns
        for pattern in patterns:
            yield from dict.fromkeys(pattern.format(backbone=backbone, task=task) for task in tasks)


def find_output(suite: PublishedSuite, folder: str | None) -> Output:
    """The folder to write to: the given one, or the weights of a suite file.

    Raises:
        UsageError: it is missing, on another machine, or holds weights that others published.
    """
    if folder is not None and "://" in folder:
        raise UsageError(f"--output '{folder}' is not a folder of this machine; experts go to a local folder.")
    own = suite.option.endswith((".yaml", ".yml"))
    if folder is None:
        if not own:
            raise UsageError(
                f"--output is missing: experts of '{suite.name}' would lie among the published ones; give a folder."
            )
        return Output(suite, suite.root)
    root = Path(folder).expanduser().resolve()
    if not own and (root.is_relative_to(suite.root.resolve()) or root.is_relative_to(suite.converted)):
        raise UsageError(f"--output '{folder}' is the place of the published weights of '{suite.name}'; give another.")
    return Output(suite, root)


# --- records ---------------------------------------------------------------------------------------------------------


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write how an expert was made."""
    with whole_file(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def read_record(path: Path) -> dict[str, Any]:
    """How an expert was made; empty if the file is damaged, which takes nothing from the expert."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def difference(before: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first value that two descriptions do not share, such as `seed 0, asked for 1`; None if they are the same."""
    for name, value in asked.items():
        found = before.get(name)
        if isinstance(value, Mapping):
            if inner := difference(found if isinstance(found, Mapping) else {}, value):
                return inner
        elif (list(value) if isinstance(value, tuple) else value) != found:
            return f"{name} {found}, asked for {value}"
    return None


# --- trainings that are not finished ---------------------------------------------------------------------------------


def write_resume(path: Path, about: Mapping[str, Any], seconds: float, state: Mapping[str, Any]) -> None:
    """Write all that a training needs to continue.

    Args:
        about: what the training is, as JSON values.
        seconds: how long it has taken so far.
    """
    import torch

    with writing(path), whole_file(path) as file:
        torch.save({"about": json.dumps(about), "seconds": seconds, "state": dict(state)}, file)


def read_resume(path: Path, about: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    """Seconds and state of a training that is described by `about`.

    Raises:
        OutputError: the file is of another training, or damaged.
    """
    from raymerge.safe_loading import load_without_code

    try:
        content = load_without_code(path)
        before, seconds, state = json.loads(content["about"]), content["seconds"], content["state"]
    except (CheckpointError, KeyError, TypeError, ValueError):
        raise OutputError(f"{path}: cannot be continued from, because it is damaged; --force starts over.") from None
    if found := difference(before, about):
        raise OutputError(
            f"{path}: is of a training with {found}; give the options it was begun with, or --force to start over."
        )
    return seconds, state


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file, and tell what is in the way of writing there.

    Raises:
        OutputError: of the operating system's errors.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}). Make room for it, or choose another --output."
        ) from None


@contextmanager
def alone(files: ExpertFiles) -> Iterator[None]:
    """No other process makes the same expert meanwhile.

    Raises:
        OutputError: another one does.
    """
    lock = filelock.FileLock(files.lock)
    with writing(files.lock):
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except filelock.Timeout:
            raise OutputError(
                f"{files.expert}: another process is fine-tuning it; wait for its end, or choose another --output."
            ) from None
    try:
        yield
    finally:
        files.lock.unlink(missing_ok=True)
        lock.release()
