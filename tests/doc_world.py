"""Where the documentation's blocks run: a folder that looks like a clone, with tiny models under the pages' names.

A sweep of the demo or of a suite file is not run, but leaves results all the same: those of `left_results`.
"""

import contextlib
import doctest
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip.factory
import pytest
import safetensors.torch
import torch
from doc_pages import ROOT, Block, blocks_of, console_commands, find_command, shell_lines
from left_results import leave_results, leave_results_of
from tiny_suite import tiny_suite
from typer.testing import CliRunner

from raymerge import cli, model_config
from raymerge.backbones import build_clip
from raymerge.checkpoints import save_head, save_state_dict
from raymerge.command_page import program
from raymerge.images import write_images
from raymerge.output import read_manifest
from raymerge.rehearsal.pictures import pictures
from raymerge.rehearsal.world import TINY
from raymerge.suite_file import find_suite
from raymerge.suites import Backbone, demo_suite, write_suite_json
from raymerge.suites.demo.recipe import IMAGE_SIZE, describe, make_recipe
from raymerge.sweep_file import load_sweep
from raymerge.sweep_spec import spec_hash

REAL = Backbone("ViT-B-32", "", model="ViT-B-32", quick_gelu=True)
CONFIG = TINY.config(REAL)
"""What ViT-B-32 stands for here."""
FOLDERS = {"birds": ("goldfinch", "robin", "wren"), "flowers": ("daisy", "tulip", "water_lily")}
"""Images of docs/your_models.md."""


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ViT-B-32 be tiny, nothing wait for a disk, and no setting of the developer's reach a command."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", {**CONFIG, "quick_gelu": True})
    read = model_config._read_config
    monkeypatch.setattr(
        model_config, "_read_config", lambda backbone: CONFIG if backbone.model == "ViT-B-32" else read(backbone)
    )
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def write_world(folder: Path) -> None:
    """Everything that pages take for granted. The cache is filled, too."""
    for name in ("sweeps", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "cluster.yaml", folder)
    _write_checkpoints(folder)
    _write_own_models(folder)
    tiny_suite(demo_suite("reduced").root, described=describe(make_recipe("reduced", 0)))
    _write_full_demo()
    few = ["search.policy=tpe", "search.trials=3"]
    leave_results_of({"demo": ["evaluation.store_predictions=true"], "demo_ablations": few}, folder)
    (folder / "results/other").symlink_to("demo")


def _write_full_demo() -> None:
    """Models without merit, and black images: nothing is scored on them."""
    suite, described = demo_suite(), describe(make_recipe("full", 0))
    few = [{**task, "images": {"val": 8, "test": 8}} for task in described["tasks"]]
    tiny_suite(suite.root, described={**described, "tasks": few})
    for task in suite.tasks:
        for split, count in task.images.items():
            pixels = torch.zeros(count, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
            write_images(suite.images_path(task.name, split), pixels, torch.zeros(count, dtype=torch.int64))
    write_suite_json(suite.root, described)


def _expert(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in state.items()}


def _write_checkpoints(folder: Path) -> None:
    """Whole models of open_clip: the zero-shot model and two experts, one of them in both formats."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        zero_shot = {n: v for n, v in build_clip(REAL).state_dict().items() if v.is_floating_point()}
    save_state_dict(folder / "zeroshot.pt", zero_shot)
    for seed, name in enumerate(("cars", "dtd")):
        save_state_dict(folder / f"{name}.pt", _expert(zero_shot, seed))
    safetensors.torch.save_file(_expert(zero_shot, 1), folder / "dtd.safetensors")


def _write_own_models(folder: Path) -> None:
    """Weights, heads and images of docs/your_models.md."""
    weights = folder / "my_weights/ViT-B-32"
    zero_shot = torch.load(folder / "zeroshot.pt", weights_only=True)
    save_state_dict(weights / "zeroshot.pt", zero_shot)
    generator = torch.Generator().manual_seed(0)
    for seed, (name, classes) in enumerate(FOLDERS.items()):
        state = {n: v if n.startswith("visual.") else zero_shot[n] for n, v in _expert(zero_shot, seed).items()}
        save_state_dict(weights / f"{name.capitalize()}Val/nonlinear_finetuned.pt", state)
        head = torch.randn(len(classes), CONFIG["embed_dim"], generator=generator)
        save_head(weights / f"head_{name.capitalize()}Val.pt", head)
        for split, count in (("train", 30), ("test", 12)):
            for number, (image, label) in enumerate(pictures(name, split, len(classes), count, side=40, repeats=3)):
                path = folder / "my_data" / name / split / classes[label] / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)


@dataclass
class Runner:
    """Runs the blocks of a page one after the other in the working folder."""

    page: str
    skipped: Any
    """Says of a line or block why it is not run, or None."""
    exit_codes: Any
    """Says of a command line with which status it ends."""
    spaces: list[dict[str, Any]] = field(default_factory=list)
    """What the Python blocks have left."""
    in_process: bool = True

    def run(self) -> None:
        blocks = blocks_of(self.page)
        if any((block.file or "").startswith("raymerge/") for block in blocks):
            self.in_process = False  # the page adds to the package: to a copy of it
            for name in ("raymerge", "tests"):
                shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("golden"))
            shutil.copy(ROOT / "pyproject.toml", ".")
        for block in blocks:
            self.run_block(block)

    def run_block(self, block: Block) -> None:
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        elif block.language == "python" and self.skipped(block.text) is None:
            self._python(block)
        elif block.language == "bash":
            for line in shell_lines(block.text):
                self._line(block, line)
        elif block.language == "sql":
            code, output = self._call(["raymerge", "query", "results/demo", block.text])
            assert code == 0, f"{block.place}\n{output}"
        elif block.language == "console":
            for command, expected in console_commands(block.text):
                _, output = self._call(shlex.split(command))
                is_so = doctest.OutputChecker().check_output(expected, output, doctest.ELLIPSIS)
                assert is_so, f"{block.place}: {command}\n{output}"

    def _python(self, block: Block) -> None:
        space: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.text, block.place, "exec"), space)
        assert "print(" not in block.text or printed.getvalue().strip(), block.place
        assert "Empty DataFrame" not in printed.getvalue(), block.place
        self.spaces.append(space)

    def _line(self, block: Block, line: str) -> None:
        command, _, target = line.partition(" > ")
        words = shlex.split(command)
        if self.skipped(line) is not None:
            return
        if words[:2] == ["raymerge", "sweep"] and "--dry-run" not in words:
            self._sweep(words)
            return
        code, output = self._call(words)
        assert code == self.exit_codes(line), f"{block.place}: {line}\n{output}"
        if target:
            Path(target).write_text(output)

    def _call(self, words: list[str]) -> tuple[int, str]:
        """Exit status, and all output."""
        assert words[0] in ("raymerge", "pytest", "python"), f"{self.page}: {words} is neither run nor in NOT_RUN"
        if words[0] == "raymerge" and self.in_process:
            done = CliRunner().invoke(cli.app, words[1:], prog_name="raymerge", catch_exceptions=False)
            return done.exit_code, done.output
        options = ["-q", "-n", "0", "-p", "no:cacheprovider"] if words[0] == "pytest" else []
        module = [] if words[0] == "python" else ["-m", words[0]]
        run = subprocess.run(
            [sys.executable, *module, *options, *words[1:]],
            env={**os.environ, "PYTHONPATH": str(ROOT if self.in_process else Path.cwd())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return run.returncode, run.stdout

    def _sweep(self, words: list[str]) -> None:
        command, arguments = find_command(program(), words[1:])
        given = command.make_context("sweep", arguments).params
        assert given["address"] is None
        spec = load_sweep(given["spec"], given["overrides"] or ())
        suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
        output = Path(given["output"] or f"results/{spec.name}")
        manifest = read_manifest(output)
        is_done = manifest is not None and (not given["overrides"] or manifest["spec_hash"] == spec_hash(spec))
        if not is_done:  # the world's own results, some with fewer trials than the file says, stay as they are
            leave_results(spec, suite, output)


@contextlib.contextmanager
def copied(world: Path, folder: Path) -> Iterator[None]:
    """A copy of the world to work in."""
    shutil.copytree(world, folder, symlinks=True, dirs_exist_ok=True)
    with contextlib.chdir(folder):
        yield
