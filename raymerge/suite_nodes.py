"""SuiteNodes: which nodes of a cluster have the files of a sweep, kept up to date as nodes come and go."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymerge import cluster
from raymerge.evaluator_pool import Node
from raymerge.node_files import Comparison, NodeFiles, compare
from raymerge.suites import Suite


class SuiteNodes:
    """Every node is asked once. Those that lack a file, or have another one, are left out and named."""

    def __init__(
        self,
        suite: Suite,
        tasks: Mapping[str, Sequence[str]],
        moments: Path | None,
        *,
        fill: Callable[[Sequence[str]], Mapping[str, str]] | None = None,
    ):
        """
        Args:
            tasks: the tasks in use, by backbone.
            moments: folder of input moments, where a method needs them.
            fill: puts the suite on nodes, by id, where it is absent altogether, and returns why that failed, by node
                id, where it did; None: that is up to the user.
        """
        self._suite = suite
        self._tasks = tasks
        self._moments = moments
        self._fill = fill
        self._surveys: dict[str, NodeFiles] = {}
        self._not_filled: dict[str, str] = {}
        self._silent: tuple[str, ...] = ()
        self._reference: NodeFiles | None = None
        self._found = Comparison((), {}, {})

    def look(self, node_ids: Sequence[str]) -> None:
        """Ask nodes that were not asked yet; forget those that are not named."""
        surveys = {node_id: found for node_id, found in self._surveys.items() if node_id in node_ids}
        new = [node_id for node_id in node_ids if node_id not in surveys]
        surveys |= self._survey(new)
        if self._fill and (empty := [node_id for node_id in new if node_id in surveys and _is_empty(surveys[node_id])]):
            self._not_filled |= self._fill(empty)
            surveys |= self._survey(empty)
        self._surveys = surveys
        self._silent = tuple(node_id for node_id in node_ids if node_id not in surveys)
        if not surveys:
            self._found = Comparison((), {}, {})
            return
        self._found = compare(surveys, cluster.this_node(), self._reference)
        if self._reference is None and self._found.complete:
            self._reference = surveys[self._found.complete[0]]

    @property
    def complete(self) -> tuple[str, ...]:
        """Nodes that have everything, all alike; this node where none has."""
        return self._found.complete or (cluster.this_node(),)

    @property
    def reports(self) -> Mapping[str, NodeFiles]:
        return self._surveys

    def unfit(self, nodes: Sequence[Node]) -> Mapping[str, str]:
        """Why nodes cannot evaluate, by node id."""
        self.look([node.node_id for node in nodes])
        found = {**self._found.no_evaluating, **dict.fromkeys(self._silent, "it does not answer")}
        for node_id in found.keys() & self._not_filled.keys():
            found[node_id] += f" (copying the suite there failed: {self._not_filled[node_id]})"
        return found

    def no_merging(self) -> Collection[str]:
        """Nodes that cannot merge, by id."""
        return {*self._found.no_merging, *self._silent}

    def placement(self, wary: bool = False) -> dict[str, Any]:
        """Options of Ray that keep a task off the nodes that cannot merge.

        Args:
            wary: keep it off nodes as well that were not asked yet, which takes a moment after they have joined.
        """
        avoided = set(self.no_merging())
        if wary and self._surveys:
            avoided |= {node.node_id for node in cluster.alive_nodes()} - self._surveys.keys()
        if not avoided:
            return {}
        return {"label_selector": {cluster.NODE_LABEL: f"!in({','.join(sorted(avoided))})"}}

    def _survey(self, node_ids: Sequence[str]) -> dict[str, NodeFiles]:
        return cluster.survey_nodes(self._suite, self._tasks, self._moments, node_ids) if node_ids else {}


def _is_empty(found: NodeFiles) -> bool:
    return not any([*found.merging.values(), *found.evaluating.values()])
