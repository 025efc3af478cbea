import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

import raymerge
from raymerge import lease
from raymerge import output as output_module
from raymerge.errors import OutputError
from raymerge.folder import Folder, _bounded_uri, _s3_options, reason, without_secrets
from raymerge.output import Output, check_output, read_manifest, write_manifest
from raymerge.output_lock import holder
from raymerge.provenance import occupancy_line
from raymerge.records import ServiceStats
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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.EACCES, r"is not a folder one can write to \(Permission denied\)\. Choose another --output"),
        (errno.ENOSPC, r"is full \(No space left on device\)\. Make room there and start the same sweep again"),
        (errno.EDQUOT, r"is full \(Disk quota exceeded\)\. Make room there"),
    ],
)
def test_a_folder_that_refuses_writes(tmp_path, monkeypatch, error, said):
    def refuse(self, path, data):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Folder, "write", refuse)
    with pytest.raises(OutputError, match=said):
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
    holder_process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, json.dumps(ARGUMENTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder_process:
        assert holder_process.stdout is not None
        assert holder_process.stdout.readline() == "locked\n"
        with pytest.raises(OutputError, match=f"process {holder_process.pid} on .*, since .*Wait for it, s"):
            open_output(tmp_path, **ARGUMENTS)
        check_output(tmp_path, **SAME)  # looking needs no lock
        found = holder(tmp_path)
        assert found is not None
        assert (found.host, found.pid) == (platform.node(), holder_process.pid)
        holder_process.send_signal(signal.SIGKILL)
        holder_process.wait()
        assert holder(tmp_path) is None
        open_output(tmp_path, **ARGUMENTS).close()


def test_asking_for_the_holder_creates_nothing_and_keeps_nobody_out(tmp_path):
    assert holder(tmp_path / "nowhere") is None
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    with open_output(tmp_path, **ARGUMENTS):
        assert holder(tmp_path) == holder(f"file://{tmp_path}")
        (tmp_path / ".lock").write_text("not json")
        assert str(holder(tmp_path)) == "an unknown process"
        with pytest.raises(OutputError, match=r"another sweep is writing there \(an unknown process\)"):
            open_output(tmp_path, **ARGUMENTS)
    assert holder(tmp_path) is None


# --- lease -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch) -> Folder:
    """A folder whose filesystem is not the local one, and leases that nobody has to wait for."""
    for name in ("SETTLE_S", "WATCH_S"):
        monkeypatch.setattr(lease, name, 0.01)
    return Folder(pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem()), "bucket/run")


def stored_lease(store: Folder) -> dict[str, Any]:
    return json.loads(store.read(".lease.json") or b"")


def store_lease(store: Folder, *, age_s: float, **changes: Any) -> dict[str, Any]:
    """Write the lease of a driver elsewhere."""
    renewed_at = datetime.fromtimestamp(time.time() - age_s, UTC).isoformat()
    found = {"id": "other", "host": "elsewhere", "pid": 7, "since": "long ago", "renewed_at": renewed_at, **changes}
    store.write(".lease.json", json.dumps(found).encode())
    return found


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "nothing happened for long"
        time.sleep(0.01)


def test_a_lease_keeps_a_second_driver_out(store):
    with open_output(store, **ARGUMENTS) as output:
        assert output.location == "bucket/run"
        found = stored_lease(store)
        assert (found["host"], found["pid"]) == (platform.node(), os.getpid())
        assert holder(store) == lease.Holder(found["host"], found["pid"], found["since"])
        message = (
            rf"another sweep is writing there \(process {os.getpid()} on .*\)\. .*, the folder is free in [89]\d s"
        )
        with pytest.raises(OutputError, match=message):
            open_output(store, **ARGUMENTS)
        assert stored_lease(store) == found, "the refused driver has left it alone"
        output.check()
    assert check_output(store, **SAME) == output.manifest
    assert store.files("") == ["manifest.json"], "removed on close, and no temporary file"
    assert holder(store) is None
    open_output(store, **ARGUMENTS).close()


def test_a_lease_is_renewed(store, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(lease, "now", lambda: datetime.now(UTC).isoformat())
    with open_output(store, **ARGUMENTS):
        first = stored_lease(store)
        wait_until(lambda: stored_lease(store)["renewed_at"] > first["renewed_at"])
        assert {**stored_lease(store), "renewed_at": None} == {**first, "renewed_at": None}


def test_a_lease_of_the_dead_is_taken_over(store):
    store_lease(store, age_s=lease.STALE_S - 10)
    assert str(holder(store)) == "process 7 on elsewhere, since long ago"
    with pytest.raises(OutputError, match="process 7 on elsewhere, since long ago"):
        open_output(store, **ARGUMENTS)
    store_lease(store, age_s=lease.STALE_S + 10)
    assert holder(store) is None
    with open_output(store, **ARGUMENTS):
        assert stored_lease(store)["pid"] == os.getpid()


def test_a_lease_that_only_looks_stale(store, monkeypatch):
    """The clock of its owner is wrong, but it is being renewed."""
    store_lease(store, age_s=1000)
    monkeypatch.setattr("time.sleep", lambda seconds: store_lease(store, age_s=990))
    with pytest.raises(OutputError, match="process 7 on elsewhere"):
        open_output(store, **ARGUMENTS)
    assert stored_lease(store)["id"] == "other"


def test_the_last_of_two_that_want_a_lease_gets_it(store, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: store_lease(store, age_s=0))
    with pytest.raises(OutputError, match="process 7 on elsewhere"):
        open_output(store, **ARGUMENTS)
    assert stored_lease(store)["id"] == "other"


def test_an_interrupt_while_a_lease_is_taken_leaves_none(store, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_output(store, **ARGUMENTS)
    assert store.files("") == []


@pytest.mark.skipif(lease._machine() is None, reason="process ids cannot be told apart without /proc")
def test_a_process_of_this_machine_that_has_ended_holds_nothing(store):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    store_lease(store, age_s=0, pid=ended.pid, machine="another")
    assert holder(store) is not None
    store_lease(store, age_s=0, pid=os.getpid(), machine=lease._machine())
    assert holder(store) is not None
    store_lease(store, age_s=0, pid=ended.pid, machine=lease._machine())
    assert holder(store) is None
    open_output(store, **ARGUMENTS).close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_lease_that_is_none(store, content):
    store.write(".lease.json", content)
    assert holder(store) is None
    open_output(store, **ARGUMENTS).close()


def test_whoever_lost_the_lease_writes_nothing_any_more(store, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    with open_output(store, **ARGUMENTS) as output:
        written = store.read("manifest.json")

        def is_lost() -> bool:
            try:
                output.check()
            except OutputError:
                return True
            if stored_lease(store).get("id") != "other":  # a heartbeat that had looked before was still to write
                store_lease(store, age_s=0)
            return False

        wait_until(is_lost)
        message = "bucket/run: process 7 on elsewhere, since long ago writes there now, so this sweep has stopped"
        with pytest.raises(OutputError, match=message):
            output.check()
        with pytest.raises(OutputError, match=message):
            output.start_run()
        assert store.read("manifest.json") == written
    assert stored_lease(store)["id"] == "other", "closing leaves the lease of another alone"


def test_a_driver_that_slept_looks_before_it_writes(store, monkeypatch):
    with open_output(store, **ARGUMENTS) as output:  # the next heartbeat is far away
        store_lease(store, age_s=0)
        output.check()
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + lease.STALE_S + 1)
        with pytest.raises(OutputError, match="process 7 on elsewhere"):
            output.check()


def test_a_manifest_is_not_written_on_faith(store):
    with open_output(store, **ARGUMENTS) as output:  # the next heartbeat is far away
        written = store.read("manifest.json")
        store_lease(store, age_s=0)
        output.check()
        with pytest.raises(OutputError, match="process 7 on elsewhere"):
            output.start_run()
        assert store.read("manifest.json") == written


def test_a_store_that_is_away_for_long(store, monkeypatch):
    with open_output(store, **ARGUMENTS) as output:
        monkeypatch.setattr(Folder, "read", lambda self, path: (_ for _ in ()).throw(OSError("no answer")))
        output.check()
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + lease.STALE_S + 1)
        with pytest.raises(OutputError, match=r"bucket/run: could not be reached for 90 s \(no answer\)"):
            output.check()
        monkeypatch.undo()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_local_filesystem_without_locks_gets_a_lease(tmp_path, store, monkeypatch, number):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with open_output(tmp_path / "x", **ARGUMENTS):
        assert (tmp_path / "x" / ".lease.json").exists()
        found = holder(tmp_path / "x")
        assert found is not None
        assert found.pid == os.getpid()
        with pytest.raises(OutputError, match="another sweep is writing there"):
            open_output(tmp_path / "x", **ARGUMENTS)
    assert not (tmp_path / "x" / ".lease.json").exists()


# --- runs --------------------------------------------------------------------------------------------------------


def test_the_manifest_knows_every_driver(tmp_path):
    nodes = [{"id": "n1", "host": "h", "ip": "10.0.0.1", "cpus": 4.0, "gpus": 0.0, "devices": [], "versions": {}}]
    with open_output(tmp_path, **ARGUMENTS) as output:
        output.start_run(address="auto", nodes=nodes)
        (running,) = (read_manifest(tmp_path) or {})["runs"]
        output.end_run("interrupted", ServiceStats(num_evaluators=2, images=90, busy_s=5.0004, present_s=10.0))
        output.end_run("finished")  # too late
    assert (running["host"], running["pid"]) == (platform.node(), os.getpid())
    assert (running["address"], running["nodes"]) == ("auto", nodes)
    blank = ("ended_at", "outcome", "evaluators", "images", "busy_s", "present_s")
    assert [running[key] for key in blank] == [None] * len(blank)
    with open_output(tmp_path, **ARGUMENTS) as output:
        output.start_run()
        output.end_run("finished")
    first, second = (read_manifest(tmp_path) or {})["runs"]
    assert first["ended_at"] >= first["started_at"]
    expected = {"outcome": "interrupted", "evaluators": 2, "images": 90, "busy_s": 5.0, "present_s": 10.0}
    assert first == {**running, **expected, "ended_at": first["ended_at"]}
    assert (second["outcome"], second["address"], second["nodes"], second["busy_s"]) == ("finished", None, [], None)
    assert second["id"] != first["id"]


@pytest.mark.parametrize(("error", "outcome"), [(OutputError("x"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_an_error_ends_a_run(tmp_path, error, outcome):
    def run() -> None:
        with open_output(tmp_path, **ARGUMENTS) as output:
            output.start_run()
            raise error

    with pytest.raises(type(error)):
        run()
    (run,) = (read_manifest(tmp_path) or {})["runs"]
    assert run["outcome"] == outcome
    assert run["ended_at"] is not None


def test_the_last_runs_are_kept(tmp_path):
    for _ in range(3):
        with open_output(tmp_path, **ARGUMENTS) as output:
            output.start_run()
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    ids = [run["id"] for run in manifest["runs"]]
    assert len(set(ids)) == 3
    write_manifest(tmp_path, {**manifest, "runs": [*manifest["runs"] * 17]})  # 51
    with open_output(tmp_path, **ARGUMENTS) as output:
        output.start_run()
        output.end_run("finished")
    runs = (read_manifest(tmp_path) or {})["runs"]
    assert len(runs) == 50
    assert [run["outcome"] for run in runs] == [None] * 49 + ["finished"]
    assert [run["id"] for run in runs[:49]] == (ids * 17)[2:]


def test_a_manifest_without_runs(tmp_path):
    with open_output(tmp_path, **ARGUMENTS) as output:
        manifest = dict(output.manifest)
    del manifest["runs"]
    write_manifest(tmp_path, manifest)
    with open_output(tmp_path, **ARGUMENTS) as output:
        output.start_run()
    assert len((read_manifest(tmp_path) or {})["runs"]) == 1


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ([], None),
        ([{"busy_s": None, "present_s": None, "evaluators": None}, {}], None),
        ([{"busy_s": 0.0, "present_s": 0.0, "evaluators": 1}], None),
        ([{"busy_s": 3.0, "present_s": 4.0, "evaluators": 1}], "75.0 % of the time (1 run, 1 evaluator)"),
        (
            [
                {"busy_s": 9.0, "present_s": 10.0, "evaluators": 2},
                {},
                {"busy_s": 6.0, "present_s": 10.0, "evaluators": 1},
            ],
            "75.0 % of the time (2 runs, 2 evaluators at most)",
        ),
    ],
)
def test_how_busy_the_evaluators_were(figures, line):
    assert occupancy_line(figures) == (line and f"evaluators were busy {line}")


# --- Folder ------------------------------------------------------------------------------------------------------


def test_folder_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Folder.at("run").local == tmp_path / "run"
    assert Folder.at("~/run").local == tmp_path / "home" / "run"
    assert Folder.at(Path("run")).full("a/b") == f"{tmp_path}/run/a/b"


@pytest.mark.parametrize("kind", ["local", "mock", "subtree"])
def test_folder_operations(tmp_path, kind):
    subtree = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    mock = pyarrow.fs._MockFileSystem()  # type: ignore[attr-defined]
    filesystem = {"local": pyarrow.fs.LocalFileSystem(), "mock": mock, "subtree": subtree}[kind]
    folder = Folder.at(tmp_path / "run") if kind == "local" else Folder(filesystem, "bucket/run")
    folder.make()
    folder.make()
    assert folder.exists()
    assert folder.missing_bucket is None
    filesystem.delete_dir(folder.root)
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


def test_a_write_elsewhere_that_dies_keeps_the_old_file(store, monkeypatch):
    store.write("x", b"old")
    put = Folder._put

    def half_a_put(self: Folder, path: str, data: bytes) -> None:
        put(self, path, data[:1])
        raise OSError("no")

    monkeypatch.setattr(Folder, "_put", half_a_put)
    with pytest.raises(OSError, match="no"):
        store.write("x", b"new")
    assert store.read("x") == b"old"
    assert store.files("") == ["x"]


def test_an_upload_is_not_cut_short_by_an_interrupt(monkeypatch):
    """A stream that is closed before everything was written publishes half an object: Ctrl-C must come later."""
    store = Folder(pyarrow.fs._MockFileSystem(), "bucket/run")  # type: ignore[attr-defined]
    monkeypatch.setattr(Folder, "_is_object_store", property(lambda self: True))
    store.filesystem.create_dir("bucket/run")
    put = Folder._put

    def interrupted_put(self: Folder, path: str, data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        put(self, path, data)

    monkeypatch.setattr(Folder, "_put", interrupted_put)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            store.write("x", b"all of it")
    finally:
        signal.signal(signal.SIGINT, before)
    assert store.read("x") == b"all of it"


def test_s3_is_given_a_limit(monkeypatch):
    """Nothing listens at the port of the URI."""
    monkeypatch.setattr("raymerge.folder.MAX_ATTEMPTS", 1)
    uri = "s3://me:secret@bucket/run/?endpoint_override=http://127.0.0.1:1&region=eu-north-1&allow_bucket_creation=true"
    folder = Folder.at(uri)
    assert (folder.name, folder.named("a"), folder.full("a")) == (
        "s3://bucket/run",
        "s3://bucket/run/a",
        "bucket/run/a",
    )
    assert folder.local is None
    options = _s3_options(folder.filesystem)
    assert (options["access_key"], options["secret_key"], options["region"]) == ("me", "secret", "eu-north-1")
    assert (options["endpoint_override"], options["scheme"]) == ("http://127.0.0.1:1", "https")
    assert options["allow_delayed_open"], "a small object is one request"
    message = r"^s3://bucket/run: cannot be read \(HeadObject: NETWORK_CONNECTION, .*network\.$"
    with pytest.raises(OutputError, match=message) as caught:
        read_manifest(uri)
    assert "secret" not in str(caught.value)
    with pytest.raises(
        OutputError, match=r"^s3://bucket/run: cannot be reached, or not be written to .*choose another --output"
    ):
        open_output(uri, **ARGUMENTS)
    with pytest.raises(OutputError, match=r"^s3://bucket/run: cannot be read"):
        holder(uri)


def test_the_limit_of_googles_store():
    assert _bounded_uri("gs://bucket/run") == "gs://bucket/run?retry_limit_seconds=20"
    assert _bounded_uri("gs://bucket/run?scheme=http") == "gs://bucket/run?scheme=http&retry_limit_seconds=20"
    assert _bounded_uri("gs://bucket/run?retry_limit_seconds=5") == "gs://bucket/run?retry_limit_seconds=5"
    assert _bounded_uri("s3://bucket/run") == "s3://bucket/run"


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("s3://key:secret@bucket/x?a=b", "s3://key:***@bucket/x?a=b"),
        ("s3://key:sec%2Fret@bucket/x", "s3://key:***@bucket/x"),
        ("s3://bucket/x:y@z", "s3://bucket/x:y@z"),
        ("a:b@c/d", "a:b@c/d"),
    ],
)
def test_secrets_are_not_shown(location, shown):
    assert without_secrets(location) == shown


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            OSError("x: AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
            "HeadObject: ACCESS_DENIED",
        ),
        (
            OSError("x: AWS Error UNKNOWN (HTTP status 500) during Put operation: No; Details"),
            "Put: UNKNOWN, HTTP status 500, No",
        ),
        (OSError("one\n two."), "one two"),
        (OSError("x" * 1000), "x" * 240 + "..."),
        (OSError(), "OSError"),
    ],
)
def test_reasons_are_short(error, said):
    assert reason(error) == said
