"""Two folders as two machines: which of them can merge and evaluate."""

import io
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_suite
from tiny_suite import BACKBONE

from raymerge import cluster, node_files, preparation
from raymerge.evaluator_pool import Node
from raymerge.node_files import BLOCK, Comparison, NodeFiles, compare, survey
from raymerge.suite_nodes import SuiteNodes
from raymerge.suites import Suite, moments_path

TASKS = {BACKBONE: ["Task0", "Task1"]}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=2, images=5)


@pytest.fixture
def machines(original, tmp_path):
    """Looks at the machines called a, b, ...: each has its own copy of the suite, at the path of the original."""
    return Machines(original, tmp_path)


class Machines:
    def __init__(self, original: Suite, folder: Path):
        self.original = original
        self.folder = folder

    def __getitem__(self, name: str) -> Suite:
        root = self.folder / name
        if not root.exists():
            shutil.copytree(self.original.root, root)
        return replace(self.original, root=root)

    def survey(self, name: str, moments: Path | None = None) -> NodeFiles:
        """As if its root were that of the original."""
        found = survey(self[name], TASKS, moments)
        root, true = str(self[name].root), str(self.original.root)

        def moved(prints: Mapping[str, str | None]) -> dict[str, str | None]:
            return {path.replace(root, true): content for path, content in prints.items()}

        return replace(found, host=name.upper(), merging=moved(found.merging), evaluating=moved(found.evaluating))

    def surveys(self, names: Iterable[str]) -> dict[str, NodeFiles]:
        return {name: self.survey(name) for name in names}


def test_what_merges_and_what_evaluators_read(machines, original):
    found = machines.survey("a")
    zero_shot = str(original.zero_shot_path(BACKBONE))
    assert list(found.merging) == [
        zero_shot,
        *(str(original.expert_path(BACKBONE, task)) for task in ("Task0", "Task1")),
    ]
    assert list(found.evaluating) == [
        zero_shot,
        *(str(original.head_path(BACKBONE, task)) for task in ("Task0", "Task1")),
        *(str(original.images_path(task, split)) for task in ("Task0", "Task1") for split in ("val", "test")),
    ]
    prints = {**found.merging, **found.evaluating}
    assert None not in prints.values()
    assert len(set(prints.values())) == len(prints), "each has its own"
    assert found.merging[zero_shot] == found.evaluating[zero_shot]
    assert set(found.versions) == {"raymerge", "torch", "open_clip_torch", "machine"}
    assert machines.survey("b") == replace(found, host="B")


def test_moments_are_read_by_merges(machines, original, tmp_path):
    found = machines.survey("a", tmp_path / "moments")
    paths = [str(moments_path(tmp_path / "moments", BACKBONE, task)) for task in TASKS[BACKBONE]]
    assert [path for path, content in found.merging.items() if content is None] == paths
    assert None not in found.evaluating.values()


def test_equal_machines(machines):
    assert compare(machines.surveys("ab"), "a") == Comparison(("a", "b"), {}, {})


def test_without_an_expert_a_machine_evaluates_and_does_not_merge(machines, original):
    machines["b"].expert_path(BACKBONE, "Task1").unlink()
    path = original.expert_path(BACKBONE, "Task1")
    assert compare(machines.surveys("ab"), "b") == Comparison(("a",), {"b": f"{path} is missing there"}, {})
    machines["b"].expert_path(BACKBONE, "Task0").unlink()
    path = original.expert_path(BACKBONE, "Task0")
    assert compare(machines.surveys("ab"), "b").no_merging == {"b": f"{path} and 1 more are missing there"}


@pytest.mark.parametrize("what", ["head", "images"])
def test_without_heads_or_images_a_machine_merges_and_does_not_evaluate(machines, original, what):
    def path(suite: Suite) -> Path:
        return suite.head_path(BACKBONE, "Task1") if what == "head" else suite.images_path("Task1", "test")

    path(machines["b"]).unlink()
    expected = Comparison(("a",), {}, {"b": f"{path(original)} is missing there"})
    assert compare(machines.surveys("ab"), "b") == expected


def test_without_the_zero_shot_model_a_machine_does_nothing(machines):
    machines["b"].zero_shot_path(BACKBONE).unlink()
    found = compare(machines.surveys("ab"), "a")
    assert (found.complete, found.no_merging.keys(), found.no_evaluating.keys()) == (("a",), {"b"}, {"b"})


def change(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_stale_copy_of_equal_size_is_named(machines, original):
    path = machines["b"].expert_path(BACKBONE, "Task0")
    change(path, path.stat().st_size // 2)
    name = original.expert_path(BACKBONE, "Task0")
    found = compare(machines.surveys("ab"), "a")
    assert found == Comparison(("a",), {"b": f"{name} is another file there than on A"}, {})


def test_the_majority_is_right_and_the_preferred_one_where_there_is_none(machines):
    change(machines["a"].head_path(BACKBONE, "Task0"), -1)
    surveys = machines.surveys("abc")
    found = compare(surveys, "a")
    assert (found.complete, found.no_evaluating.keys(), found.no_merging) == (("b", "c"), {"a"}, {})
    assert found.no_evaluating["a"].endswith("is another file there than on B")
    del surveys["c"]
    for preferred, other in ("ab", "ba"):
        found = compare(surveys, preferred)
        assert (found.complete, list(found.no_evaluating)) == ((preferred,), [other])
    assert compare(surveys, "elsewhere").complete in (("a",), ("b",))


def test_a_reference_stays_what_it_was(machines):
    """More nodes with another copy join later: the sweep has begun with the first."""
    reference = machines.survey("a")
    for name in "bc":
        change(machines[name].head_path(BACKBONE, "Task0"), -1)
    found = compare(machines.surveys("bc"), "b", reference)
    assert (found.complete, list(found.no_evaluating)) == ((), ["b", "c"])
    assert compare(machines.surveys("abc"), "b", reference).complete == ("a",)


def test_where_none_has_everything_the_preferred_one_counts(machines):
    machines["a"].expert_path(BACKBONE, "Task0").unlink()
    machines["b"].expert_path(BACKBONE, "Task1").unlink()
    for preferred in ("a", "b", "elsewhere"):
        found = compare(machines.surveys("ab"), preferred)
        assert (found.complete, found.no_merging.keys(), found.no_evaluating) == ((), {"a", "b"}, {})


def test_other_versions_do_other_sums(machines):
    surveys = machines.surveys("abc")
    surveys["b"] = replace(surveys["b"], versions={**surveys["b"].versions, "torch": "1.0"})
    why = f"torch is 1.0 there, and {surveys['a'].versions['torch']} on A"
    assert compare(surveys, "b") == Comparison(("a", "c"), {"b": why}, {"b": why})


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 3 * BLOCK, 10 * BLOCK + 7])
def test_a_print_sees_changes_at_the_ends_and_in_the_middle(tmp_path, size):
    path = tmp_path / "file"
    content = bytes(i % 251 for i in range(size))
    path.write_bytes(content)
    original = node_files._print(path)
    assert original is not None
    copy = tmp_path / "copy"
    copy.write_bytes(content)
    assert node_files._print(copy) == original
    for position in {0, min(BLOCK, size) - 1, size // 2, size - 1} if size else set():
        change(copy, position)
        assert node_files._print(copy) != original, position
        copy.write_bytes(content)
    for other in (content[: size // 2], content[:-1], content + b"\0", b"\0" * (10 * BLOCK)):
        if other != content:
            copy.write_bytes(other)
            assert node_files._print(copy) != original
    assert node_files._print(tmp_path / "missing") is None
    assert node_files._print(tmp_path) is None, "a folder is no file"


# --- nodes that come and go -----------------------------------------------------------------------------------------


class Nodes:
    """SuiteNodes over machines that are looked at without Ray; this one is a."""

    def __init__(self, machines: Machines, monkeypatch: pytest.MonkeyPatch, **options: Any):
        self.asked: list[list[str]] = []
        self.silent: set[str] = set()
        self.alive: list[str] = []
        self.nodes = SuiteNodes(machines.original, TASKS, None, **options)

        def survey_nodes(suite: Suite, tasks: Any, moments: Any, node_ids: Iterable[str]) -> dict[str, NodeFiles]:
            self.asked.append(list(node_ids))
            return machines.surveys(name for name in node_ids if name not in self.silent)

        monkeypatch.setattr(cluster, "survey_nodes", survey_nodes)
        monkeypatch.setattr(cluster, "this_node", lambda: "a")
        monkeypatch.setattr(cluster, "alive_nodes", lambda: [Node(name, name, {}) for name in self.alive])

    def unfit(self, names: str) -> Mapping[str, str]:
        self.alive = list(names)
        return self.nodes.unfit([Node(name, name.upper(), {}) for name in names])


def avoiding(*names: str) -> dict[str, Any]:
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(names)})"}}


def test_every_node_is_asked_once(machines, monkeypatch):
    nodes = Nodes(machines, monkeypatch)
    assert nodes.nodes.placement(True) == {}, "before anybody was asked"
    assert nodes.unfit("ab") == {}
    assert (nodes.nodes.complete, nodes.nodes.placement()) == (("a", "b"), {})
    machines["c"].expert_path(BACKBONE, "Task0").unlink()
    machines["d"].images_path("Task0", "val").unlink()
    assert nodes.unfit("abcd").keys() == {"d"}
    assert (set(nodes.nodes.no_merging()), nodes.nodes.placement()) == ({"c"}, avoiding("c"))
    assert nodes.asked == [["a", "b"], ["c", "d"]]
    assert nodes.unfit("bd").keys() == {"d"}
    assert (set(nodes.nodes.no_merging()), nodes.nodes.placement()) == (set(), {})
    assert nodes.nodes.reports.keys() == {"b", "d"}
    change(machines["e"].head_path(BACKBONE, "Task0"), -1)
    assert nodes.unfit("e")["e"].endswith("is another file there than on A"), "a is the reference, though it has left"


def test_a_node_that_does_not_answer_is_left_out(machines, monkeypatch):
    nodes = Nodes(machines, monkeypatch)
    nodes.silent = {"b"}
    assert nodes.unfit("ab") == {"b": "it does not answer"}
    assert (nodes.nodes.complete, nodes.nodes.placement()) == (("a",), avoiding("b"))
    nodes.silent = {"a", "c"}
    assert nodes.unfit("c") == {"c": "it does not answer"}
    nodes.silent = set()
    assert nodes.unfit("ab") == {}


def test_the_wary_keep_off_nodes_that_were_not_asked(machines, monkeypatch):
    nodes = Nodes(machines, monkeypatch)
    nodes.unfit("a")
    nodes.alive = ["a", "b"]
    assert (nodes.nodes.placement(), nodes.nodes.placement(True)) == ({}, avoiding("b"))


def test_empty_nodes_are_filled(machines, monkeypatch):
    filled: list[str] = []

    def fill(node_ids: Any) -> dict[str, str]:
        filled.extend(node_ids)
        for name in node_ids:
            shutil.rmtree(machines.folder / name)
        return {}

    for name in "bc":
        shutil.rmtree(machines[name].root)
        (machines.folder / name).mkdir()
    machines["d"].expert_path(BACKBONE, "Task0").unlink()
    nodes = Nodes(machines, monkeypatch, fill=fill)
    assert nodes.unfit("abcd") == {}
    assert filled == ["b", "c"]
    assert nodes.nodes.complete == ("a", "b", "c")
    assert nodes.asked == [["a", "b", "c", "d"], ["b", "c"]]


def test_why_a_node_could_not_be_filled_is_told(machines, monkeypatch):
    shutil.rmtree(machines["b"].root)
    (machines.folder / "b").mkdir()
    nodes = Nodes(machines, monkeypatch, fill=lambda node_ids: dict.fromkeys(node_ids, "No space left on device"))
    unfit = nodes.unfit("ab")
    assert unfit.keys() == {"b"}
    assert unfit["b"].endswith(" missing there (copying the suite there failed: No space left on device)")


@pytest.mark.filterwarnings("ignore:.*filter:DeprecationWarning")
@pytest.mark.parametrize("has_filters", [True, False])
def test_a_suite_arrives_as_it_was_or_not_at_all(tmp_path, monkeypatch, has_filters):
    if not has_filters:  # as in Python 3.11.2
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    (tmp_path / "here" / "heads").mkdir(parents=True)
    (tmp_path / "here" / "heads" / "a.pt").write_bytes(b"weights")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(tmp_path / "here", arcname=".")
    there = tmp_path / "there" / "suite"
    with pytest.raises(tarfile.ReadError):
        preparation.unpack(packed.getvalue()[:700], there)
    assert not there.exists()
    preparation.unpack(packed.getvalue(), there)
    assert [path.relative_to(there).as_posix() for path in sorted(there.rglob("*"))] == ["heads", "heads/a.pt"]
    assert (there / "heads" / "a.pt").read_bytes() == b"weights"
    (there / "heads" / "a.pt").write_bytes(b"others")
    preparation.unpack(packed.getvalue(), there)
    assert (there / "heads" / "a.pt").read_bytes() == b"others", "what is there is left alone"
    assert sorted(path.name for path in there.parent.iterdir()) == ["suite", "suite.lock"]
