"""A Ray cluster of several real nodes on this machine, for tests that lose some of them."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from ray._raylet import AuthenticationTokenLoader, Config
from ray.cluster_utils import Cluster

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_USAGE_STATS_ENABLED": "0"}
STORE = 150 * 2**20


class Nodes:
    """The cluster: a head, and nodes that come and go."""

    def __init__(self, head_cpus: int, *, store: int = STORE, system_config: Mapping[str, object] | None = None):
        more = {"_system_config": dict(system_config)} if system_config else {}
        arguments = {"num_cpus": head_cpus, "include_dashboard": False, "object_store_memory": store, **more}
        self._cluster = Cluster(initialize_head=True, head_node_args=arguments)

    @property
    def address(self) -> str:
        return self._cluster.address

    @property
    def logs(self) -> Path:
        """Folder of what Ray's processes on this machine say."""
        return Path(self._cluster.head_node.get_logs_dir_path())

    @property
    def head_pid(self) -> int:
        """Of the head's raylet, whose children its workers are."""
        (raylet,) = self._cluster.head_node.all_processes["raylet"]
        return raylet.process.pid

    def add(self, cpus: int):
        """A node, as one more raylet with a store of its own."""
        return self._cluster.add_node(num_cpus=cpus, object_store_memory=STORE)

    def lose(self, node) -> None:
        """End a node without a farewell: its raylet and all its processes."""
        self._cluster.remove_node(node, allow_graceful=False)

    def lose_head(self) -> None:
        head = self._cluster.head_node
        head.kill_gcs_server()
        head.kill_raylet()

    def close(self) -> None:
        self._cluster.shutdown()


def cluster_of(monkeypatch: pytest.MonkeyPatch, head_cpus: int, **arguments) -> Nodes:
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    Config.initialize("")  # Ray reads the environment when it is imported, which has happened
    AuthenticationTokenLoader.instance().reset_cache()
    return Nodes(head_cpus, **arguments)


def wait_for(what: Callable[[], object], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
