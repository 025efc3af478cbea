"""From a trial to jobs of bounded size."""

from collections.abc import Iterator, Sequence

from raymerge.driver import Trial
from raymerge.records import EvalJob
from raymerge.suites import Suite
from raymerge.sweep_spec import EvaluationSettings


def jobs_of(trial: Trial, tasks: Sequence[str], suite: Suite, settings: EvaluationSettings) -> Iterator[EvalJob]:
    """The shards of some tasks of a trial, in reporting order: the task with the most images first.

    Shards are cut by `shard_images` alone, so batches, and with them every rounding, are the same on any cluster.
    """
    for task in tasks:
        weights = trial.weights[task]
        total = suite.task(task).images[trial.split]
        total = min(total, settings.max_images or total)
        for start in range(0, total, settings.shard_images):
            yield EvalJob(
                backbone=weights.backbone,
                task=task,
                split=trial.split,
                start=start,
                stop=min(start + settings.shard_images, total),
                weights_id=weights.weights_id,
                alpha=weights.alpha,
                update_id=weights.merge.merge_id if weights.merge else None,
                with_predictions=settings.stores_predictions_of(trial.split),
            )
