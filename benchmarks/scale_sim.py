"""P7: the real Broker against 256 simulated workers: no step of it grows faster than n log n.

    python benchmarks/scale_sim.py [--repeats 2] [--json OUT]

    STEP       exponent of the processor time that the step takes in a run, over 1,000 to 8,000 units;
               n log n has 1.13 over this range                                        goal <= 1.15
    drain      10,000 units in 200 trials: the time that a Broker which computes nothing
               would take, over the time it takes                                      goal >= 0.95

A step is a function of edc_ray/distributed/broker.py or ledger.py, with all it calls. Growing together, and
all in flight at once: the units of one artifact that every second trial waits for, the trials, and the pages
of labels that they want. 1 % of the units lose a worker. Once a page spoils its label job, and the others
are made one by one. Who asks from time to time (leases, the patrol, the status line) asks equally often in
each run.

No Ray, no torch, no files. Units take about 10 s of a clock that leaps over the time in which nothing
happens; what the Broker computes, and its waiting for threads, take the time that they take. Steps are timed
by cProfile, which makes them slower, without Python's garbage collector.
"""

import asyncio
import cProfile
import gc
import math
import pstats
import resource
import selectors
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import common
import numpy as np

from edc_ray.config import Runtime
from edc_ray.distributed.broker import Broker, Summary
from edc_ray.distributed.ledger import WorkerLost

WORKERS = 256
UNITS, GROWTH = (1000, 2000, 4000, 8000), 1.15
DRAINED, DRAIN = 10_000, 0.95
PER_TRIAL = 50  # units, a trial's share of the common ones included
UNIT_SECONDS, PAGE_SECONDS = 10.0, 0.05  # pages follow on each other in one label job
ITEMS = 5  # that a worker yields during a unit
LOST = 100  # one unit in so many loses its first worker
ASKED = 40  # times in a run that leases are renewed, the patrol walks, and a status is printed
ALL = "all of the loop"
TOLD = 0.005  # share of the time at the largest size, below which a step is not told
PARENTS = {
    "squeeze": (),
    "statistics": ("squeeze",),
    "recover": ("squeeze", "statistics"),
    "relabel": ("squeeze", "recover"),
    "evaluate": ("recover", "relabel"),
}
Curve = tuple[tuple[int, float], ...]


# --- the clock ----------------------------------------------------------------------------------------------


class _Leaping(selectors.DefaultSelector):
    """Does not wait for a timer while nothing else can happen; adds up what it would have waited."""

    threads, leapt = 0, 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout <= 0 or self.threads:
            return super().select(timeout)
        found = super().select(0)
        self.leapt += 0.0 if found else timeout
        return found


class Loop(asyncio.SelectorEventLoop):
    """Its time: that of computing and of waiting for threads, where they are not free, and the leaps."""

    def __init__(self, free: bool) -> None:
        self._leaping, self._free = _Leaping(), free
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.leapt + (0.0 if self._free else super().time())

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        def ended(_: Any) -> None:
            self._leaping.threads -= 1

        self._leaping.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(ended)
        return future


# --- the world ----------------------------------------------------------------------------------------------


class Task(NamedTuple):
    stage: str
    key: str
    inputs: tuple[tuple[str, str], ...]
    count: int  # of units


class Progress(NamedTuple):
    reports: Curve = ()


class Receipt(NamedTuple):
    unit: str


def curve(points: int) -> Curve:
    return tuple((1000 * i // ITEMS, i / ITEMS) for i in range(1, points + 1))


class World:
    """Stage graph and store in memory. Every second trial finds its images made."""

    def __init__(self, units: int) -> None:
        trials = units // PER_TRIAL
        self.counts = {"squeeze": 8, "statistics": 0, "recover": 11, "relabel": 12, "evaluate": 1}
        own = trials * 13 + trials // 2 * 12  # recover has a fold besides, as statistics has
        self.counts["statistics"] = units - own - 9
        self.files: dict[str, set[str]] = {}
        self.committed = {f"recover-{number}" for number in range(0, trials, 2)}
        self.tried: set[tuple[str, str]] = set()
        self.crowd, self.spoilt = trials * self.counts["relabel"] // 8, False

    def tasks(self, trial: int) -> list[Task]:
        found: list[Task] = []
        for stage, count in self.counts.items():
            key = stage if stage in ("squeeze", "statistics") else f"{stage}-{trial}"
            found.append(Task(stage, key, tuple((each.stage, each.key) for each in found), count))
        return found

    def parents(self, task: Task, among: list[Task]) -> list[Task]:
        return [each for each in among if each.stage in PARENTS[task.stage]]

    def is_hit(self, task: Task, store: None, runtime: Runtime, until: float) -> bool:
        return task.key in self.committed

    def missing(self, task: Task, store: None, runtime: Runtime, until: float) -> list[str]:
        done = self.files.get(task.key, set())
        wanted = math.ceil(task.count * until) if task.stage == "relabel" else task.count
        return [unit for unit in map(str, range(wanted)) if unit not in done]

    def finish(self, task: Task) -> bool:
        return task.stage in ("statistics", "recover")

    def commit(self, task: Task, store: None, runtime: Runtime) -> None:
        self.committed.add(task.key)

    def reports(self, task: Task, store: None) -> Curve:
        return curve(ITEMS)

    def skipped(self, task: Task, runtime: Runtime) -> bool:
        return False

    def discard(self, error: BaseException | None, store: None) -> None:
        return None

    def put(self, task: Task, unit: str) -> Receipt:
        self.files.setdefault(task.key, set()).add(unit)
        return Receipt(unit)

    async def label(self, pages: list[tuple[Task, str]]) -> AsyncGenerator[tuple[str, Receipt], None]:
        for task, unit in pages:
            await asyncio.sleep(PAGE_SECONDS)
            if not self.spoilt and len(pages) > self.crowd:
                self.spoilt = True
                raise RuntimeError("a page spoils its label job")
            yield task.key, self.put(task, unit)


class Worker:
    """Sleeps."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, task: Task, unit: str, until: float) -> AsyncGenerator[Progress | Receipt, None]:
        name = task.key, unit
        dice = zlib.crc32(repr(name).encode())
        lost = name not in self._world.tried and dice % LOST == 0
        self._world.tried.add(name)
        for i in range(ITEMS):
            await asyncio.sleep(UNIT_SECONDS * (0.5 + dice / 2**32) / ITEMS)
            if lost:
                raise WorkerLost("simulated")
            yield Progress(curve(i + 1) if task.stage == "evaluate" else ())
        yield self._world.put(task, unit)

    def kill(self) -> None:
        pass


# --- a run --------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    seconds: float  # of the loop's clock
    cpu: float  # processor seconds of the loop's thread
    events: Counter[str]


async def sweep(broker: Broker, units: int) -> None:
    """All trials at once."""
    trials = [f"trial-{number}" for number in range(units // PER_TRIAL)]

    async def evaluate(number: int, lease: str) -> None:
        *_, last = [item async for item in broker.evaluate(number, lease, (0.5, 1.0))]
        assert isinstance(last, Summary)

    async def ask() -> None:
        while True:
            await asyncio.sleep(units * UNIT_SECONDS / WORKERS / ASKED)
            broker.status()
            for lease in trials:
                broker.renew(lease)

    asking = asyncio.create_task(ask())
    await asyncio.gather(*(evaluate(number, lease) for number, lease in enumerate(trials)))
    asking.cancel()


async def measured(units: int, profile: Any) -> Run:
    loop, world, events = asyncio.get_running_loop(), World(units), Counter[str]()
    silence = 4 * max(1.0, units * UNIT_SECONDS / WORKERS / ASKED)  # the patrol walks four times in it
    runtime = Runtime(workers=WORKERS, gpus_per_worker=1.0, labels="stream", idle_seconds=silence,
                      lease_seconds=2 * silence)  # fmt: skip
    broker = Broker(
        graph=world, store=None, runtime=runtime, spawn=lambda: Worker(world), label=world.label,
        clock=loop.time, on_event=lambda name, **tags: events.update([name]),
    )  # fmt: skip
    began, cpu = loop.time(), time.thread_time()
    with profile:
        await sweep(broker, units)
    run = Run(loop.time() - began, time.thread_time() - cpu, events)
    await broker.close()
    assert events["unit_done"] > 0.9 * units and events["unit_retried"] and world.spoilt, events
    return run


def run(units: int, profile: Any = None, free: bool = False) -> Run:
    """free: with a Broker that computes in no time."""
    gc.collect()
    with asyncio.Runner(loop_factory=lambda: Loop(free)) as runner:
        return runner.run(measured(units, profile or nullcontext()))


def steps(units: int) -> dict[str, float]:
    """Each function of the Broker and the Ledger -> its processor seconds in a run; and all of the loop."""
    profile = cProfile.Profile(time.thread_time, builtins=False)
    gc.disable()
    try:
        run(units, profile)
    finally:
        gc.enable()
    found: dict[str, float] = {ALL: 0.0}
    for (file, _, name), (_, _, own, whole, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        found[ALL] += own
        if Path(file).name in ("broker.py", "ledger.py") and name.isidentifier():
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


def drain(repeats: int) -> list[common.Row]:
    ideal = run(DRAINED, free=True).seconds
    runs = [run(DRAINED) for _ in range(repeats)]
    size = f"{DRAINED:,} units in {DRAINED // PER_TRIAL} trials"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        common.Row(f"drain, {size}", [ideal / run.seconds for run in runs], DRAIN, at_most=False,
                   note=f"{runs[0].seconds:.0f} s, ideal {ideal:.0f} s"),
        common.Row("its processor time, a unit", [1000 * run.cpu / DRAINED for run in runs], unit="ms"),
        common.Row("most memory of this process, torch included", [memory], unit="GB"),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__, repeats=2).parse_args(argv)
    common.begin(args)
    return common.finish(args, [*drain(args.repeats), *growth(args.repeats)])


if __name__ == "__main__":
    sys.exit(main())
