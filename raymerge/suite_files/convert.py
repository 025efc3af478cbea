"""Converting the files of a suite, whatever format they came in, to safetensors under their published names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from raymerge.backbones import encoder_shapes, pretrained_clip
from raymerge.checkpoints import (
    PREFIX,
    Checkpoint,
    check_values,
    load_head,
    read_head,
    save_head,
    save_safetensors,
)
from raymerge.errors import CheckpointError, OutputError, RaymergeError, SuiteError
from raymerge.model_config import embed_dim
from raymerge.model_file import write_safetensors
from raymerge.suite_files.converted_file import MADE_FROM, describe, is_up_to_date, metadata_of, take_time
from raymerge.suite_files.weight_formats import PROJECTION, VISUAL, Part, recipe_of
from raymerge.suites.published import Kind, PublishedSuite, items_of

Status = Literal["converted", "up to date", "as it is", "made", "missing", "broken"]
Report = Callable[[str, float], None]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Conversion:
    """What became of one file of a suite."""

    kind: Kind
    backbone: str
    task: str | None
    path: Path
    """Of the file that the suite reads."""
    status: Status = "missing"
    made_from: str = ""
    """Format of the source."""
    num_tensors: int = 0
    num_completed: int = 0
    """Tensors that were taken from the zero-shot model."""
    num_dropped: int = 0
    """Tensors of the source that are no part of a converted file."""
    num_bytes: int = 0
    problem: str = ""


def convert_suite(
    suite: PublishedSuite,
    tasks: Mapping[str, Sequence[str]],
    *,
    folder: Path | None = None,
    force: bool = False,
    report: Report = lambda what, share: None,
) -> list[Conversion]:
    """Convert the zero-shot model, the experts and the published heads of some backbones, file after file.

    Args:
        tasks: by backbone.
        folder: where to write; None: where the suite looks for converted files. Files that the suite can read as they
            are, because they are safetensors in the published format, are only copied to a folder that is given.
        force: write what is up to date once more.
    Returns:
        One entry per file, also of those that are missing or damaged; but heads that are missing can be built.
    Raises:
        CheckpointError: a zero-shot model is damaged, or neither there nor to be had.
        OutputError: a file cannot be written.
    """
    done: list[Conversion] = []
    looked_at, num = 0, sum(1 + 2 * len(names) for names in tasks.values())
    for backbone, names in tasks.items():
        converter = _Converter(suite, backbone, folder, force)
        for kind, task in items_of(names):
            report(f"{backbone}/{task or 'zero-shot'}", looked_at / num)
            looked_at += 1
            entry = converter.convert(kind, task)
            if kind == "zero-shot" and entry.problem:  # without it, nothing else can be checked
                raise CheckpointError(entry.problem)
            if not (kind == "head" and entry.status == "missing"):
                done.append(entry)
    return done


class _Converter:
    """Converts the files of one backbone, the zero-shot model first."""

    def __init__(self, suite: PublishedSuite, backbone: str, folder: Path | None, force: bool):
        self._suite, self._backbone, self._force = suite, backbone, force
        self._in_place = folder is None
        self._folder = folder or suite.converted
        self._zero_shot: Checkpoint | None = None

    def convert(self, kind: Kind, task: str | None) -> Conversion:
        target = self._folder / f"{self._suite.names(kind, self._backbone, task)[0]}.safetensors"
        source = self._suite.source(kind, self._backbone, task)
        entry = Conversion(kind, self._backbone, task, target)
        try:
            if source is None:
                entry = self._without_source(entry)
            else:
                entry = (self._head if kind == "head" else self._state)(entry, source)
            if kind == "zero-shot":
                self._zero_shot = Checkpoint(entry.path)
            return entry
        except (CheckpointError, SuiteError) as error:
            return replace(entry, status="broken", problem=str(error))
        except OSError as error:
            place = error.filename or target
            raise OutputError(f"{place}: {error.strerror or error}; is there space, and may it be written?") from error

    def _without_source(self, entry: Conversion) -> Conversion:
        metadata = metadata_of(entry.path)
        if metadata and not self._force:  # converted before the source was removed
            num_bytes, num = entry.path.stat().st_size, len(Checkpoint(entry.path).names)
            made_from = metadata.get(MADE_FROM, "")
            return replace(entry, status="up to date", made_from=made_from, num_tensors=num, num_bytes=num_bytes)
        if entry.kind == "zero-shot":
            return self._make_zero_shot(entry)
        names = self._suite.source_names(entry.kind, self._backbone, entry.task)
        found = f"no {entry.kind} file under {self._suite.root}, looked for {' or '.join(names[:2])}."
        return replace(entry, problem=f"{self._backbone}/{entry.task}: {found}")

    # --- state dicts ---

    def _state(self, entry: Conversion, path: Path) -> Conversion:
        source, zero_shot = Checkpoint(path), self._zero_shot
        recipe, shapes = recipe_of(source), source.shapes
        found = {name: part.shape(shapes) for name, part in recipe.parts.items()}
        taken: list[str] = []
        if zero_shot is None:
            if PROJECTION not in found:
                raise CheckpointError(
                    f"{path}: the zero-shot model of {self._backbone} has no projection; take one with it, such as a "
                    "CLIPModel or a CLIPVisionModelWithProjection of transformers."
                )
            visual = {name: shape for name, shape in found.items() if name.startswith(VISUAL)}
            _compare(path, visual, encoder_shapes(self._suite.backbones[self._backbone]), self._backbone)
            parts = dict(recipe.parts)
        else:
            # what does not move when an image encoder is fine-tuned is the zero-shot model's
            still = [name for name in zero_shot.names if name == PROJECTION or not name.startswith(VISUAL)]
            taken = [name for name in still if name not in found]
            parts = {n: part for n, part in recipe.parts.items() if n in zero_shot.names or n.startswith(VISUAL)}
            shape_of = {name: found[name] for name in parts} | {name: zero_shot.shapes[name] for name in taken}
            _compare(path, shape_of, zero_shot.shapes, f"expert '{entry.task}': the zero-shot model")
        num_dropped = len(recipe.dropped) + len(recipe.parts) - len(parts)
        sources = [path] + ([zero_shot.path] if zero_shot is not None and taken else [])
        is_plain = path.suffix == ".safetensors" and recipe.format == "published" and not (taken or num_dropped)
        if self._in_place and is_plain:
            return replace(_of_file(entry, path), status="as it is", made_from=recipe.format, num_tensors=len(parts))
        if self._force or not is_up_to_date(entry.path, sources, {*parts, *taken}):
            self._write(entry.path, source, parts, taken, self._description(recipe.format, sources))
            take_time(entry.path, sources)
            entry = replace(entry, status="converted")
        else:
            entry = replace(entry, status="up to date")
        num = len(parts) + len(taken)
        entry = replace(entry, num_tensors=num, num_completed=len(taken), num_dropped=num_dropped)
        return replace(_of_file(entry, entry.path), made_from=recipe.format)

    def _write(
        self,
        target: Path,
        source: Checkpoint,
        parts: Mapping[str, Part],
        taken: Sequence[str],
        metadata: Mapping[str, str],
    ) -> None:
        zero_shot, shapes = self._zero_shot, source.shapes
        kinds = {name: (source.dtype(part.names[0]), part.shape(shapes)) for name, part in parts.items()}
        if zero_shot is not None:
            kinds |= {name: (zero_shot.dtype(name), zero_shot.shapes[name]) for name in taken}

        def tensor(name: str) -> Tensor:
            if name not in parts:
                assert zero_shot is not None
                return zero_shot.tensor(name)
            for used in parts[name].names:
                check_values(source, used, self._backbone)
            return parts[name].tensor(source.tensor)

        target.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(target, kinds, tensor, lambda: metadata)

    def _make_zero_shot(self, entry: Conversion) -> Conversion:
        """The zero-shot model of open_clip's pretrained weights, which the published ones are."""
        encoder = self._suite.backbones[self._backbone]
        try:
            state = pretrained_clip(encoder).state_dict()
        except RaymergeError as error:
            expected = self._suite.expected_path("zero-shot", self._backbone)
            raise CheckpointError(f"{expected}: no such file, and it cannot be made instead: {error}") from error
        kept = {PREFIX + name: value for name, value in state.items() if not name.startswith("transformer.")}
        made_from = f"open_clip {encoder.model}, {encoder.pretrained}"
        save_safetensors(entry.path, kept, describe(made_from, {}))
        return replace(_of_file(entry, entry.path), status="made", made_from=made_from, num_tensors=len(kept))

    # --- heads ---

    def _head(self, entry: Conversion, path: Path) -> Conversion:
        num_classes = len(self._suite.task(str(entry.task)).classes) or len(read_head(path)[0])
        dim = embed_dim(self._suite.backbones[self._backbone])
        head = load_head(path, num_classes=num_classes, embed_dim=dim)
        entry = replace(entry, made_from="head", num_tensors=len(head))
        if self._in_place and path.suffix == ".safetensors":
            return replace(_of_file(entry, path), status="as it is")
        if not self._force and is_up_to_date(entry.path, [path], {"weight", "bias"}):
            return replace(_of_file(entry, entry.path), status="up to date")
        save_head(entry.path, *head, metadata=self._description("head", [path]))
        take_time(entry.path, [path])
        return replace(_of_file(entry, entry.path), status="converted")

    def _description(self, made_from: str, sources: Sequence[Path]) -> dict[str, str]:
        return describe(made_from, {path: self._suite.file_label(path) for path in sources})


def _of_file(entry: Conversion, path: Path) -> Conversion:
    return replace(entry, path=path, num_bytes=path.stat().st_size)


def _compare(path: Path, found: Shapes, expected: Shapes, owner: str) -> None:
    """Raise CheckpointError unless the names and shapes are equal."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        what = f"lacks '{missing[0]}'" if missing else f"has '{extra[0]}'"
        raise CheckpointError(
            f"{path}: {what}, unlike {owner} ({len(missing)} tensors missing, {len(extra)} unexpected). "
            "Is it of another backbone?"
        )
    for name, shape in found.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"{path}: '{name}' is {shape}, expected {expected[name]} as {owner} has it. Is it of another backbone?"
            )
