"""huggingface_hub itself, against a server on this machine: listing, fetching, continuing, and what goes wrong."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from raymerge.checkpoints import file_sha256, save_head, save_state_dict
from raymerge.errors import FetchError
from raymerge.suite_files import hub_files
from raymerge.suite_files.downloads import in_background, without_secrets
from raymerge.suite_files.fetch_plan import HUB_REPO
from raymerge.suite_files.hub_files import HubUnreachable

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_verysecretverysecretverysecretxx"


class Server(ThreadingHTTPServer):
    """The parts of the Hugging Face Hub that a download needs; its one repository is a folder."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.status = 200
        """Of listings."""
        self.cut: set[str] = set()
        """Names of files of which the first answer breaks off."""
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[assignment]

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/") and "/tree/" not in path:
            files = sorted(file for file in self.server.folder.rglob("*") if file.is_file())
            siblings = [
                {
                    "rfilename": str(file.relative_to(self.server.folder)),
                    "size": file.stat().st_size,
                    "blobId": "0" * 40,
                    "lfs": {"sha256": file_sha256(file), "size": file.stat().st_size, "pointerSize": 134},
                }
                for file in files
            ]
            body = json.dumps({"id": HUB_REPO, "sha": COMMIT, "siblings": siblings}).encode()
            headers = {"Content-Type": "application/json"}
            headers |= {"X-Error-Code": "RepoNotFound"} if self.server.status == 401 else {}
            return self.send(self.server.status, body, with_body, headers)
        found = re.fullmatch(rf"/{HUB_REPO}/resolve/{COMMIT}/(.*)", path)
        file = self.server.folder / found[1] if found else None
        if file is None or not file.is_file():
            return self.send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
        content, etag = file.read_bytes(), file_sha256(file)
        about = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        if wanted:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if with_body and file.name in self.server.cut:
            self.server.cut.discard(file.name)
            self.send(206 if wanted else 200, content[start:], True, about, sent=len(content) // 2)
            self.close_connection = True
            return None
        return self.send(206 if wanted else 200, content[start:], with_body, about)

    def send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:sent])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With the files of one task."""
    folder = tmp_path / "hub" / "single_task" / "ViT-B-32"
    generator = torch.Generator().manual_seed(0)
    state = {"a": torch.randn(6_000_000, generator=generator)}  # 24 MB: it is received in parts of 10
    save_state_dict(folder / "MNISTVal" / "nonlinear_finetuned.pt", state)
    save_state_dict(folder / "MNISTVal" / "nonlinear_zeroshot.pt", {"a": torch.zeros(3)})
    save_head(folder / "head_MNISTVal.pt", torch.ones(2, 3))
    made = Server(tmp_path / "hub")
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def fetch(tmp_path: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`raymerge suite fetch` of one task, in a process of its own: huggingface_hub reads its settings once."""
    command = [sys.executable, "-m", "raymerge", "suite", "fetch", "--suite", "tall-masks", "--profile", "corrected"]
    command += ["--weights", str(tmp_path / "weights"), "--backbone", "ViT-B-32", "--tasks", "MNIST", *args]
    own = {"RAYMERGE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    own |= {"PYTHONPATH": str(ROOT), "NO_PROXY": "*", **env}
    return subprocess.run(
        command, env={**os.environ, **own}, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )


def test_files_come_over_http_and_a_download_that_broke_off_is_continued(server, tmp_path):
    server.cut = {"nonlinear_finetuned.pt"}
    done = fetch(tmp_path, "--json", HF_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["files"]
    assert [(row["kind"], row["status"]) for row in rows] == [(k, "fetched") for k in ("zero-shot", "expert", "head")]
    for row in rows:
        source = server.folder / Path(row["file"]).relative_to(tmp_path / "weights")
        assert Path(row["file"]).read_bytes() == source.read_bytes()
    ranges = [r for method, path, r in server.requests if method == "GET" and "nonlinear_finetuned" in path]
    assert len(ranges) >= 2, "asked for twice"
    assert re.fullmatch(r"bytes=[1-9]\d*-", ranges[-1] or ""), "the second time for the rest"
    assert not (tmp_path / "weights" / ".fetch").exists()
    assert TOKEN not in done.stdout + done.stderr


def test_offline_it_fails_at_once_and_cleanly(tmp_path):
    started = time.monotonic()
    done = fetch(tmp_path, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: nik-dim/tall_masks: HF_HUB_OFFLINE is set, and the cache in ")
    assert "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "weights").rglob("*") if path.is_file() and path.name != ".fetch.lock"]
    assert time.monotonic() - started < 60  # of which importing torch on a busy machine is most


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "nik-dim/tall_masks: there is no such repository or file, or it is private; log in with 'hf auth login'"),
        (404, "nik-dim/tall_masks: the hub answered 404: there is no such repository or file, or it is private"),
        (429, "nik-dim/tall_masks: the hub answered 429: too many requests, so wait a few minutes."),
        (503, "nik-dim/tall_masks: the hub answered 503: try again later."),
    ],
)
def test_a_hub_that_refuses(server, monkeypatch, status, expected):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    server.status = status
    with pytest.raises(FetchError) as caught:
        hub_files.list_files(HUB_REPO)
    assert str(caught.value).startswith(expected)
    assert not isinstance(caught.value, HubUnreachable)


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for _ in range(2):  # the first time packages are imported
        started = time.monotonic()
        with pytest.raises(
            HubUnreachable, match=r"nik-dim/tall_masks: the hub cannot be reached \(.*\); is there a network\?"
        ):
            hub_files.list_files(HUB_REPO)
    assert time.monotonic() - started < 5, "it is asked once"


# --- the cache in place of the hub ----------------------------------------------------------------------------------


def test_offline_the_cache_below_hf_home_is_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    blobs = tmp_path / "models--nik-dim--tall_masks" / "blobs"
    snapshot = blobs.parent / "snapshots" / COMMIT / "single_task"
    for folder in (blobs, snapshot, blobs.parent / "refs"):
        folder.mkdir(parents=True)
    (blobs.parent / "refs" / "main").write_text(COMMIT)
    (blobs / ("ab" * 32)).write_bytes(b"weights")
    (blobs / ("0" * 40)).write_bytes(b"text")
    (snapshot / "x.pt").symlink_to(blobs / ("ab" * 32))
    (snapshot / "README.md").symlink_to(blobs / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    files = {file.path: file for file in hub_files.list_files("nik-dim/tall_masks")}
    assert set(files) == {"single_task/x.pt", "single_task/README.md"}
    assert (files["single_task/x.pt"].size, files["single_task/x.pt"].sha256) == (7, "ab" * 32)
    assert files["single_task/README.md"].sha256 is None
    copied = hub_files.download(files["single_task/x.pt"], tmp_path / "out")
    assert copied == tmp_path / "out" / "single_task" / "x.pt"
    assert copied.read_bytes() == b"weights"
    assert not copied.is_symlink()
    with pytest.raises(HubUnreachable, match="has nothing of it"):
        hub_files.list_files("openai/clip-vit-base-patch32")


# --- what all downloads share ---------------------------------------------------------------------------------------


def test_work_in_the_background_gives_its_result_or_its_error(monkeypatch):
    monkeypatch.setattr("raymerge.suite_files.downloads.POLL_S", 0.01)
    waited: list[int] = []
    enough = threading.Event()

    def wait() -> None:
        waited.append(1)
        if len(waited) == 3:
            enough.set()

    assert in_background(lambda: enough.wait(60) and 7, wait) == 7
    assert len(waited) >= 3

    def fail() -> None:
        raise FetchError("no")

    with pytest.raises(FetchError, match="no"):
        in_background(fail, lambda: None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://cdn.hf.co/x.pt?Signature=abc&Key=def failed.\nmore", "GET https://cdn.hf.co/x.pt failed"),
        (f"invalid token {TOKEN} given", "invalid token hf_... given"),
        ("", "ValueError"),
    ],
)
def test_messages_hold_no_secrets(text, expected):
    assert without_secrets(ValueError(text)) == expected
