"""A small Ray of a benchmark's own, on the loopback interface. Import this before Ray, which reads its
environment then.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

from edc_ray import session
from edc_ray.config import Runtime

os.environ |= session.ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"}
os.environ.pop("RAY_ADDRESS", None)  # of a cluster that is not ours


@contextmanager
def started(runtime: Runtime) -> Iterator[str]:
    """The root of an empty store. Ray and the store end with the block."""
    with tempfile.TemporaryDirectory(prefix="edc-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # short: it becomes part of socket paths
        with session.cluster(runtime):
            yield f"{folder}/store"
