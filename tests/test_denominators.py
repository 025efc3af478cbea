"""What normalized accuracies divide by: measured or published accuracies of the experts."""

import pytest
from fake_sweep import SUITE, FakeExecutor, spec_of

from raymerge.driver import Sweep
from raymerge.errors import SweepFileError
from raymerge.published import expert_accuracies, zero_shot_accuracies
from raymerge.records import Cell, TrialRecord
from raymerge.result_schema import RunContext, Schemas
from raymerge.run import published_denominators
from raymerge.search_space import sweep_cells
from raymerge.suites.tall_masks import BACKBONES, TASKS, tall_masks
from raymerge.summary import summarise

PUBLISHED = {
    ("vit", task.name, split): 0.5 + i / 10 + (split == "test") / 100
    for i, task in enumerate(SUITE.tasks)
    for split in ("val", "test")
}


def run(published=None) -> list[TrialRecord]:
    spec = spec_of(policy="grid", prune=None)
    cells = sweep_cells(spec, SUITE.backbones, [task.name for task in SUITE.tasks])
    records: list[TrialRecord] = []
    sweep = Sweep(spec, SUITE, cells, finished={}, on_record=records.append, published=published)
    FakeExecutor(sweep).run()
    return records


def test_published_denominators_are_divided_by_and_every_record_says_so() -> None:
    measured, published = run(), run(PUBLISHED)
    assert {r.trial_id: r.scores for r in measured if r.stage == "search"} == {
        r.trial_id: r.scores for r in published if r.stage == "search"
    }
    for record in published:
        for score in record.scores:
            reference = record.references[score.task]
            assert reference.expert_accuracy == PUBLISHED["vit", score.task, record.split]
            assert reference.source == "published"
        by_hand = [s.correct / s.total / PUBLISHED["vit", s.task, record.split] for s in record.scores]
        assert record.average_normalized_accuracy == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-12)
    assert {reference.source for record in measured for reference in record.references.values()} == {"measured"}
    zero_shot = {(r.split, s.task): s.accuracy for r in published if r.cell.method == "zero-shot" for s in r.scores}
    for record in published:  # NAI is measured from the zero-shot model of this sweep
        for task, reference in record.references.items():
            assert reference.zero_shot_accuracy == zero_shot[record.split, task]


def test_the_published_accuracies_of_the_two_profiles_differ_in_dtd_alone() -> None:
    legacy, corrected = (expert_accuracies("tall-masks", profile) for profile in ("paper-legacy", "corrected"))
    assert len(legacy) == 3 * 20 * 2
    assert {key[1] for key in legacy if legacy[key] != corrected[key]} == {"DTD"}
    assert legacy["ViT-B-32", "DTD", "test"] == pytest.approx(1842 / 1880)  # it has seen its test images
    assert corrected["ViT-B-32", "DTD", "test"] == pytest.approx(1489 / 1880)
    assert legacy["ViT-L-14", "MNIST", "val"] == 0.997
    assert expert_accuracies("demo", "full") == {}


@pytest.mark.parametrize("profile", ["paper-legacy", "corrected"])
def test_published_accuracies_are_whole_numbers_of_the_images_of_the_suite(profile: str) -> None:
    suite, accuracies = tall_masks(profile), expert_accuracies("tall-masks", profile)
    for (_, task, split), accuracy in accuracies.items():
        count = accuracy * suite.task(task).images[split]
        assert abs(count - round(count)) < 1e-6, (task, split)


def test_zero_shot_accuracies_leave_out_the_task_with_another_split() -> None:
    found = zero_shot_accuracies("tall-masks")
    assert found["ViT-B-32", "EMNIST", "test"] == 0.1719
    assert {task for _, task, _ in found} == set(TASKS) - {"EuroSAT"}
    assert {backbone for backbone, _, _ in found} == set(BACKBONES)


def test_a_suite_without_published_accuracies_is_refused() -> None:
    with pytest.raises(SweepFileError, match=r"suite 'fake' \(full\) has no published val accuracy of vit/T0; use mea"):
        published_denominators(SUITE, [Cell("vit", ("T0",), "iso-c")])


@pytest.mark.parametrize("denominators", ["measured", "published"])
def test_every_row_says_which(denominators: str) -> None:
    schemas = Schemas.declared()
    context = RunContext("s", "h", "fake", "full", 0, "f", "normalized_accuracy", "fp32", denominators)  # type: ignore
    records = run(PUBLISHED if denominators == "published" else None)
    for record in records:
        assert schemas.trials_table(record, context).column("denominators").to_pylist() == [denominators]
        assert set(schemas.evaluations_table(record, context).column("reference_source").to_pylist()) == {denominators}
    rows = summarise(records, [records[-1].cell], "normalized_accuracy")
    assert schemas.summary_table(rows, context).column("denominators").to_pylist() == [denominators]
