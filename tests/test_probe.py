"""A node that does not see the driver's store is named, and ends the sweep at once."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edc_ray import space
from edc_ray.artifacts import Store
from edc_ray.distributed.probe import NotShared, Site
from edc_ray.distributed.workers import offers
from edc_ray.journal import folder_of
from tests import tiny


def test_the_store_with_the_probe_is_opened(tmp_path: Path) -> None:
    site = pickle.loads(pickle.dumps(Site.mark(str(tmp_path))))
    assert site.look().root == str(tmp_path)
    Store(site.root).drop(site.probe)
    with pytest.raises(NotShared, match="the driver's probe is not there"):
        site.look(seconds=0)


def test_another_store_is_refused_with_the_nodes_name(tmp_path: Path) -> None:
    site, other = Site.mark(str(tmp_path / "a")), Site.mark(str(tmp_path / "b"))
    with pytest.raises(NotShared) as caught:
        Site(other.root, site.probe).look(seconds=0.1)
    error = pickle.loads(pickle.dumps(caught.value))
    told = f"node {error.node} does not see the store {tmp_path}/b: the driver's probe is not there"
    assert str(error).startswith(told) and "a folder that all nodes share, or a URI" in str(error)
    assert error.hopeless and isinstance(error, OSError)


def test_a_store_that_cannot_be_asked_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotShared, match="Not a directory") as caught:
        Site(str(tmp_path / "file"), "probes/x").look(seconds=0)
    assert "\n" not in str(caught.value)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_offers_are_those_of_the_nodes_that_are_up() -> None:
    (node,) = offers({"CPU": 1.0, "GPU": 0.5})
    assert (node["CPU"], node["GPU"]) == (4, 2)


# --- a cluster ----------------------------------------------------------------------------------------------


def private_mounts() -> bool:
    """Whether a process here may have mounts of its own."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


HOST = """
import ctypes, subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(shutdown_at_exit=False)
how = dict(include_dashboard=False, dashboard_host="127.0.0.1", object_store_memory=80 * 2**20)
cluster.add_node(num_cpus=0, **how)
print(cluster.address, flush=True)
sys.stdin.readline()
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: the next node has mounts of its own
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
cluster.add_node(num_cpus=2, **how)
print("joined", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def cluster(hidden: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that tells the address of a head without processors, and for the next line that it reads
    starts a node that sees an empty folder in the place of this one. At the end all of it is gone.
    """
    with tempfile.TemporaryDirectory(prefix="edc-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        host = subprocess.Popen(
            [sys.executable, "-c", HOST, str(hidden)], env=os.environ | {"RAY_TMPDIR": temporary}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            yield host
        finally:
            for pid in {host.pid, *tiny.naming(temporary)}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            host.communicate()
            tiny.until(lambda: not tiny.naming(temporary), "the cluster has ended")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not private_mounts(), reason="no process may have mounts of its own here")
def test_a_node_with_a_store_of_its_own_ends_the_sweep(tmp_path: Path) -> None:
    """The only node that could run units joins while the sweep runs, and has its own folder for the store."""
    file, store = tiny.sweep_file(tmp_path), tmp_path / "store"
    store.mkdir()
    with cluster(store) as host, pytest.MonkeyPatch.context() as patch:
        assert host.stdin is not None and host.stdout is not None
        patch.setenv("RAY_ADDRESS", host.stdout.readline().strip())
        with tiny.sweeping(file) as driver:
            assert driver.stdout is not None
            assert any(line.startswith("sweep tiny:") for line in driver.stdout)
            assert any("1 of 1 workers" in line for line in driver.stdout), "a worker waits for a node"
            host.stdin.write("go on\n")
            host.stdin.flush()
            assert host.stdout.readline() == "joined\n"
            said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 1, said
    (failed,) = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert "node 127.0.0.1" in failed and f"does not see the store {store}" in failed
    study = space.read_study(folder_of(Store(str(store)), "sweeps/tiny"))
    assert not space.finished(study), "no trial is to blame"
    assert not list(store.glob("probes/*")) and not list(store.glob("*-*/*.safetensors"))
