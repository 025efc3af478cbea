"""`raymerge data` as a user runs it: what it prints, how it ends, and what a killed run leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torchvision
from raw_images import drawn
from raw_suite import BIRDS_TASK, damage, raw_suite, write_birds, write_mnist
from rich.filesize import decimal
from typer.testing import CliRunner

from raymerge import cli
from raymerge.data.splits import read_split
from raymerge.data.transforms import to_pixels
from raymerge.data_files.cache_record import cached
from raymerge.data_files.prepare import prepare_images
from raymerge.images import open_images
from raymerge.records import SPLITS
from raymerge.rehearsal.raw import write_raw
from raymerge.suites.published import PublishedSuite

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedSuite:
    """`suite.yaml` in the working folder, with two small datasets, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "home"))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    write_mnist(tmp_path)
    write_birds(tmp_path)
    return raw_suite(tmp_path, ["MNIST", BIRDS_TASK])


def data(*args: str, suite: str | None = "suite.yaml"):
    options = ["--suite", suite] if suite else []
    return CliRunner().invoke(cli.app, ["data", *args, *options], prog_name="raymerge", catch_exceptions=False)


def table_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


# --- prepare ---------------------------------------------------------------------------------------------------------


def size_of(suite: PublishedSuite, task: str) -> str:
    """Of its cached images; each takes 32 * 32 * 3 bytes, and its label 8."""
    size = sum(suite.images_path(task, split).stat().st_size for split in SPLITS)
    assert 0 < size - sum(len(open_images(suite.images_path(task, split))) for split in SPLITS) * 3080 < 4000
    return decimal(size)


def test_prepare(suite):
    done = data("prepare")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"Cached images of 32 pixels, in {suite.images_folder}"
    assert table_of(done.stdout) == [
        ["MNIST", "reference", "4", "21", size_of(suite, "MNIST"), "new"],
        ["Birds", "reference", "1", "12", size_of(suite, "Birds"), "new"],
    ]
    assert done.stderr.splitlines() == [
        "looking at the image cache",
        "checking datasets",
        "caching 38 images with 1 process",
    ]
    again = data("prepare", "Birds", "MNIST")
    assert [row[0::5] for row in table_of(again.stdout)] == [["Birds", ""], ["MNIST", ""]]
    assert again.stderr.endswith("2 of 2 datasets were cached already; --force caches them once more.\n")
    assert table_of(data("prepare", "MNIST", "--force").stdout)[0][-1] == "new"
    assert data("prepare", "--quiet").stderr == ""


def test_prepare_stops_at_an_image_that_is_corrupt(suite):
    path = suite.data / "birds" / "test" / "owl" / "1.png"
    damage(path)
    done = data("prepare")
    assert (done.exit_code, done.stdout) == (4, "")
    assert f"error: {path}: cannot be decoded (" in done.stderr
    assert "Traceback" not in done.stderr


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify(suite):
    done = data("verify")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"Datasets under {suite.data}; images per class are those of the test split"
    assert table_of(done.stdout) == [
        ["MNIST", "reference", "40", "4", "21", "10", "2 to 3", "drawn", "no", ""],
        ["Birds", "reference", "12", "1", "12", "3", "4", "drawn", "no", ""],
    ]
    assert "decoding 85 images with 1 process" in done.stderr
    data("prepare", "MNIST")
    assert [row[-2] for row in table_of(data("verify", "--quick").stdout)] == ["yes", "no"]


def test_verify_names_what_is_wrong(suite):
    for number in range(3):
        damage(suite.data / "birds" / "train" / "gull" / f"{number}.png")
    (suite.data / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    done = data("verify")
    assert done.exit_code == 4
    assert [(row[0], row[1], row[-1]) for row in table_of(done.stdout)] == [
        ("MNIST", "not there", "1"),
        ("Birds", "reference", "3"),
    ]
    problems = [line for line in done.stdout.splitlines()[1:] if line[:1] not in "┏┃┡│└"]
    assert problems[0].startswith(f"MNIST: not found under {suite.data}")
    assert [line.partition(":")[0] for line in problems[1:]] == [
        f"{suite.data}/birds/train/gull/{number}.png" for number in range(3)
    ]
    assert done.stderr.endswith("error: 2 of 2 datasets are not as they should be: MNIST, Birds.\n")
    assert data("verify", "Birds", "--quick").exit_code == 0


def test_verify_as_json(suite):
    damage(suite.data / "birds" / "test" / "wren" / "0.png")
    done = data("verify", "Birds", "--json", "--quiet")
    assert done.exit_code == 4
    value = json.loads(done.stdout)
    assert (value["suite"], value["data"], value["decoded"]) == (
        {"name": "mine", "profile": "file"},
        str(suite.data),
        True,
    )
    (row,) = value["rows"]
    assert row["corrupt"] == [f"{suite.data}/birds/test/wren/0.png"]
    assert row["splits"]["test"] == {"size": 12, "expected": None, "class_counts": [4, 4, 4]}
    assert (row["task"], row["layout"], row["is_cached"], len(row["problems"])) == ("Birds", "reference", False, 1)


def test_many_problems_are_not_all_printed(suite, tmp_path):
    for path in write_birds(tmp_path, per_class=5):
        damage(path)
    done = data("verify", "Birds")
    assert done.stdout.count("cannot be decoded") == 20
    assert done.stdout.endswith("Birds: and 10 more, which --json lists.\n")
    assert len(json.loads(data("verify", "Birds", "--json").stdout)["rows"][0]["corrupt"]) == 30


# --- fetch -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        print("asked")
        raise OSError("there is no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)


@pytest.mark.usefixtures("offline")
def test_fetch(suite, monkeypatch):
    done = data("fetch", "MNIST")
    assert (done.exit_code, done.stdout) == (0, "MNIST: was there, reference layout\n")
    done = data("fetch", "--data", "elsewhere")
    assert done.exit_code == 4
    assert done.stdout.splitlines() == [
        "MNIST: not fetched",
        "  torchvision.datasets.MNIST: OSError: there is no network",
        "  ylecun/mnist: OSError: there is no network",
        "Birds: not fetched",
        "  By hand: Put images into birds/train/<class>/, birds/test/<class>/.",
    ]
    assert done.stderr.splitlines()[:2] == ["MNIST: getting it from torchvision.datasets.MNIST", "asked"]
    assert f"error: 2 of 2 datasets are not under {Path('elsewhere').absolute()}: MNIST, Birds. Follow" in done.stderr
    quiet = data("fetch", "MNIST", "--data", "elsewhere", "--quiet")
    assert "asked" not in quiet.stderr
    assert quiet.stderr.startswith("error: 1 of 1 datasets")

    def download(root: str, *, download: bool, train: bool) -> None:
        split = "train" if train else "test"
        write_raw("mnist", Path(root), {split: drawn(10, 30)})

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    done = data("fetch", "MNIST", "--data", "elsewhere", "--from", "torchvision")
    assert (done.exit_code, done.stdout) == (0, "MNIST: fetched, torchvision.datasets.MNIST\n")
    assert table_of(data("verify", "MNIST", "--data", "elsewhere").stdout)[0][2:5] == ["30", "3", "30"]


# --- which datasets --------------------------------------------------------------------------------------------------


def test_the_published_collection_is_the_default(suite):
    done = data("verify", "--quick", "--json", "--data", "data", suite=None)
    assert done.exit_code == 4
    value = json.loads(done.stdout)
    assert value["suite"]["name"] == "tall-masks"
    assert len(value["rows"]) == 20
    (row,) = [row for row in value["rows"] if row["task"] == "MNIST"]
    assert row["splits"]["train"]["size"] == 40
    assert row["splits"]["train"]["expected"] == 60_000
    done = data("prepare", "MNIST", "--data", "data", suite=None)
    assert done.exit_code == 4
    assert "error: MNIST: its training split has 40 images, expected 60000;" in done.stderr


def test_datasets_go_by_their_own_names_too():
    value = json.loads(data("verify", "DTD-leaky", "EMNIST-letters", "--quick", "--json", suite=None).stdout)
    assert [(row["task"], row["dataset"]) for row in value["rows"]] == [
        ("DTD", "DTD-leaky"),
        ("EMNIST-letters", "EMNIST-letters"),
    ]
    value = json.loads(data("verify", "DTD", "--quick", "--json", "--profile", "corrected", suite=None).stdout)
    assert value["rows"][0]["dataset"] == "DTD"


@pytest.mark.parametrize("command", ["fetch", "prepare", "verify"])
def test_mistakes_of_the_user(command):
    done = data(command, "Bird")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "error: 'Bird' is neither a task of suite 'mine' nor a dataset. Did you mean 'Birds'? Known: " in done.stderr
    done = data(command, suite="demo")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "error: --suite demo has no raw datasets: its images are made together with its weights.\n" in done.stderr
    assert data(command, "--data", "x", suite="demo").exit_code == 4
    assert data(command, suite="nowhere.yaml").exit_code == 4


@pytest.mark.parametrize("command", ["fetch", "prepare", "verify"])
def test_help_is_quick(command):
    code = f"""
import sys
from raymerge.cli import app
try:
    app(["data", {command!r}, "--help"], prog_name="raymerge")
except SystemExit:
    heavy = {{"torch", "ray", "pyarrow", "huggingface_hub", "numpy"}} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"Usage: raymerge data {command} [OPTIONS] [TASK]..." in done.stdout


# --- stopped by a signal ---------------------------------------------------------------------------------------------

MANY = 6000
"""Images of the test split: eleven chunks and a part, which take a while at 96 pixels."""


@pytest.fixture
def large(tmp_path: Path) -> PublishedSuite:
    write_mnist(tmp_path, num_train=60, num_test=MANY)
    return raw_suite(tmp_path, ["MNIST"], side=96)


@pytest.fixture
def start() -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a real `raymerge data prepare` with two processes, in a process group of its own."""
    started = []

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "raymerge", "data", "prepare", "--suite", "suite.yaml", "--workers", "2"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path}
        started.append(subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def chunks(suite: PublishedSuite) -> list[Path]:
    return sorted(suite.image_cache("MNIST").glob("chunks-*/[!.]*.arrow"))


def wait_for(what: Callable[[], Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.005)


def group_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes of its group that are alive."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == process.pid and state != "Z":
            alive.append(int(path.parent.name))
    return alive


def assert_goes_on(suite: PublishedSuite, kept: list[Path]) -> None:
    """The next run makes what is missing and no more, and all images are what they should be."""
    num_kept = sum(len(open_images(path)) for path in kept)
    assert 0 < num_kept < MANY
    before = {path: path.stat().st_mtime_ns for path in kept}
    stages: list[str] = []
    prepare_images(suite, ["MNIST"], workers=1, stage=lambda what: stages.append(what) or _same_times(before, what))
    assert f"caching {MANY + 6 - num_kept:,} images with " in stages[-1]
    for split in SPLITS:
        samples = read_split(suite.datasets["MNIST"], suite.data, split)
        pixels, labels = open_images(suite.images_path("MNIST", split)).read(0, len(samples))
        assert labels.tolist() == samples.labels
        for number in range(0, len(samples), 7):
            np.testing.assert_array_equal(pixels[number].numpy(), to_pixels(samples.image(number), suite.image_size))
    assert sorted(path.name for path in suite.image_cache("MNIST").iterdir()) == [
        "dataset.json",
        "test.arrow",
        "val.arrow",
    ]


def _same_times(before: dict[Path, int], what: str) -> None:
    if what.startswith("caching"):
        assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_midway_it_goes_on(large, start):
    process = start()
    wait_for(lambda: len(chunks(large)) >= 2)
    process.kill()
    process.wait()
    wait_for(lambda: not group_of(process))  # its processes end with it
    kept = chunks(large)
    assert cached(large, "MNIST") is None
    assert_goes_on(large, kept)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_ends_it_and_finished_chunks_are_kept(large, start):
    process = start()
    wait_for(lambda: len(chunks(large)) >= 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the processes that decode, too
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == (
        "interrupted: everything finished so far is saved, and the same command continues from there."
    )
    assert "Traceback" not in err
    assert not re.search(r"(?i)error|leaked", err)
    wait_for(lambda: not group_of(process))
    assert not list(large.images_folder.rglob("*.tmp"))
    assert_goes_on(large, chunks(large))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_signal_while_processes_start_is_as_quiet(large, start):
    process = start()
    wait_for(lambda: large.image_cache("MNIST").exists() and len(group_of(process)) > 2)
    os.killpg(process.pid, signal.SIGTERM)  # as a batch system does
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    wait_for(lambda: not group_of(process))
