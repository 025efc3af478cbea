"""Peak memory of `raymerge merge` over checkpoints of a published backbone's size, made of random numbers."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from raymerge.bench.proc import memory_of
from raymerge.bench.shapes import Tower, state_of
from raymerge.checkpoints import save_state_dict
from raymerge.errors import RaymergeError
from raymerge.methods import METHODS
from raymerge.methods._method import FixedAlpha

SAMPLE_S = 0.02


@dataclass(frozen=True)
class Peak:
    """One merge: bytes of its checkpoints, its peak memory, and how long it took.

    private: beyond the mapped files: RssAnon of the process, sampled every 20 ms.
    resident: all pages, those of mapped files included, as the kernel counts them (VmHWM).
    """

    method: str
    num_tasks: int
    checkpoints: int
    private: int
    resident: int
    seconds: float


def checkpoint_paths(folder: Path, num_tasks: int) -> tuple[Path, list[Path]]:
    """The zero-shot model and the experts."""
    return folder / "zero_shot.pt", [folder / f"expert{task:02d}.pt" for task in range(num_tasks)]


def make_checkpoints(folder: Path, tower: Tower, num_tasks: int, report: Callable[[str], None]) -> None:
    """Write state dicts of a tower as torch.save does: float32 noise, text leftovers shared. Those there are kept.

    Raises:
        OSError: the disk is full.
    """
    zero_shot, experts = checkpoint_paths(folder, num_tasks)
    base = _noise(tower, seed=0, scale=0.02)
    for index, path in enumerate([zero_shot, *experts]):
        if path.is_file():
            continue
        report(f"writing checkpoint {index + 1} of {num_tasks + 1}: {path}")
        state = base
        if path != zero_shot:
            noise = _noise(tower, seed=index, scale=0.001)
            state = {name: base[name] + noise[name] if _is_visual(name) else base[name] for name in base}
        save_state_dict(path, state)


def bytes_missing(folder: Path, tower: Tower, num_tasks: int) -> int:
    """Bytes that the checkpoints not written yet and a merged model will take."""
    zero_shot, experts = checkpoint_paths(folder, num_tasks)
    num_missing = sum(not path.is_file() for path in (zero_shot, *experts))
    return 4 * (num_missing + 1) * sum(torch.Size(shape).numel() for shape in state_of(tower).values())


def measure(folder: Path, method: str, num_tasks: int) -> Peak:
    """Run `raymerge merge` over the checkpoints in a folder, and watch its memory. Linux only.

    Raises:
        RaymergeError: the merge failed; with its own words.
    """
    zero_shot, experts = checkpoint_paths(folder, num_tasks)
    command = [sys.executable, "-m", "raymerge", "merge", "--base", str(zero_shot)]
    for path in experts:
        command += ["--expert", f"{path.stem}={path}"]
    command += ["--method", method, "--device", "cpu", "--quiet"]
    if not isinstance(METHODS.declaration(method).alpha, FixedAlpha):
        command += ["--alpha", "1"]
    start, private, resident = time.monotonic(), 0, 0
    with (
        tempfile.TemporaryDirectory(dir=folder) as merged,  # of the model and its card
        tempfile.TemporaryFile("w+") as words,
        subprocess.Popen(
            [*command, "--output", f"{merged}/{method}.safetensors"],
            stdout=subprocess.DEVNULL,
            stderr=words,
        ) as child,
    ):
        try:
            while child.poll() is None:
                sizes = memory_of(child.pid)
                private = max(private, sizes.get("RssAnon", 0))
                resident = max(resident, sizes.get("VmHWM", 0))
                time.sleep(SAMPLE_S)
        finally:
            if child.poll() is None:
                child.terminate()
        if child.returncode:
            words.seek(0)
            raise RaymergeError(f"'raymerge merge' by {method} ended with {child.returncode}: {words.read().strip()}")
    checkpoints = sum(path.stat().st_size for path in (zero_shot, *experts))
    return Peak(method, num_tasks, checkpoints, private, resident, time.monotonic() - start)


def _noise(tower: Tower, seed: int, scale: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in state_of(tower).items()}


def _is_visual(name: str) -> bool:
    return ".visual." in name
