"""P7: the real Broker, stage graph and Store against 256 simulated workers: the whole of a large sweep.

    python benchmarks/scale_sim.py [--units 10000] [--trials 200] [--pages 12] [--latency MS] [--json OUT]

    drain      10,000 units of 10 s in 200 trials: the time that a Broker and a store which take no
               time would need, over the time it takes; more than 1 where the order
               of the units happens to be better                                       goal >= 0.95
    memory     most of the Broker's process, torch included                            goal <= 1 GB
    STEP       exponent of the processor time that the step takes in a run, over 400 to 3,200
               units; n log n has 1.14 over this range                                 goal <= 1.15

A step is a function of the Broker, the stage graph or the Store, with all it calls. Growing together: the
units of one artifact that all trials wait for, the trials, and the pages of labels that they want; all
trials begin at once. Who asks from time to time (leases, the patrol, the status line) asks equally often in
each run.

Real are the Broker with its Ledger, pipeline's graph with real experiments, and the Store with real files, in
memory where the machine has /dev/shm. Simulated are the workers and the label job, in this process: they
sleep, and ask of the store what pipeline.Worker does, with small contents. 1 % of the units and of the pages
lose their worker, and a page once spoils its label job. No Ray (broker.py has its share), no torch.

The clock leaps over what is slept and counts what the Broker's process computes (simulated.py says how);
--latency adds so many milliseconds to each question to the store. Steps are timed by cProfile, which makes
them slower, without Python's garbage collector.
"""

import asyncio
import cProfile
import gc
import os
import pstats
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import common
import numpy as np
from simulated import KINDS, UNIT_SECONDS, Counted, Loop, Size, Worker, World, count, experiments

from edc_ray import pipeline
from edc_ray.config import Experiment, Runtime
from edc_ray.distributed.broker import Broker, Summary

MEMORY = "/dev/shm"  # 30,000 files are written, and each would wait for the disk
WORKERS = 256
UNITS, GROWTH = (400, 800, 1600, 3200), 1.15
DRAIN, GIGABYTES = 0.95, 1.0
PER_TRIAL = 50  # units of a trial in the check of growth, its share of the common ones included
ASKED = 40  # times in a run that leases are renewed, the patrol walks, and a status is printed
ALL = "all of the loop"
TOLD = 0.03  # share of the time at the largest size, below which a step is not told
MEASURED = ("broker", "ledger", "graph", "store", "files", "logs")  # the modules with steps


# --- a run --------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    units: int
    seconds: float  # of the loop's clock
    cpu: float  # processor seconds of the Broker's process
    busy: float  # seconds of workers that ran units
    memory: tuple[int, int]  # resident bytes: before, and the most
    broker: Counter[str]  # what was asked of the store
    workers: Counter[str]


async def sweep(broker: Broker, every: Sequence[Experiment], often: float) -> int:
    """All trials at once; the most memory seen."""
    trials, most = [f"trial-{number}" for number in range(len(every))], 0

    async def evaluate(number: int, lease: str) -> None:
        *_, last = [item async for item in broker.evaluate(every[number], lease, (0.5, 1.0))]
        assert isinstance(last, Summary)

    async def ask() -> None:
        nonlocal most
        while True:
            most = max(most, common.resident())
            await asyncio.sleep(often)
            broker.status()
            for lease in trials:
                broker.renew(lease)

    asking = asyncio.create_task(ask())
    await asyncio.gather(*(evaluate(number, lease) for number, lease in enumerate(trials)))
    asking.cancel()
    return max(most, common.resident())


async def measured(folder: Path, stores: tuple[Counted, Counted], size: Size, profile: Any) -> Run:
    loop, events = asyncio.get_running_loop(), Counter[str]()
    assert isinstance(loop, Loop)
    often = size.units * UNIT_SECONDS / WORKERS / ASKED
    silence = 4 * max(1.0, often)  # the patrol walks four times in it
    runtime = Runtime(workers=WORKERS, gpus_per_worker=1.0, labels="stream", idle_seconds=silence,
                      lease_seconds=2 * silence, unit_retries=2)  # fmt: skip
    every = experiments(folder, size)
    units, world = count(every, runtime), World(loop, *stores, runtime)
    world.crowd = size.trials * size.pages // 32
    broker = Broker(
        graph=pipeline, store=stores[0], runtime=runtime, spawn=lambda: Worker(world), label=world.label,
        clock=loop.time, on_event=lambda name, **tags: events.update([name]),
    )  # fmt: skip
    before, began, cpu = common.resident(), loop.time(), loop.computed()
    with profile:
        most = await sweep(broker, every, often)
    run = Run(units, loop.time() - began, loop.computed() - cpu, world.busy, (before, most),
              stores[0].count, stores[1].count)  # fmt: skip
    await broker.close()
    assert events["unit_done"] == units and events["unit_retried"] and world.spoilt, (units, events)
    return run


def run(size: Size, latency: float = 0.0, free: bool = False, profile: Any = None) -> Run:
    """free: with a Broker that computes in no time."""
    gc.collect()
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as folder:
        stores = Counted(f"{folder}/store"), Counted(f"{folder}/store")
        with asyncio.Runner(loop_factory=lambda: Loop(free, latency, stores[0])) as runner:
            return runner.run(measured(Path(folder), stores, size, profile or nullcontext()))


def steps(units: int) -> dict[str, float]:
    """Each function of the modules with steps -> its processor seconds in a run; and all of the loop."""
    profile = cProfile.Profile(time.thread_time, builtins=False)
    gc.disable()
    try:
        run(Size(units, units // PER_TRIAL), profile=profile)
    finally:
        gc.enable()
    found: dict[str, float] = {ALL: 0.0}
    for (file, _, name), (_, _, own, whole, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        found[ALL] += own
        if Path(file).stem in MEASURED and "edc_ray" in file and name.isidentifier():
            step = f"{Path(file).stem}.{name}"
            found[step] = found.get(step, 0.0) + whole
    return found


# --- the table ----------------------------------------------------------------------------------------------


def growth(repeats: int) -> list[common.Row]:
    """The steps that take longest first."""
    found = [[steps(units) for units in UNITS] for _ in range(repeats)]
    largest = found[0][-1]
    told = [step for step in sorted(largest, key=lambda step: -largest[step])
            if largest[step] >= TOLD * largest[ALL]]  # fmt: skip
    rows = []
    for step in told:
        values = [float(np.polyfit(np.log(UNITS), np.log([size[step] for size in sizes]), 1)[0])
                  for sizes in found]  # fmt: skip
        note = f"{found[-1][0][step]:.3f} s at {UNITS[0]:,}, {found[-1][-1][step]:.2f} s at {UNITS[-1]:,}"
        rows.append(common.Row(step, values, GROWTH, note=note))
    return rows


def drain(size: Size, latency: float, repeats: int) -> list[common.Row]:
    runs = [run(size, latency) for _ in range(repeats)]
    ideal = run(size, free=True).seconds
    units, first = runs[0].units, runs[0]
    delay = f", {1000 * latency:g} ms a question to the store" if latency else ""
    growth = [(run.memory[1] - run.memory[0]) / 2**20 for run in runs]
    drained, cpu = [ideal / run.seconds for run in runs], [1000 * run.cpu / units for run in runs]
    most = [run.memory[1] / 2**30 for run in runs]
    rows = [
        common.Row(f"drain, {units:,} units in {size.trials} trials{delay}", drained, DRAIN, at_most=False,
                   note=f"{first.seconds:.0f} s, ideal {ideal:.0f} s"),
        common.Row("busy: of the time of 256 workers, stages that wait for each other included",
                   [run.busy / WORKERS / run.seconds for run in runs]),
        common.Row("overhead: the Broker's processor time, a unit", cpu, unit="ms"),
        common.Row("the Broker's share of one processor", [run.cpu / run.seconds for run in runs]),
        common.Row("memory: most of the Broker's process, torch included", most, GIGABYTES, unit="GB"),
        common.Row("memory: growth during the sweep", growth, unit="MB"),
    ]  # fmt: skip
    for who, asked in (("the Broker", first.broker), ("the workers", first.workers)):
        each = {kind: f"{asked[kind] / units:.2g}" for kind in KINDS}
        kinds = ", ".join(f"{kind} {value}" for kind, value in each.items() if value != "0")
        read, written = (f"{asked[way] / units / 1000:.2g} kB {way}" for way in ("read", "written"))
        note = f"{kinds}; {read}, {written}, {asked['names'] / units:.2g} names listed"
        total = sum(asked[kind] for kind in each) / units
        rows.append(common.Row(f"questions of {who} to the store, a unit", [total], note=note))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--pages", type=int, default=12, help="of labels, of a trial")
    parser.add_argument("--latency", type=float, default=0.0, help="ms of a question to the store")
    args = parser.parse_args(argv)
    common.begin(args)
    size = Size(args.units, args.trials, args.pages)
    return common.finish(args, [*drain(size, args.latency / 1000, args.repeats), *growth(args.repeats)])


if __name__ == "__main__":
    sys.exit(main())
