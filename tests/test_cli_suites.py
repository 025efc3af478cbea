"""`raymerge suite`: what is printed where, and with which exit code."""

import json
import re
from pathlib import Path

import pytest
import torch
from own_suite import CLASSES, EMBED_DIM, MODEL, NAME, VISION, own_suite, suite_file
from published_code import write_collection
from typer.testing import CliRunner

from raymerge import cli
from raymerge.backbones import build_clip
from raymerge.checkpoints import Checkpoint, save_state_dict
from raymerge.suite_files import hub_files
from raymerge.suite_files.hub_files import HubFile, HubUnreachable
from raymerge.suites import Backbone
from raymerge.suites.tall_masks import tall_masks


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A suite file beside its weights."""
    path = suite_file(tmp_path)
    write_collection(tmp_path / "weights", NAME, VISION, EMBED_DIM, CLASSES)
    return path


def call(*args: str):
    return CliRunner().invoke(cli.app, ["suite", *args], prog_name="raymerge", catch_exceptions=False)


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


# --- verify ---------------------------------------------------------------------------------------------------------


def test_verify_prints_a_table(collection):
    done = call("verify", "--suite", "suite.yaml")
    assert done.exit_code == 0
    assert rows_of(done.stdout) == [["(zero-shot)", "ok", ""], *([task, "ok", "ok"] for task in CLASSES)]
    assert done.stderr.splitlines()[-1] == "7 files checked (names, shapes, values and hashes): 7 present"


def test_verify_says_what_is_missing_and_broken_and_fails(collection, tmp_path):
    (tmp_path / "weights" / NAME / "SVHNVal" / "nonlinear_finetuned.pt").write_bytes(b"<html>quota</html>")
    (tmp_path / "weights" / NAME / "head_KMNISTVal.pt").unlink()
    (tmp_path / "weights" / NAME / "notes.txt").touch()
    done = call("verify", "--suite", "suite.yaml")
    assert done.exit_code == 4
    assert rows_of(done.stdout)[1:] == [["MNIST", "ok", "ok"], ["SVHN", "broken", "ok"], ["KMNIST", "ok", "missing"]]
    problems = [line for line in done.stderr.splitlines() if line.startswith("problem: ")]
    assert "is a web page, expected a checkpoint. Fetch it again." in problems[0]
    assert "'raymerge suite heads --suite suite.yaml --backbone small --tasks KMNIST' builds it." in problems[1]
    assert "1 other files lie there, which are not read: notes.txt" in done.stderr
    assert call("verify", "--suite", "suite.yaml", "--tasks", "MNIST", "--quiet").exit_code == 0


def test_verify_as_json(collection, tmp_path):
    (tmp_path / "weights" / NAME / "head_KMNISTVal.pt").unlink()
    done = call("verify", "--suite", "suite.yaml", "--json", "--quick")
    assert done.exit_code == 4
    found = json.loads(done.stdout)
    assert (found["is_whole"], found["is_quick"], found["extra"]) == (False, True, [])
    assert found["suite"] == {"name": "own", "profile": "file", "weights": str(tmp_path / "weights")}
    assert len(found["files"]) == 7
    (missing,) = (row for row in found["files"] if row["status"] != "present")
    assert (missing["kind"], missing["task"], missing["status"], missing["sha256"]) == (
        "head",
        "KMNIST",
        "missing",
        None,
    )
    assert "no such head" in missing["problem"]


def test_hashes_of_one_machine_are_compared_with_those_of_another(collection, tmp_path):
    done = call("verify", "--suite", "suite.yaml", "--write-hashes", "my list.json")
    assert done.exit_code == 0
    assert "7 hashes written; elsewhere: raymerge suite verify --hashes 'my list.json'" in done.stderr
    assert call("verify", "--suite", "suite.yaml", "--hashes", "my list.json").exit_code == 0
    write_collection(tmp_path / "weights", NAME, VISION, EMBED_DIM, {"SVHN": 10}, seed=7)
    done = call("verify", "--suite", "suite.yaml", "--tasks", "SVHN", "--hashes", "my list.json")
    assert done.exit_code == 4
    assert done.stderr.count("my list.json says ") == 3
    done = call("verify", "--suite", "suite.yaml", "--quick", "--write-hashes", "x.json")
    assert (done.exit_code, "leave one of them out" in done.stderr) == (2, True)


def test_a_suite_of_the_demo_can_be_verified():
    done = call("verify", "--suite", "demo", "--profile", "reduced", "--suite-seed", "3", "--json")
    assert done.exit_code == 4
    rows = json.loads(done.stdout)["files"]
    assert {row["status"] for row in rows} == {"missing"}
    assert len(rows) == 41


# --- convert --------------------------------------------------------------------------------------------------------


def test_convert_says_how_many_bytes(collection, tmp_path):
    done = call("convert", "--suite", "suite.yaml")
    assert done.exit_code == 0
    suite = own_suite(tmp_path)
    assert str(suite.converted) in done.stdout
    assert [row[:5] for row in rows_of(done.stdout)] == [
        [NAME, "zero-shot", "1", "converted", "38"],
        [NAME, "expert", "3", "converted", "38"],
        [NAME, "head", "3", "converted", "2"],
    ]
    size = sum(path.stat().st_size for path in suite.converted.rglob("*finetuned.safetensors"))
    assert rows_of(done.stdout)[1][5] == f"{size / 1e6:.0f} MB"
    again = call("convert", "--suite", "suite.yaml", "--tasks", "SVHN", "--json")
    found = json.loads(again.stdout)
    assert [(row["kind"], row["status"]) for row in found["files"]] == [
        (kind, "up to date") for kind in ("zero-shot", "expert", "head")
    ]
    assert found["files"][1]["file"] == str(suite.expert_path(NAME, "SVHN"))


def test_convert_to_another_folder_and_once_more(collection, tmp_path):
    assert call("convert", "--suite", "suite.yaml", "--output", "out", "--quiet").exit_code == 0
    path = tmp_path / "out" / NAME / "SVHNVal" / "nonlinear_finetuned.safetensors"
    inode = path.stat().st_ino
    assert call("convert", "--suite", "suite.yaml", "--output", "out").exit_code == 0
    assert path.stat().st_ino == inode
    assert call("convert", "--suite", "suite.yaml", "--output", "out", "--force").exit_code == 0
    assert path.stat().st_ino != inode
    assert call("convert", "--suite", "suite.yaml", "--output", "s3://x").exit_code == 2


def test_convert_says_what_is_missing_and_converts_the_rest(collection, tmp_path):
    (tmp_path / "weights" / NAME / "SVHNVal" / "nonlinear_finetuned.pt").unlink()
    done = call("convert", "--suite", "suite.yaml")
    assert done.exit_code == 4
    assert [row[2:4] for row in rows_of(done.stdout)] == [
        *(["1", "converted"], ["2", "converted"], ["1", "missing"], ["3", "converted"])
    ]
    assert f"problem: {NAME}/SVHN: no expert file under {tmp_path / 'weights'}" in done.stderr


def test_fusionbench_says_that_its_letters_are_others(tmp_path):
    done = call("convert", "--suite", "fusionbench", "--weights", "none", "--tasks", "EMNIST", "--backbone", "ViT-B-32")
    assert done.exit_code == 4
    assert "error: " in done.stderr
    from raymerge.suite_files import views as suite_views
    from raymerge.suites.fusionbench import fusionbench

    (note,) = suite_views.notes_on(fusionbench(), {"ViT-B-32": ["EMNIST"]})
    assert note == "fusionbench: its EMNIST is letters (26 classes), another task than the digits of tall-masks"
    assert suite_views.notes_on(fusionbench(), {"ViT-B-32": ["MNIST"]}) == []
    assert suite_views.notes_on(tall_masks(), {"ViT-B-32": ["EMNIST"]}) == []


# --- heads ----------------------------------------------------------------------------------------------------------


def test_heads_are_built_and_then_there(tmp_path):
    model = build_clip(Backbone(NAME, "", model=MODEL))
    save_state_dict(tmp_path / "clip.pt", model.state_dict())
    suite_file(tmp_path, ["MNIST"], backbone={"pretrained": "clip.pt"})
    done = call("heads", "--suite", "suite.yaml")
    assert done.exit_code == 0
    path = own_suite(tmp_path, ["MNIST"], backbone={"pretrained": "clip.pt"}).head_path(NAME, "MNIST")
    assert rows_of(done.stdout) == [["MNIST", "built", str(path)]]
    assert path.is_file()
    done = call("heads", "--suite", "suite.yaml", "--json")
    assert json.loads(done.stdout)["heads"] == [
        {"backbone": NAME, "task": "MNIST", "file": str(path), "is_new": False},
    ]


def test_heads_that_cannot_be_built(collection):
    Path("weights", NAME, "head_SVHNVal.pt").unlink()
    done = call("heads", "--suite", "suite.yaml")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "error: backbone 'small' has no pretrained text tower, so no head can be built" in done.stderr


# --- fetch ----------------------------------------------------------------------------------------------------------


def test_fetch_says_what_came_and_what_to_do_next(tmp_path, monkeypatch):
    state = tmp_path / "state.pt"
    save_state_dict(state, {"a": torch.ones(400_000)})

    def listed(repo: str) -> list[HubFile]:
        names = [f"{repo}/MNISTVal/nonlinear_finetuned.pt"]
        return [HubFile(repo, name, state.stat().st_size) for name in names]

    def download(file: HubFile, folder: Path, report: object) -> Path:
        path = folder / file.path
        path.parent.mkdir(parents=True)
        path.write_bytes(state.read_bytes())
        return path

    monkeypatch.setattr(hub_files, "list_files", listed)
    monkeypatch.setattr(hub_files, "download", download)
    done = call("fetch", "--suite", "tall-masks", "--profile", "corrected", "--weights", "w", "--backbone", "ViT-B-32",
                "--tasks", "MNIST")  # fmt: skip
    assert done.exit_code == 1, "the head is not offered"
    assert "error: nik-dim/tall_masks: has no single_task/ViT-B-32/" in done.stderr
    monkeypatch.setattr(hub_files, "list_files", lambda repo: (_ for _ in ()).throw(HubUnreachable("no network.")))
    done = call("fetch", "--suite", "fusionbench", "--weights", "w", "--tasks", "MNIST", "--backbone", "ViT-B-32")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith("error: no network.\n")


def test_fetch_counts_and_names_the_next_command(tmp_path, monkeypatch):
    state = tmp_path / "state.pt"
    save_state_dict(state, {"a": torch.ones(400_000)})
    monkeypatch.setattr(hub_files, "list_files", lambda repo: [HubFile(repo, "pytorch_model.bin")])

    def download(file: HubFile, folder: Path, report: object) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(state.read_bytes())
        return folder / file.path

    monkeypatch.setattr(hub_files, "download", download)
    arguments = ["fetch", "--suite", "fusionbench", "--weights", "w", "--tasks", "EMNIST", "--backbone", "ViT-B-32"]
    done = call(*arguments)
    assert done.exit_code == 0
    assert rows_of(done.stdout) == [["ViT-B-32", "2", "3 MB", "0", "2"]]
    assert "note: fusionbench: its EMNIST is letters" in done.stderr
    weights = tmp_path / "w"
    assert done.stderr.endswith(f"next: raymerge suite convert --suite fusionbench --profile hub --weights {weights}\n")
    assert rows_of(call(*arguments).stdout) == [["ViT-B-32", "0", "0 MB", "2", "2"]]
    rows = json.loads(call(*arguments, "--json").stdout)["files"]
    assert [row["status"] for row in rows] == ["there already", "not offered"] * 2
    assert Checkpoint(Path(rows[0]["file"])).names == ["a"]


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fetch", "convert", "heads"])
def test_suites_that_raymerge_makes_are_not_for_these_commands(command):
    done = call(command, "--suite", "demo")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "error: suite 'demo' has all its files in its own folder, which raymerge writes;" in done.stderr


@pytest.mark.parametrize("command", ["fetch", "convert", "verify", "heads"])
def test_unknown_names(command, tmp_path):
    suite_file(tmp_path)
    for arguments, expected in (
        (["--suite", "tal-masks"], "unknown suite 'tal-masks'. Did you mean 'tall-masks'?"),
        (["--suite", "suite.yaml", "--backbone", "smal"], "suite 'own' has no backbone 'smal'. Did you mean 'small'?"),
        (["--suite", "suite.yaml", "--tasks", "MNIST,SVNH"], "suite 'own' has no task 'SVNH'. Did you mean 'SVHN'?"),
        (["--suite", "suite.yaml", "--num-tasks", "4"], "suite 'own' has 3 tasks, --num-tasks asks for 4."),
    ):
        done = call(command, *arguments)
        assert done.exit_code in (2, 4)
        assert f"error: {expected}" in done.stderr


def test_help():
    shown = call("--help").stdout
    assert re.findall(r"^  (\w+)  ", shown, re.MULTILINE) == ["fetch", "convert", "verify", "heads"]
    for command in ("fetch", "convert", "verify", "heads"):
        assert call(command, "--help").exit_code == 0
    assert not re.search(r"\.\.\.$", shown.partition("Commands:")[2], re.MULTILINE), "no sentence is cut off"


def test_arguments_that_messages_hold_are_options_of_every_command(tmp_path):
    """`suite.argument` is what messages put after `--suite`."""
    argument = tall_masks(weights=tmp_path / "w", data=tmp_path / "d").argument.split()
    for command in ("verify", "convert", "heads", "fetch"):
        done = call(command, "--suite", *argument, "--tasks", "none")
        assert "suite 'tall-masks' has no task 'none'" in done.stderr
