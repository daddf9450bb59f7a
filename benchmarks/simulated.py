"""What scale_sim.py puts in place of machines: a clock, a store that counts, workers that sleep.

Units take 5 to 15 s of a clock that leaps over the time in which nothing can happen, and else shows the
processor time of the Broker's process, one thing after the other: also what it does in threads, which
here run in the loop, as if they always held Python's lock. What workers do to the store does not count:
they are other machines. Nor does waiting for a disk; instead, with a latency, each question to the store
takes so much longer: those of the Broker in as many threads as asyncio has on a head with 16 processors,
those of a worker in its own time.
"""

import asyncio
import heapq
import math
import selectors
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs

from edc_ray import config, pipeline
from edc_ray.artifacts import Attempt, Receipt, Store
from edc_ray.config import Experiment, Runtime
from edc_ray.distributed.ledger import WorkerLost
from edc_ray.pipeline import Progress, Task, log_attempt
from edc_ray.pipeline.worker import Inputs

THREADS = 20
UNIT_SECONDS, PAGE_SECONDS = 10.0, 0.05  # pages follow on each other in one label job
ITEMS = 5  # that a worker yields during a unit
LOST = 100  # one unit in so many loses its first worker
CHANGES = {  # 10 groups of a synthesis and their fold, two pages an epoch
    "dataset.name": "parquet", "dataset.size_px": 8, "statistics.shard_images": 1,
    "init.ipc": 1, "recover.group_images": 1, "relabel.batch_size": 5, "relabel.page_images": 5,
}  # fmt: skip
FACTS = {"seconds": UNIT_SECONDS, "core_seconds": UNIT_SECONDS, "memory_bytes": 2**30, "images": 10,
         "host": "simulated", "device": "simulated"}  # fmt: skip
RESULT = {"result": torch.zeros(1)}
LABELS = pa.table({"step": pa.array([0], pa.int32()), "logits": [bytes(100)]})
KINDS = ("get", "put", "list", "look", "delete")  # of questions to a store


# --- the clock ----------------------------------------------------------------------------------------------


class _Leaping(selectors.DefaultSelector):
    """Does not wait for a timer; adds up what it would have waited."""

    leapt = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        found = super().select(0)
        self.leapt += 0.0 if found else timeout
        return found


class Loop(asyncio.SelectorEventLoop):
    """Its time: that of computing, where it is not free, less that of others, and the leaps.

    store: whose operations in threads take `latency` seconds more each.
    """

    def __init__(self, free: bool, latency: float, store: "Counted") -> None:
        self._leaping, self._free, self._latency, self._store = _Leaping(), free, latency, store
        self._threads = [0.0] * THREADS  # until when each is busy
        self._others = 0.0
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.leapt + (0.0 if self._free else self.computed())

    def computed(self) -> float:
        """Processor seconds of the Broker's process."""
        return time.thread_time() - self._others

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is done here is another machine's work."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._others += time.thread_time() - began

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future, before, failed = self.create_future(), self._store.asked(), False
        try:
            answer = func(*args)
        except Exception as error:
            answer, failed = error, True

        def end() -> None:
            if not future.cancelled():
                (future.set_exception if failed else future.set_result)(answer)

        begins = max(self.time(), heapq.heappop(self._threads))
        ends = begins + self._latency * (self._store.asked() - before)
        heapq.heappush(self._threads, ends)
        self.call_at(ends, end)
        return future


# --- the store ----------------------------------------------------------------------------------------------


class _Lists:
    """A file system that counts its listings and what they told."""

    def __init__(self, files: Any, count: Counter[str]) -> None:
        self._files, self._count = files, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def get_file_info(self, what: Any) -> Any:
        found = self._files.get_file_info(what)
        listing = isinstance(what, fs.FileSelector)
        self._count.update({"list": 1, "names": len(found)} if listing else {"look": 1})
        return found


class Counted(Store):
    """Counts what it is asked, by kind; and bytes read, bytes written, names listed."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.count = Counter[str]()
        self._fs = _Lists(self._fs, self.count)

    def asked(self) -> int:
        return sum(self.count[kind] for kind in KINDS)

    def get(self, relpath: str) -> bytes | None:
        data = super().get(relpath)
        self.count.update({"get": 1, "read": len(data or b"")})
        return data

    def put(self, relpath: str, data: bytes, first: bool = False) -> None:
        self.count.update({"put": 1, "written": len(data)})
        super().put(relpath, data, first)

    def drop(self, *relpaths: str) -> None:
        self.count["delete"] += len(relpaths)
        super().drop(*relpaths)


# --- the world ----------------------------------------------------------------------------------------------


class Size(NamedTuple):
    units: int  # about
    trials: int  # two share their images
    pages: int = 12  # of a trial, even


def experiments(folder: Path, size: Size) -> list[Experiment]:
    """Most units are of the statistics, which they share."""
    own = size.trials * (size.pages + 1) + math.ceil(size.trials / 2) * 11
    rows = max(2, round((size.units - own) / 0.9 / 10))  # a class, of which a tenth is held out
    table = pa.table({"image": [b"never read"] * 10 * rows, "label": np.arange(10 * rows) % 10})
    for part, rows_of in (("train", table), ("test", table.slice(0, 10))):
        pq.write_table(rows_of, folder / f"{part}.parquet")
    more = {"dataset.path": str(folder), "evaluate.epochs": size.pages // 2}
    base = config.override(Experiment(), CHANGES | more)
    return [
        replace(
            base,
            recover=replace(base.recover, lr=0.01 + 1e-4 * (number // 2)),
            relabel=replace(base.relabel, crop_min=0.5 + 1e-4 * number),
        )
        for number in range(size.trials)
    ]


def count(every: Sequence[Experiment], runtime: Runtime) -> int:
    """The units of all artifacts, folds included."""
    tasks = {task.key: task for experiment in every for task in pipeline.tasks(experiment)}
    return sum(len(pipeline.units(task, runtime)) + pipeline.finish(task) for task in tasks.values())


class World:
    """What all workers share. Their questions to the store are counted apart from the Broker's."""

    def __init__(self, loop: Loop, broker: Store, workers: Store, runtime: Runtime) -> None:
        self.loop, self.broker, self.workers, self.runtime = loop, broker, workers, runtime
        self.latency, self.tried, self.spoilt = loop._latency, set[tuple[str, str]](), False
        self.inputs = Inputs(workers, runtime, torch.device("cpu"))
        self.students = dict[str, float]()  # where each was interrupted
        self.busy = 0.0
        self.crowd = 0  # of a label job that a page spoils

    def lost(self, task: Task, unit: str) -> bool:
        """Whether this attempt is to lose its worker."""
        name = task.key, unit
        first = name not in self.tried
        self.tried.add(name)
        return first and zlib.crc32(repr(name).encode()) % LOST == 0

    async def asks(self, work: Any, *args: Any) -> Any:
        """What a worker does to the store."""
        before = self.workers.asked()
        with self.loop.elsewhere():
            answer = work(*args)
        if self.latency:
            await asyncio.sleep(self.latency * (self.workers.asked() - before))
        return answer

    def begin(self, task: Task, unit: str) -> None:
        self.workers.artifact(task.stage, task.key).load_checkpoint(unit)

    def read(self, task: Task, until: float) -> None:
        """The labels of a student that goes on to `until`."""
        labels = replace(task, stage="relabel")
        before = self.students.get(task.key, 0.0)
        done = pipeline.units(labels, self.runtime, before) if before else []
        for _ in self.inputs.label_tables(task, pipeline.units(labels, self.runtime, until)[len(done) :]):
            pass

    def pause(self, task: Task, unit: str, until: float) -> None:
        self.students[task.key] = until
        self.workers.artifact(task.stage, task.key).save_checkpoint(unit, RESULT, {"reports": curve(2)})

    def end(self, task: Task, unit: str) -> Receipt:
        artifact, facts = self.workers.artifact(task.stage, task.key), dict(FACTS)
        if task.stage == "relabel":
            receipt = artifact.write_table(unit, LABELS, facts)
        else:
            facts |= {"reports": curve(ITEMS)} if task.stage == "evaluate" else {}
            receipt = artifact.write(unit, RESULT, facts)
        artifact.drop_checkpoints(unit)
        log_attempt(self.workers, task, unit, Attempt("done", UNIT_SECONDS, "simulated"))
        return receipt

    async def label(
        self, pages: list[tuple[Task, str]], width: int
    ) -> AsyncGenerator[tuple[str, Receipt], None]:
        for task, unit in pages:
            await asyncio.sleep(PAGE_SECONDS)
            if self.lost(task, unit):
                raise WorkerLost("simulated")
            if not self.spoilt and len(pages) > self.crowd:
                self.spoilt = True
                raise RuntimeError("a page spoils its label job")
            await self.asks(self.begin, task, unit)
            yield task.key, await self.asks(self.end, task, unit)


def curve(points: int) -> tuple[tuple[int, float], ...]:
    return tuple((1000 * i // ITEMS, i / ITEMS) for i in range(1, points + 1))


class Worker:
    """Sleeps, and asks of the store what pipeline.Worker does. Each is on a node of its own."""

    def __init__(self, world: World) -> None:
        self._world, self.node = world, str(id(self))

    async def run(self, task: Task, unit: str, until: float) -> AsyncGenerator[Progress | Receipt, None]:
        world, student = self._world, task.stage == "evaluate"
        seconds = UNIT_SECONDS * (0.5 + zlib.crc32(f"{task}{unit}".encode()) / 2**32)
        lost = world.lost(task, unit)
        await world.asks(world.begin, task, unit)
        if student:
            await world.asks(world.read, task, until)
        for i in range(ITEMS):
            await asyncio.sleep(seconds / ITEMS)
            world.busy += seconds / ITEMS
            if lost:
                error = WorkerLost("simulated")
                attempt = Attempt("lost", seconds / ITEMS, "simulated", str(error))
                await asyncio.to_thread(log_attempt, world.broker, task, unit, attempt, error)
                raise error
            yield Progress(i, ITEMS, curve(round((i + 1) * until)) if student else ())
        if until < 1 and student:
            await world.asks(world.pause, task, unit, until)
        else:
            yield await world.asks(world.end, task, unit)

    def kill(self) -> None:
        pass
