"""Ray's own autoscaler, whose nodes are processes: from none up to the cap and back; a lost one replaced."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from edc_ray import space
from tests import tiny
from tests.heads import Head, free_ports, head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[1]
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # as the fake provider knows it
IDLE_SECONDS = 6
TRIALS = 20  # of a few seconds each: the worker that is left must not have made all before a new node comes


@contextlib.contextmanager
def autoscaled(folder: Path, **kinds: dict[str, Any]) -> Iterator[Head]:
    """A head without processors, and nodes of each kind when somebody asks for them.

    kinds: by name, what a node has and how many there may be.
    """
    (port,) = free_ports(1)
    config = {
        "cluster_name": "fake", "max_workers": 8, "idle_timeout_minutes": IDLE_SECONDS / 60,
        "upscaling_speed": 1.0, "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
        "provider": {
            "type": "external", "gcs_address": f"127.0.0.1:{port}", "head_node_id": HEAD_ID,
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True, "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",  # as the provider calls it
        "available_node_types": {
            "ray.head.default": {"node_config": {}, "resources": {"CPU": 0}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0} | kind for name, kind in kinds.items()},
        },
    }  # fmt: skip
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(config))
    environment = {
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "PYTHONPATH": str(ROOT),
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }  # fmt: skip
    with head(f"--autoscaling-config={file}", "--num-cpus=0", port=port, env=environment) as cluster:
        yield cluster


class Nodes:
    """The nodes but the head, by kind and number; the most at once; those on which a worker was seen."""

    def __init__(self, cluster: Head) -> None:
        self._head, self.most, self.used = cluster.process, 0, set[str]()

    def now(self) -> dict[str, list[int]]:
        """Name -> pid of its raylet; two for a moment, whenever it starts a process by a fork."""
        assert self._head.poll() is None, "the head has ended"
        alive: dict[str, list[int]] = {}
        for pid, line in tiny.titles(self._head.pid).items():
            if line.split("\0")[0].endswith("/raylet/raylet") and (name := _name(pid)):
                alive.setdefault(name, []).append(pid)
        self.most = max(self.most, len(alive))
        self.used |= {name for name, pids in alive.items() if at_work(pids, r"UnitActor|\w+:")}
        return alive

    def until(self, happened: Callable[[], Any], why: str) -> Any:
        """As tiny.until, but with a look at the nodes each time, and less often."""

        def seen() -> Any:
            self.now()
            return happened()

        return tiny.until(seen, why, seconds=200, pause=0.5)

    def kill(self, name: str) -> None:
        """kill -9 of a node's raylet and of all its workers, as when a spot machine is taken away."""
        for raylet in self.now()[name]:
            for pid in (raylet, *tiny.titles(raylet)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _name(raylet: int) -> str:
    """Of its node; "" of the head, and where it has ended."""
    try:
        lines = Path(f"/proc/{raylet}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return ""
    given = dict(line.split("=", 1) for line in lines if "=" in line)
    kind = given.get("RAY_NODE_TYPE_NAME")  # as the provider sets it
    return f"{kind} {given['RAY_CLOUD_INSTANCE_ID']}" if kind else ""


def at_work(raylets: list[int], title: str) -> bool:
    """Whether a worker of the node is called so in the list of processes."""
    lines = [line for pid in raylets for line in tiny.titles(pid).values()]
    return any(re.match(f"ray::({title})", line) for line in lines)


def submit(cluster: Head, file: str) -> str:
    """Returns the job's name. The head has the package: fake nodes share the folder of a --working-dir, which
    each that comes would remove, under the feet of the driver, and unpack again.
    """
    words = ["--no-wait", "--", "python", "-m", "edc_ray.sweep", file]
    (name,) = set(re.findall(r"Job '(\w+)' submitted", cluster.ray("job", "submit", *words, cwd=ROOT)))
    return str(name)


def succeeded(cluster: Head, job: str) -> bool:
    found = cluster.job(job)
    assert found["status"] != "FAILED", found["message"]
    return bool(found["status"] == "SUCCEEDED")


def ended(folder: Path) -> int:
    """How many trials have come to their end."""
    journal = folder / "store/sweeps/tiny/study.journal"
    return len(space.finished(space.read_study(journal.parent))) if journal.exists() else 0


def test_nodes_come_when_asked_for_and_go_and_a_lost_one_is_replaced(tmp_path: Path) -> None:
    """There may be four of them, but no more come than the two workers of the sweep need."""
    gpu = {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 4}
    file = tiny.sweep_file(
        tmp_path, confirm={"seeds": 0}, budget={"trials": TRIALS}, runtime__workers=2,
        runtime__gpus_per_worker=1.0, runtime__checkpoint_seconds=0.5,
        experiment=tiny.CHANGES | {"evaluate.epochs": 30},
    )  # fmt: skip
    with autoscaled(tmp_path, spot=gpu) as cluster:
        nodes = Nodes(cluster)

        def builders() -> list[str]:
            return [name for name, pids in nodes.now().items() if at_work(pids, "recover:|evaluate:")]

        assert not nodes.now()
        job = submit(cluster, file)
        nodes.until(lambda: len(nodes.now()) == 2, "both nodes have come")
        nodes.until(lambda: ended(tmp_path) >= 1, "a trial has ended")
        lost, *_ = nodes.until(builders, "one is at work")
        nodes.kill(lost)
        nodes.until(lambda: len(set(nodes.now()) - {lost}) == 2, "another one has come")
        nodes.until(lambda: succeeded(cluster, job), "it is done")
        nodes.until(lambda: not nodes.now(), "the nodes have gone")
    assert nodes.most == 2 and len(nodes.used) >= 3
    study = space.read_study(tmp_path / "store/sweeps/tiny")
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == TRIALS == len(space.finished(study))


GPU, LARGE = {"CPU": 4, "GPU": 1, "accelerator_type:L4": 1}, {"CPU": 4, "GPU": 2, "accelerator_type:H100": 1}


@pytest.mark.parametrize(
    ("kinds", "workers", "share", "labels"),
    [
        pytest.param([GPU], 1, 1.0, "stream", id="one-gpu-and-streamed-labels"),
        pytest.param([GPU], 2, 0.5, "stream", id="two-workers-on-one-gpu"),
        pytest.param([GPU, LARGE], 3, 1.0, "inline", id="two-types-of-gpu"),
    ],
)
def test_the_gpus_that_there_are_suffice(
    tmp_path: Path, kinds: list[dict[str, Any]], workers: int, share: float, labels: str
) -> None:
    file = tiny.sweep_file(
        tmp_path, concurrent=3, confirm={"seeds": 0}, runtime__workers=workers, runtime__labels=labels,
        runtime__gpus_per_worker=share, runtime__idle_seconds=600,  # no GPU comes free by itself
    )  # fmt: skip
    named = {f"kind-{i}": {"resources": kind, "max_workers": 1} for i, kind in enumerate(kinds)}
    with autoscaled(tmp_path, **named) as cluster:
        nodes, job = Nodes(cluster), submit(cluster, file)
        nodes.until(lambda: succeeded(cluster, job), "it is done")
    assert {name.split()[0] for name in nodes.used} == set(named)
    assert ended(tmp_path) == 4
    assert any((tmp_path / "store").glob("relabel-*")) == (labels == "stream")
