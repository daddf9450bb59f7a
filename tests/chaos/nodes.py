"""A Ray cluster of fake nodes on one machine, any of which can be killed.

The nodes are started by a process of their own (`python -m tests.chaos.nodes`): Ray ends a process that has
lost the head it was connected to. Everything listens on the loopback interface only.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests import tiny

ROOT = Path(__file__).parents[2]
MEMORY = 80 * 2**20  # bytes of each node's object store
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}


def adopt_orphans() -> None:
    """What loses its parent becomes a child of this process, and so stays to be found."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1)


def kill(pids: Iterable[int]) -> None:
    """kill -9, of processes that may have ended meanwhile."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Nodes:
    """A head without processors, and nodes with two each; `temporary` is a short path of its own."""

    def __init__(self, temporary: Path, log: Path, workers: int = 2) -> None:
        (temporary / "ray").mkdir(parents=True, exist_ok=True)  # Ray writes its address there
        with log.open("ab") as errors:
            self._host = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.nodes"], cwd=ROOT,
                env=os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(temporary)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self._nodes: list[list[int]] = []
        self.address = ""
        for cpus in [0, *[2] * workers]:
            self.add(cpus)

    def add(self, cpus: int = 2) -> None:
        """One more node. Returns when it has joined."""
        assert self._host.stdin is not None and self._host.stdout is not None
        self._host.stdin.write(f"{cpus}\n")
        self._host.stdin.flush()
        told = json.loads(self._host.stdout.readline())
        self.address = told["address"]
        self._nodes.append(told["pids"])

    def workers(self) -> list[list[int]]:
        """Of each node but the head: its processes."""
        return [_with_descendants(pids) for pids in self._nodes[1:]]

    def kill_node(self, index: int) -> None:
        """All processes of a node, at once."""
        kill(_with_descendants(self._nodes.pop(1 + index)))

    def kill_head(self) -> None:
        kill(_with_descendants(self._nodes.pop(0)))

    def end(self) -> None:
        """Kill what is left of the cluster."""
        kill([self._host.pid])
        for pids in self._nodes:
            kill(_with_descendants(pids))
        self._nodes.clear()
        self._host.communicate()


def _with_descendants(pids: Iterable[int]) -> list[int]:
    return [one for pid in pids for one in (pid, *tiny.titles(pid))]


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """At the end no process that was started in the block runs any more."""
    before = set(tiny.titles())
    try:
        yield
    finally:
        tiny.until(lambda: _none_but(before), "all processes have ended")


def _none_but(before: set[int]) -> bool:
    left = set(tiny.titles()) - before
    kill(left)
    return not left


def main() -> None:
    """Start a node for every line, the number of its processors; answer with the pids of its processes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(shutdown_at_exit=False)
    for line in sys.stdin:
        node = cluster.add_node(
            num_cpus=int(line),
            object_store_memory=MEMORY,
            include_dashboard=False,
            dashboard_host="127.0.0.1",
        )
        pids = [info.process.pid for infos in node.all_processes.values() for info in infos]
        print(json.dumps({"address": cluster.address, "pids": pids}), flush=True)


if __name__ == "__main__":
    main()
