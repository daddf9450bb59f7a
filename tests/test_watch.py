"""What workers wait for is named in time, and not before; with a toy clock and no Ray."""

import asyncio
from dataclasses import dataclass

import pytest

from edc_ray.distributed.watch import PATIENCE_SECONDS, Shape, Waiting, unoffered

CPU, GPU = {"CPU": 8.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("share", "offers", "lacking"),
    [
        ({"CPU": 1.0, "GPU": 0.0}, [CPU], ""),
        ({"CPU": 1.0, "GPU": 0.5}, [CPU, GPU], ""),
        ({"CPU": 1.0, "GPU": 1.0}, [CPU], "GPU 1"),
        ({"CPU": 1.0, "GPU": 0.25}, [CPU], "GPU 0.25"),
        ({"CPU": 16.0, "GPU": 2.0}, [CPU, GPU], "CPU 16 and GPU 2"),
        ({"CPU": 8.0, "GPU": 1.0}, [CPU, GPU], "CPU 8 and GPU 1 together"),
        ({"CPU": 1.0, "GPU": 0.0}, [], "CPU 1"),
        ({"CPU": 0.0, "GPU": 0.0}, [CPU], ""),
    ],
)
def test_what_no_node_has_is_named(share: Shape, offers: list[Shape], lacking: str) -> None:
    assert unoffered(share, offers) == lacking


@dataclass(eq=False)
class ToyWorker:
    waiting: bool = True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_long_wait_is_told_with_what_is_missing() -> None:
    clock, asked = Clock(), list[Shape]()
    offered: list[Shape] = [CPU]

    def offers(share: Shape) -> list[Shape]:
        asked.append(share)
        return offered

    share = {"CPU": 1.0, "GPU": 1.0}
    pool = Waiting(ToyWorker, share, offers, clock)
    assert asyncio.run(pool.look()) == ""
    first = pool.spawn()
    clock.now += PATIENCE_SECONDS - 1
    second = pool.spawn()
    assert asyncio.run(pool.look()) == "" and not asked, "Ray is not asked before"
    clock.now += 1
    assert asyncio.run(pool.look()) == "2 workers waiting for a node, for 300 s: no node offers GPU 1"
    assert asked == [share]
    offered.append(GPU)
    assert "all nodes that offer it are taken, or on their way" in asyncio.run(pool.look())
    first.waiting = False
    assert asyncio.run(pool.look()) == "", "the second has not waited long enough"
    clock.now += PATIENCE_SECONDS - 1
    assert asyncio.run(pool.look()).startswith("1 worker waiting for a node, for 300 s")
    second.waiting = False
    assert asyncio.run(pool.look()) == ""
