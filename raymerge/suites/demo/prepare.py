"""The stages that write the demo suite to a folder. Each is a plain function and may run in a process of its own:

    pretrain_stage, then task_stage for every task (in any order, or all at once), then finish

A file gets its name only when it is complete, and the last file of a stage only after its others. So a stage that was
killed is done again, one that is complete is skipped, and a folder with `suite.json` holds everything.
"""

import hashlib
from pathlib import Path

from raymerge.checkpoints import Checkpoint, file_sha256, load_head, save_head, save_state_dict
from raymerge.errors import SuiteError
from raymerge.images import write_images
from raymerge.suites import Suite, suite_from_json, write_suite_json
from raymerge.suites.demo.clip import (
    PREFIX,
    ImageEncoder,
    build_clip,
    build_image_encoder,
    published_state,
    zero_shot_head,
)
from raymerge.suites.demo.determinism import bitwise_repeatable
from raymerge.suites.demo.recipe import BACKBONE, TASK_NAMES, TASKS, DemoRecipe, demo_task, describe
from raymerge.suites.demo.splits import task_split
from raymerge.suites.demo.training import Progress, finetune, pretrain


def prepare(recipe: DemoRecipe, folder: Path) -> Path:
    """All stages, one after the other, in this process. Returns the path of `suite.json`."""
    pretrain_stage(recipe, folder)
    for name in TASK_NAMES:
        task_stage(recipe, folder, name)
    return finish(recipe, folder)


def pretrain_stage(recipe: DemoRecipe, folder: Path, progress: Progress | None = None) -> None:
    """Pre-train the CLIP; write the head of every task, then the zero-shot weights."""
    suite = suite_in(recipe, folder)
    if not _missing(_pretrain_files(suite)):
        return
    with bitwise_repeatable():
        model = build_clip(recipe)
        pretrain(model, recipe, progress)
        for task in TASKS:
            save_head(suite.head_path(BACKBONE, task.name), zero_shot_head(model, task))
        save_state_dict(suite.zero_shot_path(BACKBONE), published_state(model))


def task_stage(recipe: DemoRecipe, folder: Path, task: str, progress: Progress | None = None) -> None:
    """Render a task, fine-tune its expert; write the images of val and test, then the expert's weights.

    Raises:
        SuiteError: no such task.
        CheckpointError: the zero-shot weights or the head are not there yet.
    """
    suite, declared = suite_in(recipe, folder), demo_task(task)
    if not _missing(_task_files(suite, task)):
        return
    with bitwise_repeatable():
        zero_shot = Checkpoint(suite.zero_shot_path(BACKBONE))
        weights = {name: zero_shot.tensor(name) for name in zero_shot.shapes}
        head, _ = load_head(
            suite.head_path(BACKBONE, task), num_classes=len(declared.classes), embed_dim=recipe.embed_dim
        )
        for split in ("val", "test"):
            write_images(suite.images_path(task, split), *task_split(recipe, declared, split))
        encoder = build_image_encoder(zero_shot.shapes)
        encoder.load_state_dict({name: weights[PREFIX + name] for name in encoder.state_dict()})
        expert = ImageEncoder(
            finetune(encoder.visual, head, *task_split(recipe, declared, "train"), recipe, declared, progress)
        )
        trained = {PREFIX + name: value for name, value in expert.state_dict().items()}
        # what is left of the text tower is not trained, and is copied bit by bit
        save_state_dict(suite.expert_path(BACKBONE, task), weights | trained)


def finish(recipe: DemoRecipe, folder: Path) -> Path:
    """Check that every file is there, and write `suite.json`. Returns its path.

    Raises:
        SuiteError: a stage has not been run.
    """
    suite = suite_in(recipe, folder)
    files = _pretrain_files(suite) + [file for task in TASK_NAMES for file in _task_files(suite, task)]
    missing = _missing(files)
    if missing:
        raise SuiteError(
            f"{folder}: {len(missing)} of {len(files)} files of the demo suite are missing, first "
            f"'{missing[0].relative_to(folder)}'. Prepare the suite again: it continues where it stopped."
        )
    for leftover in folder.rglob(".*.tmp"):  # of processes that were killed while writing
        leftover.unlink()
    write_suite_json(folder, {**describe(recipe), "fingerprint": fingerprint(folder, files)})
    return folder / "suite.json"


def suite_in(recipe: DemoRecipe, folder: Path) -> Suite:
    """The suite as it is, or will be, in a folder."""
    return suite_from_json(describe(recipe), folder)


def fingerprint(folder: Path, files: list[Path]) -> str:
    """SHA-256 over the names and the SHA-256 of the files, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(str(file.relative_to(folder)) for file in files):
        digest.update(f"{file_sha256(folder / name)}  {name}\n".encode())
    return digest.hexdigest()


def _pretrain_files(suite: Suite) -> list[Path]:
    return [*(suite.head_path(BACKBONE, name) for name in TASK_NAMES), suite.zero_shot_path(BACKBONE)]


def _task_files(suite: Suite, task: str) -> list[Path]:
    images = [suite.images_path(task, split) for split in ("val", "test")]
    return [*images, suite.expert_path(BACKBONE, task)]


def _missing(files: list[Path]) -> list[Path]:
    return [file for file in files if not file.is_file()]
