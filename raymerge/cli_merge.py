"""`raymerge merge`: one merged model as a file, and its card."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_options import Debug, Device, Json, Quiet, torch_device
from raymerge.cli_suite import (
    Data,
    NumTasks,
    Profile,
    SuiteSeed,
    Tasks,
    Weights,
    check_variant,
    chosen_backbones,
    chosen_tasks,
    prepare,
)
from raymerge.errors import OutputError, UsageError
from raymerge.streams import errors_told, interruptible, tell, write, write_json

if TYPE_CHECKING:
    from raymerge.merge_model import Written
    from raymerge.merge_request import InputFiles
    from raymerge.method_point import MethodPoint
    from raymerge.suites import Suite

SUFFIX = ".safetensors"


def merge(
    method: Annotated[
        str, typer.Option("--method", metavar="METHOD", help="Such as iso-c; docs/methods.md.", show_default=False)
    ],
    output: Annotated[
        str, typer.Option("--output", metavar="FILE", help="The .safetensors file to write.", show_default=False)
    ],
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="SUITE", help="Merge experts of demo, tall-masks, a suite file or folder."),
    ] = None,
    profile: Profile = None,
    suite_seed: SuiteSeed = None,
    weights: Weights = None,
    data: Data = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", help="Of the suite.  [default: its only one]")
    ] = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="FILE", help="Without a suite: the model that experts come from.")
    ] = None,
    experts: Annotated[
        list[str] | None, typer.Option("--expert", metavar="NAME=FILE", help="Without a suite: an expert; repeatable.")
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="Of the method, such as keep=0.3; repeatable."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", metavar="NUMBER", help="Scaling coefficient of the update.")
    ] = None,
    update_only: Annotated[
        bool, typer.Option("--update-only", help="Write the update before alpha, in float32, instead of a model.")
    ] = False,
    moments: Annotated[
        str | None,
        typer.Option("--moments", metavar="DIR", help="Input moments.  [default for a suite: those of raymerge stats]"),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.auto,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Merge experts into one model file, once, at a given alpha."""
    with errors_told(debug, interrupted=f"interrupted: nothing was written, and {output} is as it was before."):
        from raymerge.method_point import merging_method, point_of, read_params

        declared = merging_method(method)
        given = read_params(declared, params or ())
        path = _output_path(output)
        if suite is None:
            suite_options = {"--profile": profile, "--suite-seed": suite_seed, "--backbone": backbone}
            suite_options |= {"--weights": weights, "--data": data}
            _check_plain({**suite_options, "--num-tasks": num_tasks, "--tasks": tasks}, base, experts or ())
            found, origin = None, {}
            files = _plain_files(Path(base or ""), experts or (), moments if declared.moments else None)
        else:
            if base is not None or experts:
                raise UsageError("--suite and --base with --expert exclude each other; leave one of them out.")
            from raymerge.suite_file import find_suite

            found = find_suite(suite, profile, suite_seed or 0, weights=weights, data=data)
            check_variant(found, profile, suite_seed)
            chosen = _chosen_backbone(found, backbone)
            files = _suite_files(found, chosen, chosen_tasks(found, num_tasks, tasks), moments, declared.moments)
            origin = {"suite": found.name, "profile": found.profile, "seed": str(found.seed), "backbone": chosen}
        point = point_of(declared, given, alpha, len(files.experts), update_only=update_only)
        _check_moments_option(declared.name, declared.moments, moments, has_suite=found is not None)
        try:
            _check_output(path, files, force)
        except OSError as error:  # such as a name that is too long
            raise OutputError(f"{path}: is no name of a file ({error.strerror or error}). Choose another.") from None
        written, card, remark = _merge(path, point, found, files, origin, device, force, quiet=quiet, debug=debug)
        if remark:
            tell(remark)
        if as_json:
            write_json(_as_dict(written, point, files, card))
        else:
            write(_summary(written, point, files, card))


def _output_path(output: str) -> Path:
    if "://" in output:
        raise UsageError(f"--output '{output}' is not a file of this machine; a merge writes a local file.")
    path = Path(output).expanduser()
    if path.suffix != SUFFIX:
        if path.is_dir():
            meant = path / f"merged{SUFFIX}"
        else:
            meant = path.with_suffix(SUFFIX) if path.suffix else f"{output}{SUFFIX}"
        raise UsageError(f"--output '{output}' is no name of a {SUFFIX} file. Did you mean '{meant}'?")
    return path


def _check_plain(suite_options: Mapping[str, Any], base: str | None, experts: Sequence[str]) -> None:
    """Without a suite, the files have to be given, and nothing that is said of a suite."""
    if not base and not experts:
        raise UsageError("nothing to merge: give --suite, or --base with at least one --expert.")
    for option, value in suite_options.items():
        if value is not None:
            raise UsageError(f"{option} says which part of a suite is merged, but there is no --suite.")
    if not base:
        raise UsageError("--base is missing: the model that the experts were fine-tuned from.")
    if not experts:
        raise UsageError("--expert is missing: give at least one, as NAME=FILE.")


def _plain_files(base: Path, experts: Sequence[str], moments: str | None) -> "InputFiles":
    from raymerge.merge_request import InputFiles

    paths: dict[str, Path] = {}
    for text in experts:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise UsageError(f"--expert '{text}' is not a name and a file, expected NAME=FILE such as cars=cars.pt.")
        if "/" in name or not name.isprintable():
            raise UsageError(f"--expert {name!r}: a name has no slash and only printable characters.")
        if name in paths:
            raise UsageError(f"--expert '{name}' is given twice; names have to differ.")
        paths[name] = Path(file).expanduser()
    folder = None if moments is None else Path(moments).expanduser()
    found = {} if folder is None else {name: folder / f"{name}.safetensors" for name in paths}
    return InputFiles(base.expanduser(), paths, found)


def _suite_files(
    suite: "Suite", backbone: str, tasks: Sequence[str], moments: str | None, needs_moments: bool
) -> "InputFiles":
    from raymerge.merge_request import InputFiles
    from raymerge.suites import moments_dir, moments_path, stats_command

    folder = Path(moments).expanduser() if moments else moments_dir(suite)
    return InputFiles(
        suite.zero_shot_path(backbone),
        {task: suite.expert_path(backbone, task) for task in tasks},
        {task: moments_path(folder, backbone, task) for task in tasks} if needs_moments else {},
        stats_command(suite, folder),
    )


def _chosen_backbone(suite: "Suite", name: str | None) -> str:
    chosen = chosen_backbones(suite, [name] if name is not None else ())
    if len(chosen) > 1:
        raise UsageError(
            f"suite '{suite.name}' has several backbones: choose one with --backbone: {', '.join(chosen)}."
        )
    return chosen[0]


def _check_moments_option(method: str, needed: bool, moments: str | None, *, has_suite: bool) -> None:
    if moments is not None and not needed:
        raise UsageError(f"method '{method}' uses no input moments; leave --moments out.")
    if needed and moments is None and not has_suite:
        raise UsageError(
            f"method '{method}' needs input moments: give --moments, a folder with a file NAME.safetensors for every "
            "expert, as collected with: raymerge stats --suite SUITE"
        )


def _check_output(path: Path, files: "InputFiles", force: bool) -> None:
    """Whether the output may be written, as far as one can tell without writing."""
    for source in files.all():
        if path.absolute() == source.absolute() or (path.exists() and source.exists() and path.samefile(source)):
            raise UsageError(f"--output '{path}' is a file that is to be merged; choose another name.")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder. Choose another --output.")
    _check_absent(path, force)
    folder = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: {folder} is no folder that one can write to. Choose another --output.")


def _check_absent(path: Path, force: bool) -> None:
    if not force and os.path.lexists(path):
        raise OutputError(f"{path}: exists already. Give --force to replace it, or choose another --output.")


def _merge(
    path: Path,
    point: "MethodPoint",
    suite: "Suite | None",
    files: "InputFiles",
    origin: Mapping[str, str],
    device: Device,
    force: bool,
    *,
    quiet: bool,
    debug: bool,
) -> "tuple[Written, Path | None, str]":
    """The model, its card, and what there is to say about the card."""
    from raymerge.progress import StderrConsole, watching

    # whatever a library prints belongs to the logs: stdout is for results
    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
        view.stage("loading torch")
        from raymerge.merge_model import MergedModel, open_inputs, origin_of, write_model  # torch takes seconds

        where = torch_device(device)
        if suite is not None and not suite.is_prepared:
            prepare(suite, view, debug)
        with interruptible() as end_of_interrupts:
            view.stage("checking checkpoints")
            inputs, hashes = open_inputs(files, view.preparing)
            view.stage(f"merging {len(files.experts)} experts by {point.method} on {where.type}")
            merged = MergedModel(inputs, point, device=where, report=view.preparing)

            def on_complete() -> None:
                _check_absent(path, force)  # another process may have been faster
                end_of_interrupts()

            written = write_model(path, merged, {**origin_of(files, hashes), **origin}, on_complete=on_complete)
            return written, *_write_card(written, origin.get("backbone", files.base.name))


def _write_card(written: "Written", source: str) -> tuple[Path | None, str]:
    """The card's path, or None and why there is none: the model is complete without."""
    from raymerge.model_card import find_card, write_card

    card = find_card(written.path)
    if card is None:
        return (
            None,
            f"{written.path}: has no model card: neither README.md nor its own is raymerge's to replace.",
        )
    try:
        write_card(card, written, source=source)
    except OSError as error:
        return None, f"{card}: the model card cannot be written ({error.strerror or error}); the model is complete."
    return card, ""


def _as_dict(written: "Written", point: "MethodPoint", files: "InputFiles", card: Path | None) -> dict[str, Any]:
    return {
        "output": str(written.path),
        "sha256": written.sha256,
        "bytes": written.num_bytes,
        "card": None if card is None else str(card),
        "method": point.method,
        "params": dict(point.params),
        "alpha": point.alpha,
        "update_only": point.update_only,
        "experts": list(files.experts),
        "tensors": {"merged": written.num_changed, "unchanged": written.num_unchanged},
        "notes": list(written.notes),
    }


def _summary(written: "Written", point: "MethodPoint", files: "InputFiles", card: Path | None) -> str:
    from raymerge.model_card import shown

    settings = {**point.params, **({} if point.alpha is None else {"alpha": point.alpha})}
    lines = {
        "Method": ", ".join([point.method, *(f"{name} {shown(value)}" for name, value in settings.items())]),
        "Experts": f"{len(files.experts)}: {', '.join(files.experts)}",
        "Tensors": f"{written.num_changed} merged, {written.num_unchanged} as in the base model",
        "Notes": f"{len(written.notes)}, in the metadata of the file" if written.notes else "none",
        "Update" if point.update_only else "Model": f"{written.path} ({written.num_bytes / 1e6:,.1f} MB)",
        "SHA-256": written.sha256,
        "Card": "none" if card is None else str(card),
    }
    return "".join(f"{title:<8} {text}\n" for title, text in lines.items())
