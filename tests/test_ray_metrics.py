"""Metrics against a real node, which offers them to Prometheus; and against a Ray that refuses."""

import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from raymerge import ray_metrics
from raymerge.ray_metrics import ServiceMetrics, TrialMetrics
from raymerge.records import ServiceStats


class FakeMetric:
    """A Counter or a Gauge."""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()):
        self.name, self.tag_keys = name, tag_keys
        self.tags: dict[str, str] = {}
        self.values: list[tuple[float, dict[str, str]]] = []
        MADE[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0, "Ray refuses anything else"
        self.values.append((value, {**self.tags, **(tags or {})}))

    set = inc


class FakeGauge(FakeMetric):
    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.values.append((value, {**self.tags, **(tags or {})}))


MADE: dict[str, FakeMetric] = {}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeMetric]:
    MADE.clear()
    monkeypatch.setattr(ray_metrics, "Counter", FakeMetric)
    monkeypatch.setattr(ray_metrics, "Gauge", FakeGauge)
    return MADE


def test_by_hand(made: dict[str, FakeMetric]) -> None:
    metrics = ServiceMetrics("s")
    metrics.observe(ServiceStats(2, 1, 5, images=10, busy_s=1.0, present_s=4.0))
    metrics.observe(ServiceStats(2, 2, 3, images=10, busy_s=2.5, present_s=6.0))
    metrics.observe(ServiceStats(0, 0, 0, images=40, busy_s=2.5, present_s=6.0))
    values = {name: [value for value, _ in metric.values] for name, metric in made.items()}
    assert values == {
        "raymerge_images_total": [10, 30],
        "raymerge_shards_queued": [5, 3, 0],
        "raymerge_evaluators": [2, 2, 0],
        "raymerge_evaluators_busy": [1, 2, 0],
        "raymerge_occupancy": [0.25, 0.75],
    }
    trials = TrialMetrics("s")
    for status in ("finished", "failed", "finished"):
        trials.count(status)
    assert made["raymerge_trials_total"].values == [
        (1, {"sweep": "s", "status": status}) for status in ("finished", "failed", "finished")
    ]
    assert {metric.tags["sweep"] for metric in made.values()} == {"s"}


def test_a_ray_that_refuses_is_nobodys_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise RuntimeError("no metrics here")

    monkeypatch.setattr(ray_metrics, "Counter", refuse)
    monkeypatch.setattr(ray_metrics, "Gauge", refuse)
    ServiceMetrics("s").observe(ServiceStats(images=1))
    TrialMetrics("s").count("finished")


SCRIPT = """
import time, urllib.request
import ray
from raymerge.ray_metrics import ServiceMetrics, TrialMetrics
from raymerge.records import ServiceStats

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
service = ray.remote(num_cpus=0)(ServiceMetrics).remote("s")
ray.get(service.observe.remote(ServiceStats(2, 1, 5, images=10, busy_s=1.0, present_s=4.0)))
trials = TrialMetrics("s")
for status in ("finished", "pruned", "finished"):
    trials.count(status)
port = ray.nodes()[0]["MetricsExportPort"]
found = []
for _ in range(90):  # a node collects them every few seconds
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        text = ""
    found = [line for line in text.splitlines() if line.startswith("ray_raymerge_")]
    if len(found) >= 7:
        break
    time.sleep(1)
print(*found, sep="\\n")
ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.skipif(
    not (importlib.util.find_spec("opentelemetry") and importlib.util.find_spec("opencensus")),
    reason="Ray exports nothing without the packages of ray[default]",
)
def test_a_node_offers_them_to_prometheus() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        name, labels, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()  # type: ignore[union-attr]
        assert 'sweep="s"' in labels
        status = re.search(r'status="(\w+)"', labels)
        found[name.removeprefix("ray_") + (f" {status[1]}" if status else "")] = float(value)
    assert found == {
        "raymerge_images_total": 10,
        "raymerge_shards_queued": 5,
        "raymerge_evaluators": 2,
        "raymerge_evaluators_busy": 1,
        "raymerge_occupancy": 0.25,
        "raymerge_trials_total finished": 2,
        "raymerge_trials_total pruned": 1,
    }
