"""Which part of a suite a command works on, and preparing it first."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from raymerge.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from raymerge.progress import Lines, LiveView, Silent
    from raymerge.suites import Suite

SUITE_HELP = "demo, tall-masks, fusionbench, a suite file, or a folder."
SuiteName = Annotated[str, typer.Option("--suite", metavar="SUITE", help=SUITE_HELP, show_default=False)]
Profile = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="Variant of the suite, such as reduced of demo.")
]
SuiteSeed = Annotated[
    int | None, typer.Option("--suite-seed", min=0, max=2**32 - 1, help="Seed of a suite that is generated.")
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="DIR", help="Folder of a collection's checkpoints.  [default: in the cache]"),
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Folder of the raw datasets.  [default: in the cache]")
]
Backbones = Annotated[
    list[str] | None, typer.Option("--backbone", metavar="NAME", help="Repeatable.  [default: all of the suite]")
]
NumTasks = Annotated[int | None, typer.Option("--num-tasks", min=1, help="Only the first so many tasks of the suite.")]
Tasks = Annotated[str | None, typer.Option("--tasks", metavar="A,B", help="Only these tasks.")]


def check_variant(suite: "Suite", profile: str | None, seed: int | None) -> None:
    """A suite in a folder has one profile and seed; to ask it for others is a mistake."""
    for option, asked, has in (("--profile", profile, suite.profile), ("--suite-seed", seed, suite.seed)):
        if asked is not None and asked != has:
            raise UsageError(f"{option} is {asked}, but the suite in {suite.root} has {has}. Leave {option} out.")


def chosen_backbones(suite: "Suite", names: Sequence[str]) -> Sequence[str]:
    return known_names(names or list(suite.backbones), suite.backbones, f"suite '{suite.name}' has no backbone")


def chosen_tasks(suite: "Suite", num_tasks: int | None, names: str | None) -> Sequence[str]:
    known = [task.name for task in suite.tasks]
    if num_tasks is not None and names is not None:
        raise UsageError("--num-tasks and --tasks exclude each other; leave one of them out.")
    if names is not None:
        listed = [name.strip() for name in names.split(",") if name.strip()]
        if not listed:
            raise UsageError("--tasks names no task; separate names by commas.")
        return known_names(listed, known, f"suite '{suite.name}' has no task")
    if num_tasks is not None and num_tasks > len(known):
        raise UsageError(f"suite '{suite.name}' has {len(known)} tasks, --num-tasks asks for {num_tasks}.")
    return known[:num_tasks]


def known_names(names: Sequence[str], known: Iterable[str], complaint: str) -> list[str]:
    known = list(known)
    for name in names:
        if name not in known:
            raise UsageError(f"{complaint} '{name}'. {did_you_mean(name, known)}")
    return list(dict.fromkeys(names))


def prepare(suite: "Suite", view: "Silent | Lines | LiveView", debug: bool) -> None:
    view.stage("starting Ray")
    from raymerge import cluster, preparation

    with cluster.connected(None, debug=debug) as slots:
        view.stage("preparing the suite")
        preparation.prepare_suite(suite, slots, view.preparing)
