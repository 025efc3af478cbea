"""Figures of a sweep among Ray's own metrics, which every node offers to Prometheus where ray[default] is installed.

Elsewhere Ray drops them. They are for those who watch: whatever goes wrong here is nobody's error.
"""

import logging
from collections.abc import Callable
from typing import Any

from ray.util.metrics import Counter, Gauge

from raymerge.records import ServiceStats

TAG = "sweep"

logger = logging.getLogger(__name__)


class ServiceMetrics:
    """What evaluators do; kept by the dispatcher."""

    def __init__(self, sweep: str):
        self._sweep = sweep
        self._last = ServiceStats()
        self._metrics: dict[str, Any] | None = None

    def observe(self, stats: ServiceStats) -> None:
        """Called about every second."""
        _quietly(self._observe, stats)

    def _observe(self, stats: ServiceStats) -> None:
        if self._metrics is None:
            self._metrics = {
                "images": _metric(Counter, "raymerge_images_total", "Images that evaluators scored", self._sweep),
                "queued": _metric(Gauge, "raymerge_shards_queued", "Shards that wait for an evaluator", self._sweep),
                "evaluators": _metric(Gauge, "raymerge_evaluators", "Evaluators that serve", self._sweep),
                "busy": _metric(Gauge, "raymerge_evaluators_busy", "Evaluators that work on a shard", self._sweep),
                "occupancy": _metric(Gauge, "raymerge_occupancy", "Share of time evaluators are busy", self._sweep),
            }
        new, self._last = stats.since(self._last), stats
        if new.images > 0:
            self._metrics["images"].inc(new.images)
        self._metrics["queued"].set(stats.num_queued)
        self._metrics["evaluators"].set(stats.num_evaluators)
        self._metrics["busy"].set(stats.num_busy)
        if (occupancy := new.occupancy) is not None:
            self._metrics["occupancy"].set(occupancy)


class TrialMetrics:
    """How trials end; kept by the driver."""

    def __init__(self, sweep: str):
        self._sweep = sweep
        self._trials: Any = None

    def count(self, status: str) -> None:
        _quietly(self._count, status)

    def _count(self, status: str) -> None:
        if self._trials is None:
            self._trials = _metric(Counter, "raymerge_trials_total", "Trials that ended", self._sweep, "status")
        self._trials.inc(1, tags={"status": status})


def _metric(kind: Any, name: str, description: str, sweep: str, *tags: str) -> Any:
    metric = kind(name, description=description, tag_keys=(TAG, *tags))
    metric.set_default_tags({TAG: sweep})
    return metric


def _quietly(do: Callable[[Any], None], value: Any) -> None:
    try:
        do(value)
    except Exception:
        logger.debug("a metric was not exported", exc_info=True)
