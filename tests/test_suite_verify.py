"""Checking whole suites: what is present, missing and broken, and what each sentence says."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from own_suite import CLASSES, EMBED_DIM, NAME, VISION, own_suite
from published_code import modules_of_the_published_code, write_collection
from tiny_suite import tiny_suite

from raymerge import checkpoints
from raymerge.checkpoints import file_sha256, save_head
from raymerge.errors import CheckpointError, SuiteError
from raymerge.preflight import check_backbone
from raymerge.suite_files.convert import convert_suite
from raymerge.suite_files.hash_list import FileHash, HashList, hashes_for, read_hashes, write_hashes
from raymerge.suite_files.verify import Finding, extra_files, verify_suite
from raymerge.suites.published import PublishedSuite

TASKS = {NAME: list(CLASSES)}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def suite(tmp_path: Path) -> PublishedSuite:
    made = own_suite(tmp_path)
    write_collection(made.root, NAME, VISION, EMBED_DIM, CLASSES)
    return made


def path_of(suite: PublishedSuite, kind: str, task: str | None = None) -> Path:
    found = suite.source(kind, NAME, task)  # type: ignore[arg-type]
    assert found is not None
    return found


def the_problem(suite: PublishedSuite, **options: Any) -> Finding:
    (finding,) = (finding for finding in verify_suite(suite, TASKS, **options) if finding.problem)
    return finding


@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_suite(suite, quick):
    findings = verify_suite(suite, TASKS, quick=quick)
    assert [(f.kind, f.task) for f in findings] == [
        ("zero-shot", None),
        *(("expert", task) for task in CLASSES),
        *(("head", task) for task in CLASSES),
    ]
    assert {(f.status, f.origin, f.problem, f.note) for f in findings} == {("present", "source", "", "")}
    for finding in findings:
        expected = None if quick else FileHash(finding.path.stat().st_size, file_sha256(finding.path))
        assert finding.fetched == expected


def test_progress_is_told(suite):
    told: list[tuple[str, float]] = []
    verify_suite(suite, TASKS, report=lambda what, share: told.append((what, share)))
    assert told[-1] == (f"{NAME}/KMNIST/head", 1.0)
    assert [share for _, share in told] == sorted(share for _, share in told)


def test_no_more_threads_than_allowed_hold_tensors(suite, monkeypatch):
    names = set()
    real = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (names.add(self.name), real(self))[1])
    monkeypatch.setattr("raymerge.suite_files.verify.os.cpu_count", lambda: 64)
    verify_suite(suite, TASKS)
    assert 0 < len(names) <= 4


def test_files_are_closed_again(suite):
    """Twenty experts of a large model would fill the memory with the pages of their files."""
    before = checkpoints._open_unchanged.cache_info().misses
    verify_suite(suite, TASKS)
    convert_suite(suite, TASKS)
    assert checkpoints._open_unchanged.cache_info().misses == before


def test_what_is_missing_says_how_to_get_it(suite):
    path_of(suite, "expert", "SVHN").unlink()
    assert the_problem(suite).status == "missing"
    expected = suite.root / NAME / "SVHNVal" / "nonlinear_finetuned.pt"
    assert (
        the_problem(suite).problem == f"{expected}: no such file; put it there, or say in {suite.option} where it is."
    )
    write_collection(suite.root, NAME, VISION, EMBED_DIM, CLASSES)
    path_of(suite, "head", "SVHN").unlink()
    assert f"'raymerge suite heads --suite {suite.option} --backbone {NAME} --tasks SVHN'" in the_problem(suite).problem
    write_collection(suite.root, NAME, VISION, EMBED_DIM, CLASSES)
    path_of(suite, "zero-shot").unlink()
    finding = the_problem(suite)
    assert (finding.kind, finding.status) == ("zero-shot", "missing")
    assert "makes it of open_clip's weights" in finding.problem


def change_expert(suite: PublishedSuite, task: str, **changes: Any) -> None:
    path = path_of(suite, "expert", task)
    state = torch.load(path)
    for name, value in changes.items():
        state[f"model.{name}"] = value(state[f"model.{name}"])
    torch.save(state, path)


@pytest.mark.parametrize(
    ("name", "change", "expected", "is_seen_quickly"),
    [
        ("visual.proj", lambda v: v[:3], "'model.visual.proj' is (3, 16), zero-shot is (32, 16)", True),
        ("visual.proj", lambda v: v.to(torch.int64), "'model.visual.proj' has dtype torch.int64, expected", True),
        ("visual.proj", lambda v: v * torch.nan, "'model.visual.proj' has 512 NaN or infinite values", False),
        ("ln_final.weight", lambda v: v + 1e-3, "'model.ln_final.weight' differs from the zero-shot model", False),
        (
            "logit_scale",
            lambda v: v * 2,
            "'model.logit_scale' differs from the zero-shot model, but is no part of",
            False,
        ),
    ],
)
def test_broken_experts(suite, name, change, expected, is_seen_quickly):
    change_expert(suite, "SVHN", **{name: change})
    finding = the_problem(suite)
    assert (finding.kind, finding.task, finding.status) == ("expert", "SVHN", "broken")
    assert expected in finding.problem
    assert str(finding.path) in finding.problem
    quick = [f for f in verify_suite(suite, TASKS, quick=True) if f.problem]
    assert bool(quick) == is_seen_quickly


def test_every_text_leftover_is_compared(suite):
    state = torch.load(path_of(suite, "expert", "SVHN"))
    leftovers = [name for name in state if not name.startswith("model.visual.")]
    assert len(leftovers) == 6
    for name in leftovers:
        torch.save({**state, name: state[name] + 1}, path_of(suite, "expert", "SVHN"))
        assert f"'{name}' differs from the zero-shot model" in the_problem(suite).problem


def test_another_precision_is_no_difference(suite):
    zero_shot = torch.load(path_of(suite, "zero-shot"))
    half = {n: v.half().float() for n, v in zero_shot.items()}
    torch.save(half, path_of(suite, "zero-shot"))
    for task in CLASSES:
        state = torch.load(path_of(suite, "expert", task))
        still = {name: value for name, value in half.items() if not name.startswith("model.visual.")}
        torch.save({**state, **{n: v.half() for n, v in still.items()}}, path_of(suite, "expert", task))
    assert not [finding for finding in verify_suite(suite, TASKS) if finding.problem]


def test_an_expert_that_was_not_fine_tuned_is_broken(suite):
    path_of(suite, "expert", "SVHN").write_bytes(path_of(suite, "zero-shot").read_bytes())
    assert "expert 'SVHN' is the zero-shot model itself" in the_problem(suite).problem


def test_a_zero_shot_model_of_another_backbone(suite):
    path = path_of(suite, "zero-shot")
    state = torch.load(path)
    del state["model.visual.ln_pre.bias"]
    torch.save(state, path)
    findings = verify_suite(suite, TASKS)
    problem = "'model.visual.ln_pre.bias' is missing, small has (32,). Is it of another backbone?"
    assert findings[0].problem.endswith(problem)
    assert [f.status for f in findings[1:]] == ["present"] * 6, "experts are checked by themselves"


def test_files_of_another_format_say_which_command_converts_them(suite):
    for path in [path_of(suite, "zero-shot"), *(path_of(suite, "expert", task) for task in CLASSES)]:
        torch.save({name.removeprefix("model."): value for name, value in torch.load(path).items()}, path)
    findings = verify_suite(suite, TASKS)
    assert [f.status for f in findings] == ["broken"] * 4 + ["present"] * 3
    expected = (
        f"has the names of open-clip, which are not read; 'raymerge suite convert --suite {suite.argument}' makes"
    )
    assert all(expected in f.problem for f in findings[:4])
    with pytest.raises(CheckpointError, match=r"no name begins with 'model\.visual\.', as those of published files do"):
        check_backbone(suite, NAME)
    convert_suite(suite, TASKS)
    assert {f.status for f in verify_suite(suite, TASKS)} == {"present"}


@pytest.mark.parametrize(
    ("weight", "normalize", "expected"),
    [
        (torch.ones(11, EMBED_DIM), True, "the head is (11, 16), expected (10, 16)"),
        (torch.ones(10, 8), True, "the head is (10, 8), expected (10, 16)"),
        (torch.ones(10, EMBED_DIM), False, "not a head with weight, bias and normalize=True"),
        (torch.full((10, EMBED_DIM), torch.inf), True, "the head has NaN or infinite values"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_broken_heads(suite, weight, normalize, expected, quick):
    with modules_of_the_published_code() as code:
        torch.save(code.ClassificationHead(normalize, weight), path_of(suite, "head", "SVHN"))
    finding = the_problem(suite, quick=quick)
    assert (finding.kind, finding.task, finding.status) == ("head", "SVHN", "broken")
    assert expected in finding.problem


def test_a_head_of_a_task_whose_classes_are_not_known_yet(tmp_path):
    suite = own_suite(tmp_path, ["MNIST", {"name": "Mine", "folder": "mine"}])
    write_collection(suite.root, NAME, VISION, EMBED_DIM, {"MNIST": 10, "Mine": 3})
    assert {f.status for f in verify_suite(suite, {NAME: ["MNIST", "Mine"]})} == {"present"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "is a web page, expected a checkpoint. Fetch it again."),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is the pointer of a large file, not the file, expected"),
        (b"hello, hello, hello", "truncated or not a checkpoint (KeyError). Fetch it again."),
    ],
)
def test_what_downloads_give_instead_of_files(suite, content, expected):
    path_of(suite, "expert", "SVHN").write_bytes(content)
    assert expected in the_problem(suite).problem


# --- conversions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_converted_files_are_named_and_compared_with_their_sources(suite, quick):
    convert_suite(suite, TASKS)
    findings = verify_suite(suite, TASKS, quick=quick)
    assert {(f.status, f.origin) for f in findings} == {("present", "converted")}
    if not quick:  # the hashes are those of what was fetched
        assert findings[1].fetched == FileHash(
            path_of(suite, "expert", "MNIST").stat().st_size, file_sha256(path_of(suite, "expert", "MNIST"))
        )


def test_a_stale_conversion_is_broken_where_it_would_be_read(suite):
    convert_suite(suite, TASKS)
    path = path_of(suite, "expert", "SVHN")
    time = path.stat().st_mtime_ns
    change_expert(suite, "SVHN", **{"visual.proj": lambda v: v + 1})
    os.utime(path, ns=(time, time))  # so that nothing but the content tells
    finding = the_problem(suite)
    assert (finding.status, finding.origin) == ("broken", "converted")
    assert f"was converted from another file than {path} is now; 'raymerge suite convert --suite" in finding.problem


def test_a_stale_conversion_that_is_not_read_is_a_note(suite):
    convert_suite(suite, TASKS)
    change_expert(suite, "SVHN", **{"visual.proj": lambda v: v + 1})
    os.utime(path_of(suite, "expert", "SVHN"), (2e9, 2e9))
    (finding,) = (f for f in verify_suite(suite, TASKS) if f.note)
    assert (finding.task, finding.status, finding.origin) == ("SVHN", "present", "source")
    assert "is of an older file and is not read" in finding.note


def test_sources_that_were_removed_are_known_by_what_was_recorded(suite):
    before = {f.key: f.fetched for f in verify_suite(suite, TASKS)}
    convert_suite(suite, TASKS)
    for path in suite.root.rglob("*.pt"):
        path.unlink()
    findings = verify_suite(suite, TASKS)
    assert {f.key: f.fetched for f in findings} == before
    known = HashList("own", "file", {**before, f"{NAME}/SVHN/expert": FileHash(1, "0" * 64)}, "list.json")  # type: ignore[dict-item]
    assert "by what it was converted from: has SHA-256" in the_problem(suite, known=known).problem


# --- lists of hashes ------------------------------------------------------------------------------------------------


def test_lists_of_two_machines(suite, tmp_path):
    """Where the folders differ, and one has converted what the other has not."""
    hashes = {f.key: f.fetched for f in verify_suite(suite, TASKS) if f.fetched}
    write_hashes(tmp_path / "list.json", HashList("own", "file", hashes))
    known = read_hashes(tmp_path / "list.json")
    assert known.files == hashes
    assert set(known) == {f"{NAME}/zero-shot", *(f"{NAME}/{t}/{k}" for t in CLASSES for k in ("expert", "head"))}
    other = own_suite(tmp_path / "other")
    (other.root).mkdir()
    os.replace(suite.root / NAME, other.root / NAME.upper())  # noqa: PTH105
    convert_suite(other, TASKS)
    assert not [f.problem for f in verify_suite(other, TASKS, known=known) if f.problem]
    change_expert(other, "SVHN", **{"visual.proj": lambda v: v + 1})
    convert_suite(other, TASKS, force=True)
    finding = the_problem(other, known=known)
    assert (finding.key, finding.status) == (f"{NAME}/SVHN/expert", "broken")
    assert f"{tmp_path / 'list.json'} says {known[f'{NAME}/SVHN/expert'].sha256[:12]}..." in finding.problem


def test_sizes_are_compared_even_quickly(suite):
    known = HashList("own", "file", {f"{NAME}/SVHN/head": FileHash(5, "0" * 64)})
    finding = the_problem(suite, known=known, quick=True)
    assert "bytes, the list says 5." in finding.problem


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "suite": "a", "profile": "b"}'])
def test_other_files_are_no_lists(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SuiteError, match=r"x\.json: is no list of hashes"):
        read_hashes(tmp_path / "x.json")
    with pytest.raises(SuiteError, match=r"cannot be read \(No such file"):
        read_hashes(tmp_path / "none.json")


def test_the_list_of_what_was_fetched_is_the_usual_one(suite, tmp_path):
    assert hashes_for(suite, None) is None
    write_hashes(suite.root / ".raymerge-hashes.json", HashList("own", "file", {}))
    assert hashes_for(suite, None) == read_hashes(suite.root / ".raymerge-hashes.json")
    write_hashes(tmp_path / "x.json", HashList("tall-masks", "corrected", {}))
    with pytest.raises(SuiteError, match=r"lists files of tall-masks \(corrected\), the suite is own \(file\)"):
        hashes_for(suite, tmp_path / "x.json")


# --- the rest -------------------------------------------------------------------------------------------------------


def test_other_files_are_listed(suite):
    folder = suite.root / NAME
    (folder / "notes.txt").write_text("hello")
    (folder / "SVHNVal" / "nonlinear_zeroshot.pt").write_bytes(b"another copy")
    (folder / "DTDVal").mkdir()
    (folder / "DTDVal" / "nonlinear_finetuned.pt").write_bytes(b"of another suite")
    assert extra_files(suite, [NAME]) == [
        folder / "DTDVal" / "nonlinear_finetuned.pt",
        folder / "SVHNVal" / "nonlinear_zeroshot.pt",
        folder / "notes.txt",
    ]
    assert not [f.problem for f in verify_suite(suite, TASKS) if f.problem], "they do no harm"


def test_a_suite_that_raymerge_wrote(tmp_path):
    suite = tiny_suite(tmp_path / "tiny", num_tasks=2, images=4)
    backbone = next(iter(suite.backbones))
    tasks = {backbone: [task.name for task in suite.tasks]}
    assert {f.status for f in verify_suite(suite, tasks)} == {"present"}
    save_head(suite.head_path(backbone, "Task1"), torch.ones(4, 3))
    suite.expert_path(backbone, "Task0").unlink()
    problems = {f.key: f.status for f in verify_suite(suite, tasks) if f.problem}
    assert problems == {f"{backbone}/Task0/expert": "missing", f"{backbone}/Task1/head": "broken"}
