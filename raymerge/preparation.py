"""Preparing the demo suite with Ray: pre-training, then every task in parallel, each on one torch thread.

All of it on this machine, whose files it makes; `copy_suite` brings them to others.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import filelock
import ray

from raymerge.cluster import Slots, ask_nodes, get, on_node, this_node
from raymerge.errors import first_line
from raymerge.suites import Suite
from raymerge.suites.demo.recipe import TASK_NAMES, DemoRecipe, make_recipe

COPY_S = 600.0
"""How long copying a suite to other nodes may take."""

Report = Callable[[str, float], None]
"""Told what is being done and which fraction of the whole preparation is behind it."""


def prepare_suite(suite: Suite, slots: Slots, report: Report) -> None:
    """Write the suite to its folder, or do nothing when it is there.

    A preparation that was interrupted continues with the files that are missing. Two at once wait for each other.

    Raises:
        SuiteError: a stage did not leave its files.
    """
    if suite.is_prepared:
        return
    recipe = make_recipe(suite.profile, suite.seed)  # type: ignore[arg-type]
    suite.root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(suite.root.with_name(suite.root.name + ".lock")):
        if suite.is_prepared:  # while we waited
            return
        progress: Any = ray.remote(num_cpus=0)(_Progress).remote()
        shares = {"": float(recipe.pretrain_steps * recipe.pretrain_batch)}
        shares |= dict.fromkeys(TASK_NAMES, float(recipe.finetune_steps * recipe.finetune_batch))

        def on_wait() -> None:
            fractions: Any = ray.get(progress.read.remote())
            done = sum(shares[name] * fraction for name, fraction in fractions.items())
            finished = sum(fractions.get(name, 0.0) >= 1 for name in TASK_NAMES)
            if fractions.get("", 0.0) < 1:
                what = "pre-training the demo's CLIP"
            else:
                what = f"fine-tuning experts, {finished} of {len(TASK_NAMES)} done"
            report(what, done / sum(shares.values()))

        here = on_node(this_node())
        task = _task.options(num_cpus=slots.per_core, **here)
        get([_pretrain.options(num_cpus=slots.per_core, **here).remote(recipe, suite, progress)], on_wait)
        get([task.remote(recipe, suite, name, progress) for name in TASK_NAMES], on_wait)
        get([_finish.options(**here).remote(recipe, suite)])
        ray.kill(progress)


class _Progress:
    """Fractions of the stages, collected from their processes."""

    def __init__(self) -> None:
        self._fractions: dict[str, float] = {}

    def write(self, stage: str, fraction: float) -> None:
        self._fractions[stage] = fraction

    def read(self) -> dict[str, float]:
        return self._fractions


def _reporter(progress: Any, stage: str) -> Callable[[int, int], None]:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 0.5:
            last = time.monotonic()
            progress.write.remote(stage, done / total)

    return report


@ray.remote
def _pretrain(recipe: DemoRecipe, suite: Suite, progress: Any) -> None:
    from raymerge.suites.demo.prepare import pretrain_stage

    pretrain_stage(recipe, suite.root, _reporter(progress, ""))
    ray.get(progress.write.remote("", 1.0))


@ray.remote
def _task(recipe: DemoRecipe, suite: Suite, task: str, progress: Any) -> None:
    from raymerge.suites.demo.prepare import task_stage

    task_stage(recipe, suite.root, task, _reporter(progress, task))
    ray.get(progress.write.remote(task, 1.0))


@ray.remote(num_cpus=1)
def _finish(recipe: DemoRecipe, suite: Suite) -> None:
    from raymerge.suites.demo.prepare import finish

    finish(recipe, suite.root)


def copy_suite(suite: Suite, node_ids: Sequence[str]) -> dict[str, str]:
    """Put a suite of this machine's cache on nodes that share no file system with it.

    Returns why that failed, by node id, where it did.
    """
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(suite.root, arcname=".")
        file.seek(0)
        content = ray.put(file.read())
    failures = ask_nodes(_unpack, node_ids, suite, content, timeout_s=COPY_S)
    return {node_id: why for node_id in node_ids if (why := failures.get(node_id, "it does not answer")) is not None}


@ray.remote(num_cpus=0)
def _unpack(suite: Suite, content: bytes) -> str | None:
    """Returns why it failed, None if it did not."""
    try:
        unpack(content, suite.root)
    except Exception as error:
        return first_line(error)
    return None


def unpack(content: bytes, target: Path) -> None:
    """Make a folder of the content of a tar file, all of it or nothing; one that is there is left alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            return
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                if hasattr(tarfile, "data_filter"):
                    archive.extractall(folder, filter="data")
                else:  # Python 3.11.2, that of Debian 12
                    archive.extractall(folder)
            Path(folder).rename(target)
            Path(folder).mkdir()  # for the one who deletes it
