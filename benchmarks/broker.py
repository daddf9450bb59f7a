"""P7: what the Broker and Ray cost: 2,000 trivial units on two workers, on a Ray of its own.

    python benchmarks/broker.py [--repeats 2] [--json OUT]

    overhead    of a worker's time, what is not spent in the unit's function, a unit     goal <= 20 ms
    items       what running units tell, as many as one process hears in a second        told

Ten artifacts at once, of 200 groups each: one image of 8x8 that recover moves once, and their folds. Overhead
is all else: the calls and the queue, what the worker writes and looks up, the listing of the store, the
commits. By the wall's clock; observers and initial images are there, and the workers warm. How it grows with
units and workers: scale_sim.py.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import common
import local_ray  # before Ray
import ray

from edc_ray import config, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime
from edc_ray.distributed.service import start_broker
from edc_ray.distributed.trial import BrokerHandle
from edc_ray.pipeline import Progress

ARTIFACTS, WORKERS, GOAL = 10, 2, 20.0
ITEMS = 2000  # that each worker tells
CHANGES = {
    "dataset.limit": 200, "dataset.size_px": 8, "squeeze.epochs": 1, "squeeze.observers": ["convnet_w16_d2"],
    "init.kind": "noise", "init.ipc": 20, "recover.group_images": 1, "recover.iterations": 1,
}  # fmt: skip


def milliseconds(repeat: int, broker: BrokerHandle, store: Store) -> tuple[float, float]:
    """Overhead a unit, and the time in its function. An artifact's learning rate, hence key, is its own."""
    numbers = range(ARTIFACTS * repeat, ARTIFACTS * (repeat + 1))
    changes = [CHANGES | {"recover.lr": 0.01 * (1 + number)} for number in numbers]
    experiments = [config.override(Experiment(), each) for each in changes]
    began = time.perf_counter()
    ray.get([broker.actor.build.remote(experiment, "recover") for experiment in experiments])
    spent = WORKERS * (time.perf_counter() - began)
    found = [pipeline.manifest(pipeline.tasks(each, "recover")[-1], store) for each in experiments]
    inside = sum(each["seconds"] for each in found)
    units = sum(len(each["units"]) for each in found)
    return 1000 * (spent - inside) / units, 1000 * inside / units


@ray.remote(num_cpus=0)
class Talker:
    def run(self, items: int) -> Iterator[Progress]:
        for i in range(items):
            yield Progress(i, items)


@ray.remote(num_cpus=0)
class Listener:
    """Hears as the Broker does (distributed/workers.py), and does nothing."""

    async def hear(self, talkers: Sequence[Any], items: int) -> float:
        async def one(talker: Any) -> None:
            async for ref in talker.run.options(num_returns="streaming").remote(items):
                await ref

        began = time.perf_counter()
        await asyncio.gather(*(one(talker) for talker in talkers))
        return len(talkers) * items / (time.perf_counter() - began)


def heard(repeats: int) -> list[float]:
    """Items a second."""
    listener, talkers = Listener.remote(), [Talker.remote() for _ in range(WORKERS)]
    ray.get(listener.hear.remote(talkers, 10))
    return [ray.get(listener.hear.remote(talkers, ITEMS)) for _ in range(repeats)]


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__, repeats=2).parse_args(argv)
    common.begin(args)
    runtime = Runtime(device="cpu", workers=WORKERS, idle_seconds=600.0)
    with local_ray.started(runtime) as root:
        broker = start_broker(root, runtime)
        broker.build(config.override(Experiment(), CHANGES), "recover")
        found = [milliseconds(1 + i, broker, Store(root)) for i in range(args.repeats)]
        items = heard(args.repeats)
    overhead, inside = zip(*found, strict=True)
    note = f"load of the machine {os.getloadavg()[0]:.1f}"
    rows = [
        common.Row("overhead a unit", overhead, GOAL, unit="ms", note=note),
        common.Row("inside its function", inside, unit="ms"),
        common.Row("items", items, unit="/s", note=f"of {WORKERS} workers on the same cores"),
    ]
    return common.finish(args, rows)


if __name__ == "__main__":
    sys.exit(main())
