"""A Ray for as long as a command runs, and what it prints meanwhile."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from edc_ray import pipeline
from edc_ray.artifacts import Store, StoreError
from edc_ray.config import ConfigError, Runtime

STATUS_SECONDS = 10.0
ANSWER_SECONDS = 10.0  # for a cluster that one looks at
# Quiet, and on the loopback interface only: by default Ray's ports listen everywhere (ray.md 4).
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "OMP_NUM_THREADS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end the search as if it were done
}


class Stopped(KeyboardInterrupt):
    """SIGTERM: `ray job stop`, `scancel`, a machine that is being shut down."""


def _stop(signum: int, frame: object) -> None:
    # Now, not when all is put away: `ray job stop` kills after three seconds.
    print("interrupted; the same command goes on", file=sys.stderr, flush=True)
    raise Stopped if signum == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises Stopped in the block, so that it ends as by Ctrl-C. For the main thread."""
    before = {signum: signal.signal(signum, _stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def _prepared() -> Any:
    """Ray, which reads its environment when it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


@contextmanager
def cluster(runtime: Runtime) -> Iterator[None]:
    """The cluster that the environment names (a submitted job), else a small Ray that ends with the block."""
    ray = _prepared()

    local: dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:
        cpus = int(runtime.workers * runtime.cpus_per_worker) + 2  # Ray Data wants slots beside its actors
        local = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        local |= {"object_store_memory": 256 * 2**20}
        local |= {} if runtime.gpus_per_worker else {"num_gpus": 0}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(namespace="edc", log_to_driver=False, logging_level=logging.ERROR, **local)
    signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)  # Ray's own ends in a trace of its C++
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def mapper(on_ray: bool, store: Store, runtime: Runtime) -> Iterator[pipeline.Mapper]:
    """In this process, or on Ray actors as long as the block runs."""
    if not on_ray:
        yield pipeline.in_process(store, runtime)
        return
    with cluster(runtime):
        from edc_ray.distributed.workers import RayMapper

        found = RayMapper(store.path(), runtime)
        yield found
        store.drop(found.site.probe)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A look at a cluster that is there. Raises ConfigError where none answers."""
    ray = _prepared()
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself asks again for minutes
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        ray.init(address=address, namespace="edc", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise ConfigError("--address", address, f"must be of a Ray cluster that runs: {why}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def watched(broker: Any, store: Store) -> Iterator[None]:
    """Prints a status line now and then while the block runs; at the end the probe is dropped."""
    import ray

    from edc_ray.monitor import status_line

    ended = threading.Event()
    seen: deque[tuple[float, dict[str, Any]]] = deque(maxlen=4)  # rates are over the last three lines

    def watch() -> None:
        while not ended.wait(STATUS_SECONDS):
            try:
                now, status = time.monotonic(), broker.status(timeout=STATUS_SECONDS)
            except ray.exceptions.RayError:
                continue
            seen.append((now, status))
            say(f"  {status_line(status, seen[0][1], max(now - seen[0][0], STATUS_SECONDS))}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(StoreError):
            store.drop(broker.probe)


def say(text: str) -> None:
    print(text, flush=True)
