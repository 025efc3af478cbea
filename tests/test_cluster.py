"""What a sweep asks of a cluster that grows on demand, and the token of one that it starts."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError

from raymerge import cluster
from raymerge.errors import CheckpointError, EvaluationError
from raymerge.sweep_spec import ResourceSettings


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every request for room, in order."""
    requests: list[Any] = []
    monkeypatch.setattr(cluster, "request_resources", lambda *, bundles: requests.append(bundles))
    return requests


def test_room_is_requested_while_the_sweep_runs_and_not_afterwards(asked: list[Any]) -> None:
    resources = ResourceSettings(evaluators=3, cpus_per_evaluator=2, gpus_per_evaluator=0.5)

    def interrupted() -> None:
        with cluster.room_requested(resources):
            assert asked == [[{"CPU": 2, "GPU": 0.5}] * 3]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert asked[1:] == [[]], "otherwise machines would stay that nobody needs"


def test_as_many_evaluators_as_fit_need_no_request(asked: list[Any]) -> None:
    with cluster.room_requested(ResourceSettings(evaluators="auto")):
        pass
    assert asked == []


def test_a_cluster_that_cannot_be_asked_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*, bundles: Any) -> None:
        raise RuntimeError("Ray is not initialized yet")

    monkeypatch.setattr(cluster, "request_resources", refuse)
    with cluster.room_requested(ResourceSettings(evaluators=1)):
        pass


def test_an_update_that_is_lost_for_good_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray merges again what was lost with a node, where it likes."""
    cause = CheckpointError("/x/expert.pt: no such file")
    errors = iter([RayTaskError("merge", "Traceback ...", cause).as_instanceof_cause(), OutOfMemoryError("2 killed")])

    def get(references: Any) -> Any:
        raise next(errors)

    monkeypatch.setattr(cluster.ray, "wait", lambda references, num_returns, timeout: (references, []))
    monkeypatch.setattr(cluster.ray, "get", get)
    for reason in ("/x/expert.pt: no such file", "2 killed"):
        with pytest.raises(EvaluationError) as caught:
            cluster._fetch(["reference"])
        assert str(caught.value) == (
            f"the merged model was lost with a node and could not be merged again ({reason}). Start the same command "
            "again: it repeats what failed"
        )


def token_of(home: Path) -> Path:
    return home / ".ray" / "auth_token"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_token_is_made_once_and_for_its_owner_alone(home: Path) -> None:
    cluster._make_token()
    made = token_of(home).read_text()
    assert len(made) == 64
    assert stat.S_IMODE(token_of(home).stat().st_mode) == 0o600
    cluster._make_token()
    assert token_of(home).read_text() == made
    assert [path.name for path in token_of(home).parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_TOKEN_PATH", "/t"), ("RAY_AUTH_MODE", "disabled")]
)
def test_no_token_is_made_where_there_is_one_or_none_is_wanted(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    cluster._make_token()
    assert not token_of(home).parent.exists()


def test_where_home_cannot_be_written_to_the_token_is_that_of_the_process(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".ray").touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that it is gone after the test
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    cluster._make_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.ray
@pytest.mark.parametrize("is_writable", [True, False])
def test_ray_takes_the_token(home: Path, is_writable: bool) -> None:
    script = """
from raymerge import cluster
with cluster.connected(None):
    import ray
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
"""
    if not is_writable:
        (home / ".ray").touch()
    subprocess.run([sys.executable, "-c", script], env=dict(os.environ), check=True, timeout=300)
    if not is_writable:
        return
    assert stat.S_IMODE(token_of(home).stat().st_mode) == 0o600
