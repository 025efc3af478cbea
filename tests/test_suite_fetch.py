"""Fetching collections from a hub that the tests play: what is asked for, what is kept, and what is refused."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from raymerge.checkpoints import file_sha256, save_head, save_safetensors, save_state_dict
from raymerge.errors import FetchError, SuiteError
from raymerge.suite_files import drive_files, fetch_plan, hub_files
from raymerge.suite_files import fetch as suite_fetch
from raymerge.suite_files.fetch import fetch_suite
from raymerge.suite_files.hash_list import FileHash, read_hashes
from raymerge.suite_files.hub_files import HubFile, HubUnreachable
from raymerge.suites.fusionbench import expert_repo, fusionbench
from raymerge.suites.published import PublishedSuite
from raymerge.suites.tall_masks import TASKS, tall_masks

B32 = {"ViT-B-32": ["MNIST", "DTD"]}


@dataclass
class Hub:
    """Repositories as folders of a disk, in place of the Hugging Face Hub."""

    folder: Path
    is_reachable: bool = True
    listed: list[str] = field(default_factory=list)
    downloaded: list[str] = field(default_factory=list)
    before: Callable[[Path], None] = lambda path: None
    """Called with a file that has come, before it is looked at."""

    def add(self, repo: str, path: str, write: Callable[[Path], None]) -> None:
        (self.folder / repo / path).parent.mkdir(parents=True, exist_ok=True)
        write(self.folder / repo / path)

    def list_files(self, repo: str) -> list[HubFile]:
        self.listed.append(repo)
        if not self.is_reachable:
            raise HubUnreachable(f"{repo}: the hub cannot be reached.")
        root = self.folder / repo
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        large = {path: file_sha256(path) if path.suffix in (".pt", ".safetensors") else None for path in paths}
        return [HubFile(repo, str(p.relative_to(root)), p.stat().st_size, large[p], "main") for p in paths]

    def download(self, file: HubFile, folder: Path, report: Callable[[int], None]) -> Path:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self.folder / file.repo / file.path).read_bytes())
        self.downloaded.append(file.path)
        report(target.stat().st_size // 2)
        self.before(target)
        return target


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The published collection as the hub has it, with one backbone's folder in another case."""
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub_files, "list_files", made.list_files)
    monkeypatch.setattr(hub_files, "download", made.download)
    for number, (folder, backbone) in enumerate({"ViT-B-32": "ViT-B-32", "VIT-B-16": "ViT-B-16"}.items()):
        for task in ("MNIST", "DTD", "Cars"):
            made.add(
                fetch_plan.HUB_REPO,
                f"single_task/{folder}/{task}Val/nonlinear_finetuned.pt",
                lambda path, text=f"{backbone}{task}": save_state_dict(path, {text: torch.ones(3)}),
            )
            made.add(
                fetch_plan.HUB_REPO,
                f"single_task/{folder}/head_{task}Val.pt",
                lambda path, value=number: save_head(path, torch.full((2, 3), float(value))),
            )
        made.add(
            fetch_plan.HUB_REPO,
            f"single_task/{folder}/MNISTVal/nonlinear_zeroshot.pt",
            lambda path: save_state_dict(path, {"zero": torch.zeros(3)}),
        )
        for name in fetch_plan.MASKS:
            made.add(fetch_plan.HUB_REPO, f"tall_masks/{folder}/{name}", lambda path: path.write_bytes(b"\x93NUMPY"))
    made.add(fetch_plan.HUB_REPO, "README.md", lambda path: path.write_text("hello"))
    return made


def corrected(tmp_path: Path) -> PublishedSuite:
    return tall_masks("corrected", weights=tmp_path / "weights")


def files_below(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {".fetch.lock", ".raymerge-hashes.json"}


# --- what is fetched ------------------------------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched(hub, tmp_path):
    suite = corrected(tmp_path)
    told: list[tuple[str, float]] = []
    done = fetch_suite(suite, B32, report=lambda what, share: told.append((what, share)))
    assert [entry.status for entry in done] == ["fetched"] * 5
    assert files_below(suite.root) == {
        "single_task/ViT-B-32/MNISTVal/nonlinear_zeroshot.pt",
        *(f"single_task/ViT-B-32/{task}Val/nonlinear_finetuned.pt" for task in ("MNIST", "DTD")),
        *(f"single_task/ViT-B-32/head_{task}Val.pt" for task in ("MNIST", "DTD")),
    }
    for entry in done:
        source = hub.folder / fetch_plan.HUB_REPO / entry.path.relative_to(suite.root)
        assert entry.path.read_bytes() == source.read_bytes()
        assert entry.num_bytes == source.stat().st_size
    assert suite.expert_path("ViT-B-32", "DTD") == done[3].path
    assert suite.zero_shot_path("ViT-B-32") == done[0].path
    assert suite.head_path("ViT-B-32", "DTD") == done[4].path
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] <= 1


def test_folders_of_another_case_come_under_the_name_of_the_backbone(hub, tmp_path):
    suite = corrected(tmp_path)
    fetch_suite(suite, {"ViT-B-16": ["Cars"]})
    assert "single_task/ViT-B-16/CarsVal/nonlinear_finetuned.pt" in files_below(suite.root)
    assert "single_task/VIT-B-16/CarsVal/nonlinear_finetuned.pt" in hub.downloaded
    assert suite.expert_path("ViT-B-16", "Cars").is_file()


def test_masks_come_when_they_are_asked_for(hub, tmp_path):
    suite = corrected(tmp_path)
    fetch_suite(suite, {"ViT-B-16": ["Cars"]}, masks=True)
    masks = {name for name in files_below(suite.root) if name.startswith("tall_masks/")}
    assert masks == {f"tall_masks/ViT-B-16/TALL_mask_{num}task.npy" for num in (8, 14, 20)}


def test_what_is_there_and_whole_is_not_fetched_again(hub, tmp_path, monkeypatch):
    suite = corrected(tmp_path)
    fetch_suite(suite, B32)
    hub.downloaded.clear()
    monkeypatch.setattr(suite_fetch, "file_sha256", None)  # nor hashed: what was checked once is recorded
    assert [entry.status for entry in fetch_suite(suite, B32)] == ["there already"] * 5
    assert hub.downloaded == []


def test_what_others_have_downloaded_is_recognised_wherever_it_lies(hub, tmp_path):
    suite = corrected(tmp_path)
    source = hub.folder / fetch_plan.HUB_REPO / "single_task" / "ViT-B-32"
    suite.root.mkdir()
    shutil.copytree(source, suite.root / "vit-b-32")
    assert [entry.status for entry in fetch_suite(suite, B32)] == ["there already"] * 5
    assert hub.downloaded == []
    recorded = read_hashes(suite.root / ".raymerge-hashes.json")
    assert recorded["ViT-B-32/DTD/expert"] == FileHash(
        (source / "DTDVal/nonlinear_finetuned.pt").stat().st_size, file_sha256(source / "DTDVal/nonlinear_finetuned.pt")
    )


@pytest.mark.parametrize("content", [b"hello", None])
def test_another_file_is_not_overwritten(hub, tmp_path, content):
    suite = corrected(tmp_path)
    path = suite.root / "ViT-B-32" / "DTDVal" / "nonlinear_finetuned.pt"
    save_state_dict(path, {"ViT-B-32DTD": torch.full((3,), 2.0)})  # the older weights, of the same size
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FetchError) as caught:
        fetch_suite(suite, B32)
    assert f"{path}: is another file than nik-dim/tall_masks/single_task/ViT-B-32/DTDVal/nonl" in str(caught.value)
    assert "remove it, or fetch into another folder with --weights." in str(caught.value)
    assert path.is_file()


def test_the_record_is_what_verify_compares_with(hub, tmp_path):
    suite = corrected(tmp_path)
    fetch_suite(suite, B32)
    recorded = read_hashes(suite.root / ".raymerge-hashes.json")
    assert (recorded.suite, recorded.profile) == ("tall-masks", "corrected")
    content = suite.expert_path("ViT-B-32", "MNIST").read_bytes()
    assert recorded["ViT-B-32/MNIST/expert"] == FileHash(len(content), hashlib.sha256(content).hexdigest())
    assert len(recorded) == 5


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<!DOCTYPE html><html>Quota</html>", "what came is a web page; is there a quota, or is a login needed?"),
        (b"", "what came is empty"),
        (b"half", "4 bytes came, expected 1,"),
        (None, "what came has SHA-256"),
    ],
)
def test_what_is_not_whole_gets_no_name(hub, tmp_path, content, expected):
    def damage(path: Path) -> None:
        if "DTDVal/nonlinear_finetuned" in str(path):
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + b"?" if content is None else content)

    suite = corrected(tmp_path)
    hub.before = damage
    with pytest.raises(FetchError) as caught:
        fetch_suite(suite, B32)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("nik-dim/tall_masks/single_task/ViT-B-32/DTDVal/nonlinear_finetuned.pt: ")
    assert not suite.expert_path("ViT-B-32", "DTD").exists()
    assert not list(suite.root.rglob("*DTDVal/nonlinear_finetuned*")), "it would be continued"
    assert suite.expert_path("ViT-B-32", "MNIST").is_file(), "what is whole stays"
    hub.before = lambda path: None
    hub.downloaded.clear()
    done = fetch_suite(suite, B32)
    assert [entry.status for entry in done] == ["there already"] * 3 + ["fetched"] * 2
    assert not (suite.root / ".fetch").exists(), "nothing is left behind"


def test_a_file_that_cannot_be_loaded_gets_no_name(hub, tmp_path):
    hub.add(
        fetch_plan.HUB_REPO, "single_task/ViT-B-32/head_DTDVal.pt", lambda path: torch.save(torch.nn.Linear(2, 2), path)
    )
    suite = corrected(tmp_path)
    with pytest.raises(FetchError, match=r"refused, because loading it would run code: it needs torch\.nn"):
        fetch_suite(suite, B32)
    assert not (suite.root / "single_task/ViT-B-32/head_DTDVal.pt").exists()


def test_an_interrupted_fetch_is_continued(hub, tmp_path):
    def interrupt(path: Path) -> None:
        if "DTDVal" in str(path):
            path.write_bytes(path.read_bytes()[:100])
            raise KeyboardInterrupt

    suite = corrected(tmp_path)
    hub.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        fetch_suite(suite, B32)
    staged = suite.root / ".fetch/nik-dim--tall_masks/single_task/ViT-B-32/DTDVal/nonlinear_finetuned.pt"
    assert staged.stat().st_size == 100, "huggingface_hub and gdown continue from it"
    assert not (suite.root / "single_task/ViT-B-32/DTDVal").exists()
    hub.before = lambda path: None
    assert [entry.status for entry in fetch_suite(suite, B32)] == ["there already"] * 3 + ["fetched"] * 2


def test_without_a_network_what_was_fetched_is_enough(hub, tmp_path):
    suite = corrected(tmp_path)
    hub.is_reachable = False
    with pytest.raises(HubUnreachable):
        fetch_suite(suite, B32)
    hub.is_reachable = True
    fetch_suite(suite, B32)
    hub.is_reachable = False
    done = fetch_suite(suite, B32)
    assert {(entry.status, entry.is_unchecked) for entry in done} == {("there already", True)}
    with pytest.raises(HubUnreachable):
        fetch_suite(suite, {"ViT-B-32": ["MNIST", "DTD", "Cars"]})


def test_a_file_that_the_hub_lacks_is_named(hub, tmp_path):
    with pytest.raises(
        FetchError, match=r"nik-dim/tall_masks: has no single_task/ViT-B-32/SVHNVal/nonlinear_finetuned"
    ):
        fetch_suite(corrected(tmp_path), {"ViT-B-32": ["SVHN"]})


def test_two_at_once(hub, tmp_path):
    suite = corrected(tmp_path)
    suite.root.mkdir()
    with (
        filelock.FileLock(suite.root / ".fetch.lock"),
        pytest.raises(FetchError, match="another fetch into this folder"),
    ):
        fetch_suite(suite, B32)


def test_only_what_is_offered_somewhere_can_be_fetched(hub, tmp_path):
    suite = replace(corrected(tmp_path), name="own", option="own.yaml")
    with pytest.raises(SuiteError, match="suite 'own' is offered nowhere; tall-masks and fusionbench can be fetched"):
        fetch_suite(suite, B32)


# --- fusionbench ----------------------------------------------------------------------------------------------------


def test_fusionbench_has_a_repository_for_every_model(hub, tmp_path):
    def weights(path: Path) -> None:
        save_safetensors(path, {"a": torch.ones(2)}, {})

    for repo in ("tanganke/clip-vit-base-patch32_emnist_letters", "tanganke/clip-vit-base-patch32_stanford-cars"):
        hub.add(repo, "model.safetensors", weights)
        hub.add(repo, "config.json", lambda path: path.write_text("{}"))
        hub.add(repo, "training/optimizer.pt", weights)
    hub.add(
        "openai/clip-vit-base-patch32", "pytorch_model.bin", lambda path: save_state_dict(path, {"a": torch.ones(1)})
    )
    hub.add("openai/clip-vit-base-patch32", "flax_model.msgpack", lambda path: path.write_bytes(b"flax"))
    suite = fusionbench(weights=tmp_path / "weights")
    done = fetch_suite(suite, {"ViT-B-32": ["EMNIST", "Cars"]})
    assert files_below(suite.root) == {
        "openai/clip-vit-base-patch32/pytorch_model.bin",
        *(f"tanganke/clip-vit-base-patch32_{task}/{name}" for task in ("emnist_letters", "stanford-cars")
          for name in ("model.safetensors", "config.json")),
    }  # fmt: skip
    assert [entry.status for entry in done].count("not offered") == 1  # the config.json of openai's
    assert suite.source("zero-shot", "ViT-B-32") == suite.root / "openai/clip-vit-base-patch32/pytorch_model.bin"
    assert suite.source("expert", "ViT-B-32", "EMNIST") == done[2].path
    assert [entry.status for entry in fetch_suite(suite, {"ViT-B-32": ["EMNIST", "Cars"]})].count("there already") == 5


def test_every_model_has_a_repository():
    repos = {expert_repo("ViT-L-14", task) for task in TASKS}
    assert len(repos) == 20
    assert "tanganke/clip-vit-large-patch14_oxford_flowers102" in repos
    assert "tanganke/clip-vit-large-patch14_resisc45" in repos


# --- Google Drive ---------------------------------------------------------------------------------------------------


class Drive:
    """gdown, as far as it is used."""

    def __init__(self, folder: Path, files: list[str]):
        self.folder, self.files, self.arguments = folder, files, []

    def download_folder(self, *, id: str, quiet: bool, use_cookies: bool, skip_download: bool, timeout: float) -> Any:
        assert (id, quiet, skip_download) == (fetch_plan.DRIVE_FOLDERS["ViT-B-32"], True, True)
        print("gdown prints even so")
        return [type("File", (), {"id": self.id_of(path), "path": path, "local_path": ""}) for path in self.files]

    @staticmethod
    def id_of(path: str) -> str:
        return path.lstrip("./").replace("/", "~")

    def download(self, *, id: str, output: str, quiet: bool, use_cookies: bool, resume: bool) -> Any:
        self.arguments.append((id, resume))
        path = self.folder / id.replace("~", "/")
        if not path.is_file():
            raise RuntimeError("Too many users have viewed or downloaded this file recently?token=secret\nmore")
        Path(output).write_bytes(path.read_bytes())
        return output


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "drive"
    names = []
    for task in ("MNIST", "DTD"):
        save_state_dict(folder / f"{task}Val" / "nonlinear_finetuned.pt", {task: torch.ones(2)})
        save_head(folder / f"head_{task}Val.pt", torch.ones(2, 3))
        names += [f"{task}Val/nonlinear_finetuned.pt", f"head_{task}Val.pt"]
    made = Drive(folder, names)
    monkeypatch.setattr(drive_files, "_gdown", lambda: made)
    return made


def legacy(tmp_path: Path) -> PublishedSuite:
    return tall_masks("paper-legacy", weights=tmp_path / "weights")


def test_the_older_weights_come_from_google_drive(drive, tmp_path, capsys):
    suite = legacy(tmp_path)
    done = fetch_suite(suite, B32)
    assert [entry.status for entry in done] == ["not offered"] + ["fetched"] * 4, "it has no zero-shot models"
    assert all(resume for _, resume in drive.arguments)
    assert suite.expert_path("ViT-B-32", "DTD") == suite.root / "ViT-B-32/DTDVal/nonlinear_finetuned.pt"
    assert (
        suite.expert_path("ViT-B-32", "DTD").read_bytes()
        == (drive.folder / "DTDVal/nonlinear_finetuned.pt").read_bytes()
    )
    assert read_hashes(suite.root / ".raymerge-hashes.json")["ViT-B-32/DTD/head"].sha256 == file_sha256(
        drive.folder / "head_DTDVal.pt"
    )
    drive.arguments.clear()
    assert [entry.status for entry in fetch_suite(suite, B32)][1:] == ["there already"] * 4
    assert drive.arguments == []
    assert capsys.readouterr().out == ""


def test_a_folder_within_the_folder_is_no_matter(drive, tmp_path):
    (drive.folder / "checkpoints").mkdir()
    for path in list(drive.folder.iterdir()):
        if path.name != "checkpoints":
            path.rename(drive.folder / "checkpoints" / path.name)
    drive.files = [f"checkpoints/{path}" for path in drive.files]
    suite = legacy(tmp_path)
    fetch_suite(suite, B32)
    assert suite.expert_path("ViT-B-32", "DTD") == suite.root / "ViT-B-32/DTDVal/nonlinear_finetuned.pt"


def test_a_path_cannot_leave_the_folder(drive, tmp_path):
    drive.files = [f"../../../{path}" for path in drive.files]
    fetch_suite(legacy(tmp_path), B32)
    assert {path.name for path in tmp_path.iterdir()} == {"drive", "weights"}


def test_a_quota_is_one_sentence(drive, tmp_path):
    (drive.folder / "head_MNISTVal.pt").unlink()
    with pytest.raises(FetchError) as caught:
        fetch_suite(legacy(tmp_path), B32)
    folder = f"https://drive.google.com/drive/folders/{fetch_plan.DRIVE_FOLDERS['ViT-B-32']}"
    assert str(caught.value) == (
        "Google Drive, tall_masks checkpoints ViT-B-32/head_MNISTVal.pt: cannot be fetched (Too many users have viewed "
        "or downloaded this file recently); Drive has quotas, so try again tomorrow. "
        f"Or download it in a browser from {folder} to {tmp_path / 'weights' / 'ViT-B-32' / 'head_MNISTVal.pt'}."
    )


def test_without_a_network_drive_is_one_sentence(drive, tmp_path, monkeypatch):
    def unreachable(**arguments: Any) -> Any:
        raise ConnectionError("HTTPSConnectionPool(host='drive.google.com', port=443): Max retries exceeded with url")

    monkeypatch.setattr(drive, "download_folder", unreachable)
    with pytest.raises(FetchError) as caught:
        fetch_suite(legacy(tmp_path), B32)
    expected = "Google Drive, tall_masks checkpoints ViT-B-32: cannot be fetched (ConnectionError); is there a network?"
    assert str(caught.value) == expected


def test_without_gdown_one_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(
        FetchError, match=r"gdown, which is not installed; 'pip install \"raymerge\[drive\]\"' installs it"
    ):
        fetch_suite(legacy(tmp_path), B32)
