"""One process at a time: a lock on a local disk; on an object store, which has none, signs of life."""

import _thread
import contextlib
import fcntl
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

from edc_ray.artifacts.files import StoreError

BEAT_SECONDS = 4.0
SILENCE = 3  # beats without a sign of life, after which a holder counts as dead
_log = logging.getLogger(__name__)


class Shelf(Protocol):
    """What is needed of a Store."""

    def get(self, relpath: str, /) -> bytes | None: ...
    def put(self, relpath: str, data: bytes, /) -> None: ...
    def drop(self, relpath: str, /) -> None: ...


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of a local file. Raises BlockingIOError when another process does."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def alive(
    store: Shelf,
    relpath: str,
    beat: float = BEAT_SECONDS,
    on_loss: Callable[[], object] = _thread.interrupt_main,
) -> Iterator[None]:
    """Rewrite an object every `beat` seconds while the block runs; who finds it changing keeps away.

    No clock of another machine is asked: a holder whose object stays the same for SILENCE beats is dead.
    on_loss: called, in a thread, when somebody else took a long silence of ours for our death.

    Raises:
        BlockingIOError: another process is alive.
    """
    _wait_for_silence(store, relpath, beat)
    name, ended = uuid.uuid4().hex, threading.Event()
    store.put(relpath, f"{name} 0".encode())
    time.sleep(beat / 4)  # of two that start at once, the one that wrote last goes on
    if not _ours(store, relpath, name):
        raise BlockingIOError(relpath)

    def keep() -> None:
        number = 0
        while not ended.wait(beat):
            number += 1
            try:
                if not _ours(store, relpath, name):
                    _log.error("another process has taken over %s: this one ends", relpath)
                    on_loss()
                    return
                store.put(relpath, f"{name} {number}".encode())
            except StoreError as error:
                _log.warning("no sign of life could be given: %s", error)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _ours(store, relpath, name):
            store.drop(relpath)


def _ours(store: Shelf, relpath: str, name: str) -> bool:
    return (store.get(relpath) or b"").startswith(name.encode())


def _wait_for_silence(store: Shelf, relpath: str, beat: float) -> None:
    if (first := store.get(relpath)) is None:
        return
    _log.warning("%s: is its holder alive? looking for %g s", relpath, SILENCE * beat)
    for _ in range(2 * SILENCE):
        time.sleep(beat / 2)
        if store.get(relpath) not in (None, first):
            raise BlockingIOError(relpath)
