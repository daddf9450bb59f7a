"""The few fixtures. Ray reads its environment when it is imported, so that is set before anything else."""
# ruff: noqa: E402

import os
import sys

for name in os.environ.get("EDC_REFUSE", "").split():
    sys.modules[name] = None  # type: ignore[assignment]  # documented: its import raises ModuleNotFoundError

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "OMP_NUM_THREADS": "1",
}

import gc
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from edc_ray.artifacts import Store

# The same examples in every run, and no verdict by the clock.
hypothesis.settings.register_profile("edc", derandomize=True, deadline=None)
hypothesis.settings.load_profile("edc")


def pytest_collection_finish() -> None:
    """What is imported lives to the end: the garbage collector need not look through it again and again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries tell of leaks when the interpreter ends


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums of floats are equal to the bit only for an equal number of threads."""
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def store(tmp_path: Path) -> "Store":
    from edc_ray.artifacts import Store

    return Store(str(tmp_path))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One Ray for all tests: more logical CPUs than cores, as Ray Data needs spare ones, and 2 fake GPUs."""
    import ray

    folder = tempfile.mkdtemp(prefix="edc-", dir="/tmp")  # short: it becomes part of socket paths
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        namespace="edc",
        object_store_memory=120 * 2**20,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
