"""What a sweep asks of a cluster that grows on demand."""

from typing import Any

import pytest

from raymerge import cluster
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
