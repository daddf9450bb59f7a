"""Signs of life in an object store: who is alive is left alone, who fell silent is succeeded."""

import itertools
import threading
from collections.abc import Callable

import pytest

from edc_ray.artifacts.alone import alive

BEAT = 0.01
NAME = "sweeps/a/driver.lock"


class Objects:
    """A store in memory. heard: called after each write."""

    def __init__(self, heard: Callable[[], object] = lambda: None) -> None:
        self.data: dict[str, bytes] = {}
        self._heard = heard

    def get(self, relpath: str) -> bytes | None:
        return self.data.get(relpath)

    def put(self, relpath: str, data: bytes) -> None:
        self.data[relpath] = data
        self._heard()

    def drop(self, relpath: str) -> None:
        self.data.pop(relpath, None)


class Lively(Objects):
    """Somebody else writes between any two looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self._beats = itertools.count()

    def get(self, relpath: str) -> bytes | None:
        return f"somebody {next(self._beats)}".encode()


def test_it_gives_signs_and_leaves_nothing() -> None:
    signs = threading.Semaphore(0)
    store = Objects(signs.release)
    with alive(store, NAME, BEAT):
        for _ in range(4):
            assert signs.acquire(timeout=30)
        assert int(store.data[NAME].split()[1]) >= 3
    assert store.data == {}
    with alive(store, NAME, BEAT):  # given back
        pass


def test_who_is_alive_is_left_alone() -> None:
    with pytest.raises(BlockingIOError), alive(Lively(), NAME, BEAT):
        pass


def test_who_fell_silent_is_succeeded() -> None:
    store = Objects()
    store.put(NAME, b"somebody 17")
    with alive(store, NAME, BEAT):
        assert not store.data[NAME].startswith(b"somebody")
    assert store.data == {}


def test_of_two_that_start_at_once_the_last_goes_on() -> None:
    store = Objects(lambda: store.data.update({NAME: b"somebody 0"}))
    with pytest.raises(BlockingIOError), alive(store, NAME, BEAT):
        pass
    assert store.data == {NAME: b"somebody 0"}


def test_who_was_taken_for_dead_hears_of_it_and_leaves_the_other_alone() -> None:
    store, lost = Objects(), threading.Event()
    with alive(store, NAME, BEAT, lost.set):
        store.data[NAME] = b"somebody 0"
        assert lost.wait(timeout=30)
    assert store.data == {NAME: b"somebody 0"}
