"""P7: what the Broker and Ray cost: 2,000 trivial units on two workers, on a Ray of its own.

    python benchmarks/broker.py [--repeats 3] [--json OUT]

    overhead    of a worker's time, what is not spent in the unit's function, a unit     goal <= 20 ms

The units are groups of one image of 8x8 that recover moves once. Overhead is all else: the calls and the
queue, what the worker writes and looks up, the listing of the store, the commit. That the fold of the stage
uses one worker is not counted. By the wall's clock; observers and initial images are there, workers are warm.
How it grows with units and workers: scale_sim.py.
"""

import os
import sys
import time
from collections.abc import Sequence

import common
from local_ray import local_ray

from edc_ray import config, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime
from edc_ray.distributed.service import start_broker
from edc_ray.distributed.trial import BrokerHandle

UNITS, WORKERS, GOAL = 2000, 2, 20.0
CHANGES = {
    "dataset.limit": 200, "dataset.size_px": 8, "squeeze.epochs": 1, "squeeze.observers": ["convnet_w16_d2"],
    "init.kind": "noise", "recover.group_images": 1, "recover.iterations": 1,
}  # fmt: skip


def milliseconds(experiment: Experiment, broker: BrokerHandle, store: Store) -> tuple[float, float]:
    """Overhead a unit, and what is in its function."""
    broker.build(experiment, "init")
    began = time.perf_counter()
    broker.build(experiment, "recover")
    seconds = time.perf_counter() - began
    units = pipeline.manifest(pipeline.tasks(experiment, "recover")[-1], store)["units"]
    inside = {unit: found["meta"]["seconds"] for unit, found in units.items()}
    fold = inside.pop("all")
    spent = sum(inside.values())
    return 1000 * (WORKERS * (seconds - fold) - spent) / len(inside), 1000 * spent / len(inside)


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__, repeats=3).parse_args(argv)
    common.begin(args)
    runtime = Runtime(device="cpu", workers=WORKERS, idle_seconds=600.0)
    with local_ray(runtime) as root:
        broker, store = start_broker(root, runtime), Store(root)
        base = config.override(Experiment(), CHANGES | {"init.ipc": 10})
        milliseconds(base, broker, store)
        classes = pipeline.tasks(base)[0].classes
        found = [
            milliseconds(
                config.override(base, {"init.ipc": UNITS // classes, "init.seed": 1 + i}), broker, store
            )
            for i in range(args.repeats)
        ]
    note = f"load of the machine {os.getloadavg()[0]:.1f}"
    overhead, inside = zip(*found, strict=True)
    rows = [
        common.Row(f"overhead a unit, {UNITS:,} units", overhead, GOAL, unit="ms", note=note),
        common.Row("inside its function", inside, unit="ms"),
    ]
    return common.finish(args, rows)


if __name__ == "__main__":
    sys.exit(main())
