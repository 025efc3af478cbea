import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

import raymerge
from raymerge import output as output_module
from raymerge.errors import OutputError
from raymerge.folder import Folder
from raymerge.output import Output, check_output, read_manifest, write_manifest
from raymerge.result_schema import RESULTS_VERSION

SPEC = {"name": "grid", "methods": {"tsv-m": {"alpha": [1.0]}, "iso-c": {}}}
ARGUMENTS = {"sweep": "grid", "spec": SPEC, "spec_hash": "c0ffee", "suite_fingerprint": "f1f1"}


def open_output(path: Any, *, suite_fingerprint: str, **arguments: Any) -> Output:
    """Open and begin, as a sweep does."""
    output = output_module.open_output(path, **arguments)
    try:
        output.begin(suite_fingerprint)
    except BaseException:
        output.close()
        raise
    return output


SAME = {"spec_hash": "c0ffee", "suite_fingerprint": "f1f1"}


def test_the_manifest_says_what_the_rows_are(tmp_path):
    with open_output(tmp_path / "new" / "run", **ARGUMENTS) as output:
        manifest = read_manifest(output.folder)
    assert manifest is not None
    assert manifest == output.manifest
    assert manifest["results_version"] == RESULTS_VERSION
    assert {key: manifest[key] for key in ARGUMENTS} == ARGUMENTS
    assert list(manifest["spec"]["methods"]) == ["tsv-m", "iso-c"], "the order of the sweep file"
    assert manifest["versions"]["raymerge"] == raymerge.__version__
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(manifest["versions"]) == {"raymerge", "python", "torch", "ray", "optuna", "open_clip_torch", "pyarrow"}
    assert len(manifest["hosts"]) == 1
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", manifest["git_revision"] or "0" * 40)


def test_reopening_keeps_the_date_and_adds_the_host(tmp_path, monkeypatch):
    open_output(tmp_path, **ARGUMENTS).close()
    first = read_manifest(tmp_path)
    assert first is not None
    write_manifest(tmp_path, {**first, "created_at": "2020-01-01T00:00:00+00:00", "hosts": ["elsewhere"]})
    monkeypatch.setattr("platform.node", lambda: "here")
    open_output(tmp_path, **ARGUMENTS).close()
    second = read_manifest(tmp_path)
    assert second is not None
    assert second["created_at"] == "2020-01-01T00:00:00+00:00"
    assert second["hosts"] == ["elsewhere", "here"]


def test_a_folder_of_another_sweep_is_refused_untouched(tmp_path):
    open_output(tmp_path, **ARGUMENTS).close()
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(
        OutputError, match=r"'grid' with spec c0ffee, but this sweep's spec is beef\. Choose another --o"
    ):
        open_output(tmp_path, **{**ARGUMENTS, "spec_hash": "beef"})
    with pytest.raises(OutputError, match="fingerprint f1f1, but the suite is now f2f2"):
        open_output(tmp_path, **{**ARGUMENTS, "suite_fingerprint": "f2f2"})
    assert (tmp_path / "manifest.json").read_bytes() == before
    open_output(tmp_path, **ARGUMENTS).close()  # the refusals have freed the lock


@pytest.mark.parametrize("table", ["evaluations", "trials"])
def test_rows_without_a_manifest_are_refused(tmp_path, table):
    (tmp_path / table).mkdir()
    check_output(tmp_path, **SAME)
    (tmp_path / table / "part-0.parquet").touch()
    with pytest.raises(OutputError, match=r"holds results but no manifest\.json"):
        check_output(tmp_path, **SAME)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spec_hash": "c0ffee"}', "\xff"])
def test_a_manifest_that_is_none(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(OutputError, match=r"manifest\.json: is not a manifest .* Restore it, or delete"):
        open_output(tmp_path, **ARGUMENTS)


def test_results_of_a_newer_raymerge(tmp_path):
    write_manifest(tmp_path, {**ARGUMENTS, "results_version": RESULTS_VERSION + 1})
    with pytest.raises(OutputError, match=f"version {RESULTS_VERSION + 1}.* reads up to {RESULTS_VERSION}. Upgrade"):
        open_output(tmp_path, **ARGUMENTS)


def test_checking_writes_nothing(tmp_path):
    assert check_output(tmp_path / "new", **SAME) is None
    assert not (tmp_path / "new").exists()
    open_output(tmp_path, **ARGUMENTS).close()
    manifest = check_output(tmp_path, **SAME)
    assert manifest is not None
    assert manifest["sweep"] == "grid"


def test_a_path_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"is not a folder one can write to .* Choose another --output"):
            open_output(path, **ARGUMENTS)


def test_a_folder_that_refuses_writes(tmp_path, monkeypatch):
    def refuse(self, path, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Folder, "write", refuse)
    with pytest.raises(OutputError, match=r"is not a folder one can write to \(Permission denied\)"):
        open_output(tmp_path, **ARGUMENTS)
    monkeypatch.undo()
    open_output(tmp_path, **ARGUMENTS).close()


def test_one_writer_within_a_process(tmp_path):
    first = open_output(tmp_path, **ARGUMENTS)
    with pytest.raises(OutputError, match="another sweep is writing there"):
        open_output(tmp_path, **ARGUMENTS)
    first.close()
    first.close()  # closing twice is no error
    open_output(tmp_path, **ARGUMENTS).close()


def test_any_thread_may_close(tmp_path):
    output = open_output(tmp_path, **ARGUMENTS)
    thread = threading.Thread(target=output.close)
    thread.start()
    thread.join()
    open_output(tmp_path, **ARGUMENTS).close()


def test_one_writer_among_processes_and_death_frees_the_lock(tmp_path):
    script = (
        "import json, sys\n"
        "from raymerge.output import open_output\n"
        "arguments = json.loads(sys.argv[2]); del arguments['suite_fingerprint']\n"
        "output = open_output(sys.argv[1], **arguments)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, json.dumps(ARGUMENTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(OutputError, match=f"{tmp_path}: another sweep is writing there. Wait for it, stop it, or"):
            open_output(tmp_path, **ARGUMENTS)
        check_output(tmp_path, **SAME)  # looking needs no lock
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        open_output(tmp_path, **ARGUMENTS).close()


def test_an_object_store_has_no_lock():
    store = Folder(pyarrow.fs._MockFileSystem(), "bucket/run")  # type: ignore[attr-defined]
    with open_output(store, **ARGUMENTS) as output:
        assert output.location == "bucket/run"
    assert check_output(store, **SAME) == output.manifest


# --- Folder ------------------------------------------------------------------------------------------------------


def test_folder_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Folder.at("run").local == tmp_path / "run"
    assert Folder.at("~/run").local == tmp_path / "home" / "run"
    assert Folder.at(Path("run")).full("a/b") == f"{tmp_path}/run/a/b"


@pytest.mark.parametrize("kind", ["local", "store"])
def test_folder_operations(tmp_path, kind):
    filesystem = pyarrow.fs._MockFileSystem()  # type: ignore[attr-defined]
    folder = Folder.at(tmp_path / "run") if kind == "local" else Folder(filesystem, "bucket/run")
    assert not folder.exists()
    assert folder.files("a") == []
    assert folder.read("a/b/c") is None
    folder.write("a/b/c", b"1")
    folder.write("a/b/c", b"22")
    folder.write("a/d", b"3")
    assert folder.exists()
    assert folder.exists("a/b/c")
    assert folder.files("a") == ["a/b/c", "a/d"]
    assert folder.read("a/b/c") == b"22"
    folder.move("a/d", "q/r/s")
    folder.move("a/d", "q/r/t")  # gone already
    assert (folder.files("a"), folder.files("q")) == (["a/b/c"], ["q/r/s"])
    folder.delete("a/b/c")
    folder.delete("a/b/c")
    assert folder.files("a") == []


def test_a_write_that_dies_keeps_the_old_file(tmp_path, monkeypatch):
    folder = Folder.at(tmp_path)
    folder.write("x", b"old")
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        folder.write("x", b"new")
    assert folder.read("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
