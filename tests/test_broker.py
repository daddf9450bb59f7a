"""The Broker with a toy stage graph, toy workers and a toy clock: no Ray, no torch, no waiting."""

import asyncio
import errno
import functools
import math
import pickle
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from edc_ray.artifacts import StoreError
from edc_ray.config import Runtime
from edc_ray.distributed import ledger
from edc_ray.distributed.broker import Broker, LeaseEnded, Report, Summary, UnitFailed, WorkerLost

T = TypeVar("T")
PARENTS = {
    "squeeze": (),
    "statistics": ("squeeze",),
    "recover": ("squeeze", "statistics"),
    "relabel": ("squeeze", "recover"),
    "evaluate": ("recover", "relabel"),
}
STEPS = 10  # of a student, one page of labels each; it reports every second one


class Exp(NamedTuple):
    """Experiments of one name share all but the student."""

    name: str = "a"
    lr: int = 0
    seeds: tuple[int, ...] = (0,)
    shards: int = 3


class ToyTask(NamedTuple):
    stage: str
    key: str
    inputs: tuple[tuple[str, str], ...]
    exp: Exp


@dataclass(frozen=True)
class Progress:
    reports: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Receipt:
    unit: str


class Damaged(Exception):
    def __init__(self, key: str, unit: str) -> None:
        super().__init__(key, unit)
        self.key, self.unit = key, unit


def curve(key: str, step: int) -> tuple[tuple[int, float], ...]:
    return tuple((100 * i, (i + int(key[-1])) / 20) for i in range(2, step + 1, 2))


class World:
    """Store, stage graph, workers and label jobs in one; logs what happens and fails where it is told to."""

    def __init__(self) -> None:
        self.files: dict[str, set[str]] = {}
        self.committed: set[str] = set()
        self.bad: set[tuple[str, str]] = set()
        self.students: dict[str, int] = {}  # their checkpoints
        self.started: list[tuple[str, str]] = []
        self.made: list[tuple[str, str]] = []
        self.label_jobs: list[list[tuple[str, str]]] = []
        self.widths: list[int] = []
        self.workers: list[ToyWorker] = []
        self.events: Counter[str] = Counter()
        self.holds: dict[str, asyncio.Event] = {}  # by key, or key/unit
        self.fail: Callable[[str, str, int], Exception | None] = lambda key, unit, step: None
        self.now, self.slots, self.labelling = 0.0, 0, 0

    # --- the graph ---

    def tasks(self, exp: Exp) -> list[ToyTask]:
        found: dict[str, ToyTask] = {}
        for seed in exp.seeds:
            inputs: tuple[tuple[str, str], ...] = ()
            for stage in PARENTS:
                key = f"{stage}-{exp.name}"
                key += {"relabel": f"-{seed}", "evaluate": f"-{exp.lr}-{seed}"}.get(stage, "")
                found[key] = ToyTask(stage, key, inputs, exp)
                inputs += ((stage, key),)
        return list(found.values())

    def parents(self, task: ToyTask, among: list[ToyTask]) -> list[ToyTask]:
        wanted = {pair for pair in task.inputs if pair[0] in PARENTS[task.stage]}
        return [each for each in among if (each.stage, each.key) in wanted]

    def units(self, task: ToyTask, until: float) -> list[str]:
        if task.stage == "evaluate":
            return ["student"]
        count = math.ceil(STEPS * until) if task.stage == "relabel" else task.exp.shards
        return [f"unit-{i}" for i in range(count)]

    def missing(self, task: ToyTask, store: Any, runtime: Any, until: float = 1.0) -> list[str]:
        return [unit for unit in self.units(task, until) if unit not in self.files.get(task.key, ())]

    def finished(self, task: ToyTask, unit: str, store: Any) -> bool:
        return unit in self.files.get(task.key, ())

    def is_hit(self, task: ToyTask, store: Any, runtime: Any, until: float = 1.0) -> bool:
        return task.key in self.committed

    def finish(self, task: ToyTask) -> bool:
        return task.stage in ("statistics", "recover")

    def skipped(self, task: ToyTask, runtime: Runtime) -> bool:
        return task.stage == "relabel" and runtime.labels == "inline"

    def commit(self, task: ToyTask, store: Any, runtime: Any, made: list[Any]) -> None:
        wanted = {*self.units(task, 1.0), *(["all"] if self.finish(task) else [])}
        assert wanted <= self.files[task.key], (
            f"{task.key} is committed without {wanted - self.files[task.key]}"
        )
        self.committed.add(task.key)

    def reports(self, task: ToyTask, store: Any) -> tuple[tuple[int, float], ...]:
        assert task.key in self.committed
        return curve(task.key, STEPS)

    def discard(self, error: BaseException | None, store: Any) -> str | None:
        if not isinstance(error, Damaged):
            return None
        self.bad.discard((error.key, error.unit))
        self.files[error.key].discard(error.unit)
        self.committed.discard(error.key)
        return error.key

    def evict(self, store: Any, limit: float, held: frozenset[str], used: dict[str, int]) -> list[str]:
        """Each page of labels is a gigabyte."""
        labels = [key for key in self.files if key.startswith("relabel")]
        gone = list[str]()
        for key in sorted(labels, key=lambda key: used.get(key, -1)):
            if key not in held and sum(len(self.files[each]) for each in labels) * 1e9 > limit:
                self.files[key] = set()
                self.committed.discard(key)
                gone.append(key)
        return gone

    # --- the work ---

    def read_inputs(self, task: ToyTask) -> None:
        for stage, key in task.inputs:
            if damaged := [bad for bad in self.bad if bad[0] == key and stage in PARENTS[task.stage]]:
                raise Damaged(*damaged[0])

    def put(self, task: ToyTask, unit: str) -> None:
        self.files.setdefault(task.key, set()).add(unit)
        self.made.append((task.key, unit))

    def have(self, exp: Exp, upto: str) -> None:
        """Let an experiment's stages before `upto` be there already."""
        for task in self.tasks(exp):
            if list(PARENTS).index(task.stage) < list(PARENTS).index(upto):
                self.files[task.key] = {*self.units(task, 1.0), "all"}
                self.committed.add(task.key)

    def hold(self, name: str) -> asyncio.Event:
        return self.holds.setdefault(name, asyncio.Event())

    async def pause(self, key: str, unit: str) -> None:
        await asyncio.sleep(0)
        for name in (key, f"{key}/{unit}"):
            if name in self.holds:
                await self.holds[name].wait()

    def alive(self) -> list["ToyWorker"]:
        return [worker for worker in self.workers if worker.alive]

    def spawn(self) -> "ToyWorker":
        self.workers.append(ToyWorker(self))
        assert len(self.alive()) + self.labelling <= self.slots
        return self.workers[-1]

    async def label(self, pages: list[tuple[Any, str]], width: int) -> AsyncGenerator[tuple[str, Any], None]:
        assert not self.labelling and width >= 1
        self.labelling = width
        self.widths.append(width)
        assert len(self.alive()) + width <= self.slots
        self.label_jobs.append([(task.key, unit) for task, unit in pages])
        try:
            for task, unit in pages:
                await self.pause(task.key, unit)
                self.read_inputs(task)
                if error := self.fail(task.key, unit, 0):
                    raise error
                self.put(task, unit)
                yield task.key, Receipt(unit)
        finally:
            self.labelling = 0

    def task(self, exp: Exp, stage: str) -> ToyTask:
        return next(task for task in self.tasks(exp) if task.stage == stage)

    @asynccontextmanager
    async def broker(self, **runtime: Any) -> AsyncIterator[Broker]:
        chosen = Runtime(**{"gpus_per_worker": 1.0, **runtime})
        held = 0 if chosen.gpus_per_worker else chosen.label_workers
        self.slots = chosen.workers + held  # without GPUs, labels hold none of the workers'
        broker = Broker(
            graph=self,
            store=None,
            runtime=chosen,
            spawn=self.spawn,
            label=self.label,
            clock=lambda: self.now,
            on_event=lambda name, **tags: self.events.update([name]),
        )
        try:
            yield broker
        finally:
            await broker.close()
        assert not self.alive() and self.events["worker_killed"] == self.events["worker_spawned"]
        assert not broker._ears and not broker._ledger._watchers
        names = [str(task.get_coro()) for task in asyncio.all_tasks()]
        assert not [name for name in names if "Broker." in name or "Ledger." in name], "a task has leaked"


class ToyWorker:
    def __init__(self, world: World) -> None:
        self.world, self.alive, self.busy = world, True, ""
        self.node: str | None = "a"

    async def run(self, task: Any, unit: str, until: float) -> AsyncGenerator[Any, None]:
        assert self.alive and not self.busy
        self.busy = f"{task.key}/{unit}"
        self.world.started.append((task.key, unit))
        try:
            self.world.read_inputs(task)
            student = task.stage == "evaluate"
            first, last = (self.world.students.get(task.key, 0), int(STEPS * until)) if student else (0, 2)
            for step in range(first, last):
                await self.world.pause(task.key, unit)
                if error := self.world.fail(task.key, unit, step):
                    raise error
                if student:
                    self.world.students[task.key] = step + 1
                yield Progress(curve(task.key, step + 1) if student else ())
            if student and until < 1:
                yield Progress(curve(task.key, self.world.students[task.key]))
            else:
                self.world.put(task, unit)
                if error := self.world.fail(task.key, unit, last):
                    raise error
                yield Receipt(unit)
        finally:
            await self.world.pause("closing", unit)
            self.busy = ""

    def kill(self) -> None:
        assert self.alive
        self.alive = False


def go(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run; anything the loop would only log, such as an exception nobody took, fails the test."""

    async def guarded() -> T:
        odd: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: odd.append(context))
        result = await asyncio.wait_for(main, 30)
        assert not odd, odd
        return result

    return asyncio.run(guarded())


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    return functools.wraps(test)(lambda **given: go(test(**given)))


async def eventually(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def settled() -> None:
    """Everything that can go on without help has gone on; threads of the pool included."""
    for _ in range(5):
        await asyncio.sleep(0.002)


async def collect(broker: Broker, exp: Exp, lease: str = "t", **kwargs: Any) -> tuple[list[Report], Summary]:
    items = [item async for item in broker.evaluate(exp, lease, **kwargs)]
    reports, summary = items[:-1], items[-1]
    assert isinstance(summary, Summary)
    return [each for each in reports if isinstance(each, Report)], summary


def lost_at(*places: tuple[str, str, int]) -> Callable[[str, str, int], Exception | None]:
    """Each place costs one worker."""
    left = list(places)

    def fail(*place: Any) -> Exception | None:
        if place not in left:
            return None
        left.remove(place)
        return WorkerLost("node gone")

    return fail


# --- builds ---------------------------------------------------------------------------------------------


@in_loop
async def test_ten_builds_of_one_artifact_run_each_unit_once() -> None:
    world = World()
    tasks, task = world.tasks(Exp()), world.task(Exp(), "recover")
    async with world.broker(workers=3) as broker:
        outcomes = await asyncio.gather(*(broker.build(task, tasks) for _ in range(10)))
        assert {outcome.hit for outcome in outcomes} == {False}
        assert len(world.made) == len(set(world.made)) == 3 + 4 + 4
        assert (await broker.build(task, tasks)).hit
        assert broker.status()["building"] == []
    assert world.events["stage_built"] == 3 and world.events["stage_hit"] == 1


@in_loop
async def test_an_artifact_that_exists_asks_for_no_parents() -> None:
    world = World()
    world.have(Exp(), "relabel")
    world.committed -= {"squeeze-a", "statistics-a"}
    async with world.broker() as broker:
        assert (await broker.build(world.task(Exp(), "recover"), world.tasks(Exp()))).hit
    assert world.made == []


@in_loop
async def test_deepest_stage_first_then_older_artifact_then_unit_order() -> None:
    world = World()
    for name, stage in {"b": "squeeze", "c": "recover", "d": "recover", "e": "evaluate"}.items():
        world.have(Exp(name), stage)
    async with world.broker(workers=1) as broker:

        def queue_has(length: int) -> Callable[[], bool]:
            return lambda: sum(broker.status()["todo"].values()) == length + 1  # one runs

        gate = world.hold("squeeze-a")
        builds, wants = [], ["squeeze", "squeeze", "recover", "recover", "evaluate"]
        for name, stage, length in zip("abcde", wants, [2, 5, 8, 11, 12], strict=True):
            exp = Exp(name)
            builds.append(asyncio.create_task(broker.build(world.task(exp, stage), world.tasks(exp))))
            await eventually(queue_has(length))
        world.started.clear()
        gate.set()
        await asyncio.gather(*builds)
    units = [(key, unit) for key, unit in world.started if unit != "all"]
    want = [("evaluate-e-0-0", "student")]
    want += [(f"recover-{name}", f"unit-{i}") for name in "cd" for i in range(3)]
    want += [("squeeze-a", "unit-1"), ("squeeze-a", "unit-2")]
    want += [("squeeze-b", f"unit-{i}") for i in range(3)]
    assert units == want


@in_loop
async def test_a_free_worker_takes_the_next_unit() -> None:
    world = World()
    exp = Exp(shards=6)
    async with world.broker(workers=2) as broker:
        gate = world.hold("squeeze-a/unit-0")
        build = asyncio.create_task(broker.build(world.task(exp, "squeeze"), world.tasks(exp)))
        await eventually(lambda: len(world.made) == 5)
        await eventually(lambda: broker.status()["busy"] == ["squeeze-squeeze-a/unit-0"])
        gate.set()
        await build
    assert len(world.workers) == 2


@in_loop
async def test_a_lost_unit_goes_to_another_worker() -> None:
    world = World()
    world.fail = lost_at(("recover-a", "unit-1", 1), ("recover-a", "unit-1", 0), ("recover-a", "all", 0))
    async with world.broker(workers=2) as broker:
        await broker.build(world.task(Exp(), "recover"), world.tasks(Exp()))
    assert world.events["unit_retried"] == 3 and len(world.made) == len(set(world.made)) == 11


@in_loop
async def test_what_a_lost_worker_had_written_is_not_made_again() -> None:
    world = World()
    world.fail = lost_at(("recover-a", "unit-1", 2), ("recover-a", "all", 2))
    async with world.broker(workers=2) as broker:
        await broker.build(world.task(Exp(), "recover"), world.tasks(Exp()))
    assert world.events["unit_retried"] == 2 and len(world.made) == len(set(world.made)) == 11
    assert world.made == world.started


def test_a_student_resumes_from_its_checkpoint_with_the_same_reports() -> None:
    async def main(*places: tuple[str, str, int]) -> tuple[list[Report], Summary]:
        world = World()
        world.fail = lost_at(*places)
        async with world.broker() as broker:
            return await collect(broker, Exp(seeds=(0, 1)))

    student = "evaluate-a-0-1", "student"
    assert go(main((*student, 3), (*student, 3), (*student, 9))) == go(main())


@in_loop
async def test_a_poisoned_unit_fails_its_artifact_and_leaves_the_others() -> None:
    world = World()
    world.fail = lambda key, unit, step: (
        WorkerLost("out of memory") if (key, unit) == ("squeeze-a", "unit-1") else None
    )
    async with world.broker(workers=2, unit_retries=2) as broker:
        builds = [broker.build(world.task(Exp(n), "recover"), world.tasks(Exp(n))) for n in "ab"]
        failed, fine = await asyncio.gather(*builds, return_exceptions=True)
        assert isinstance(failed, UnitFailed) and isinstance(failed.__cause__, WorkerLost)
        assert all(part in str(failed) for part in ("squeeze-a", "unit-1", "3 workers", "out of memory"))
        assert not isinstance(fine, BaseException)
    assert Counter(world.started)["squeeze-a", "unit-1"] == 3


@in_loop
async def test_a_bug_fails_all_who_wait_for_that_key_only_and_is_not_retried() -> None:
    world = World()
    world.fail = lambda key, unit, step: (
        FloatingPointError("nan at step 7") if (key, unit) == ("recover-a", "unit-2") else None
    )
    async with world.broker(workers=2) as broker:
        wants = [("a", "recover"), ("a", "recover"), ("a", "statistics"), ("b", "recover")]
        builds = [broker.build(world.task(Exp(n), s), world.tasks(Exp(n))) for n, s in wants]
        results = await asyncio.gather(*builds, return_exceptions=True)
        assert [isinstance(each, UnitFailed) for each in results] == [True, True, False, False]
        text = "recover-recover-a, unit unit-2: FloatingPointError: nan at step 7"
        assert str(results[0]) == text and Counter(world.started)["recover-a", "unit-2"] == 1
        assert len(world.alive()) <= 2 and broker.status()["building"] == []
        world.fail = lambda key, unit, step: None
        assert not (await broker.build(world.task(Exp(), "recover"), world.tasks(Exp()))).hit


@pytest.mark.parametrize("reader", ["recover", "relabel"])
@in_loop
async def test_a_damaged_input_is_made_again(reader: str) -> None:
    world = World()
    world.have(Exp(), reader)
    world.bad = {("squeeze-a", "unit-1")}
    async with world.broker(workers=2, labels="stream") as broker:
        await broker.build(world.task(Exp(), reader), world.tasks(Exp()))
    squeezed = [unit for key, unit in world.made if key == "squeeze-a"]
    assert squeezed == ["unit-1"] and "squeeze-a" in world.committed
    assert max(Counter(world.made).values()) == 1 and world.events["artifact_damaged"] == 1


@in_loop
async def test_a_damaged_unit_found_by_its_own_fold_is_made_again() -> None:
    world = World()
    errors = [Damaged("recover-a", "unit-1")]
    world.fail = lambda key, unit, step: (
        errors.pop() if errors and (key, unit) == ("recover-a", "all") else None
    )
    async with world.broker() as broker:
        await broker.build(world.task(Exp(), "recover"), world.tasks(Exp()))
    assert [unit for unit, n in Counter(world.made).items() if n == 2] == [("recover-a", "unit-1")]


@pytest.mark.parametrize("wanted", ["recover", "evaluate"])
@in_loop
async def test_an_input_that_is_always_damaged_ends_the_build(wanted: str) -> None:
    world = World()
    world.fail = lambda key, unit, step: (
        Damaged("squeeze-a", "unit-0") if (key, unit) == ("recover-a", "unit-0") else None
    )
    async with world.broker() as broker:
        with pytest.raises(UnitFailed, match=r"recover-a.*unit-0.*Damaged"):
            await broker.build(world.task(Exp(), wanted), world.tasks(Exp()))
    assert Counter(world.made)["squeeze-a", "unit-0"] == 3  # whoever waits for it does not try it all again


@in_loop
async def test_a_damaged_artifact_that_is_no_direct_input_is_made_again() -> None:
    world = World()
    world.have(Exp(), "relabel")
    world.bad = {("statistics-a", "unit-1")}
    world.fail = lambda key, unit, step: Damaged("statistics-a", "unit-1") if world.bad else None
    async with world.broker() as broker:
        await collect(broker, Exp())
    assert world.made[0] == ("statistics-a", "unit-1") and "statistics-a" in world.committed


@in_loop
async def test_a_unit_that_ends_while_the_store_is_listed_is_not_run_again() -> None:
    world = World()
    tasks, task = world.tasks(Exp(shards=1)), world.task(Exp(shards=1), "squeeze")
    async with world.broker() as broker:
        gate = world.hold("squeeze-a")
        first = asyncio.create_task(broker.build(task, tasks))
        await eventually(lambda: world.started)
        first.cancel()
        await settled()
        listed, answer, missing = threading.Event(), threading.Event(), world.missing

        def slowly(task: ToyTask, store: Any, runtime: Any, until: float = 1.0) -> list[str]:
            found = missing(task, store, runtime, until)
            listed.set()
            answer.wait(10)
            return found

        world.missing = slowly  # type: ignore[method-assign]
        second = asyncio.create_task(broker.build(task, tasks))
        await eventually(listed.is_set)
        gate.set()
        await eventually(lambda: world.made and not broker.status()["busy"])
        answer.set()
        await second
    assert world.made == [("squeeze-a", "unit-0")]


@in_loop
async def test_a_cancelled_waiter_leaves_the_build_to_the_others() -> None:
    world = World()
    tasks, task = world.tasks(Exp()), world.task(Exp(), "recover")
    async with world.broker() as broker:
        gate = world.hold("squeeze-a")
        first, second = (asyncio.create_task(broker.build(task, tasks)) for _ in range(2))
        await eventually(lambda: world.started)
        first.cancel()
        gate.set()
        assert not (await second).hit
        assert first.cancelled() and len(world.made) == len(set(world.made)) == 11


@in_loop
async def test_without_waiters_queued_units_are_dropped_and_running_ones_finish() -> None:
    world = World()
    tasks, task = world.tasks(Exp()), world.task(Exp(), "squeeze")
    async with world.broker(workers=2) as broker:
        gate = world.hold("squeeze-a")
        build = asyncio.create_task(broker.build(task, tasks))
        await eventually(lambda: len(world.started) == 2)
        build.cancel()
        await settled()
        gate.set()
        await eventually(lambda: not broker.status()["busy"])
        assert world.made == [("squeeze-a", "unit-0"), ("squeeze-a", "unit-1")]
        assert broker.status()["building"] == [] and broker.status()["todo"] == {}
        await broker.build(task, tasks)
    assert len(world.made) == len(set(world.made)) == 3


# --- workers --------------------------------------------------------------------------------------------


@in_loop
async def test_idle_workers_are_killed_and_spawned_again() -> None:
    world = World()
    async with world.broker(workers=3, idle_seconds=30.0) as broker:
        await broker.build(world.task(Exp("a"), "squeeze"), world.tasks(Exp("a")))
        assert len(world.alive()) == 3
        world.now = 29.0
        broker.reap()
        assert len(world.alive()) == 3
        world.now = 30.0
        broker.reap()
        assert len(world.alive()) == 0 == broker.status()["workers"]
        await broker.build(world.task(Exp("b"), "squeeze"), world.tasks(Exp("b")))
        assert len(world.workers) == 6


@in_loop
async def test_no_more_workers_than_units() -> None:
    world = World()
    async with world.broker(workers=8) as broker:
        await broker.build(world.task(Exp(shards=2), "squeeze"), world.tasks(Exp(shards=2)))
    assert len(world.workers) == 2


@in_loop
@pytest.mark.parametrize(("lost", "gone"), [("a", {"a"}), (None, {"a", "b", None})])
async def test_a_loss_makes_idle_neighbours_suspect(lost: str | None, gone: set[str | None]) -> None:
    """Those of its node go; all, where it died before its node was known."""
    world = World()
    async with world.broker(workers=4) as broker:
        exp = Exp("a", shards=4)
        await broker.build(world.task(exp, "squeeze"), world.tasks(exp))
        idle = list(broker._ledger._idle)
        for worker, node in zip(idle, ("a", "b", None, lost), strict=True):  # the last one is taken next
            worker.node = node
        world.fail = lost_at(("squeeze-b", "unit-0", 0))
        exp = Exp("b", shards=1)
        await broker.build(world.task(exp, "squeeze"), world.tasks(exp))
        assert {each.node for each in idle[:3] if not each.alive} == gone  # type: ignore[attr-defined]
        assert not idle[3].alive  # type: ignore[attr-defined]


@in_loop
async def test_a_worker_that_cannot_be_spawned_fails_the_unit() -> None:
    world = World()
    async with world.broker() as broker:
        broker._ledger._spawn = lambda: [][0]
        with pytest.raises(UnitFailed, match=r"squeeze-a.*IndexError"):
            await broker.build(world.task(Exp(), "squeeze"), world.tasks(Exp()))
        assert broker.status()["workers"] == 0


# --- labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(1.0,), (0.2, 0.4, 1.0)])
@in_loop
async def test_one_slot_is_enough_for_streamed_labels(stops: tuple[float, ...]) -> None:
    world = World()
    async with world.broker(workers=1, labels="stream") as broker:
        exps = [Exp(name, lr, (0, 1)) for name in "ab" for lr in (0, 1)]
        results = await asyncio.gather(
            *(collect(broker, exp, f"t{i}", stops=stops) for i, exp in enumerate(exps))
        )
    assert len(world.made) == len(set(world.made)) == 2 * (3 + 4 + 4) + 4 * STEPS + 8
    assert all(reports == results[0][0] for reports, _ in results) and len(results[0][0]) == 5
    assert {key for key in world.committed if key.startswith("relabel")} == {
        f"relabel-{name}-{seed}" for name in "ab" for seed in (0, 1)
    }


@in_loop
async def test_label_jobs_are_shared() -> None:
    world = World()
    for name in "abcde":
        world.have(Exp(name), "relabel")
    async with world.broker(workers=2, labels="stream") as broker:
        held = world.holds["relabel-a-0"] = asyncio.Event()
        students = asyncio.gather(*(collect(broker, Exp(name), name) for name in "abcde"))
        await eventually(lambda: world.labelling)
        await settled()  # the others wait for the first job
        held.set()
        await students
    assert len(world.label_jobs) < 5
    assert len({page for job in world.label_jobs for page in job}) == 5 * STEPS


@in_loop
@pytest.mark.parametrize("gpus", [1.0, 0.0])
async def test_a_label_job_has_as_many_labellers_as_can_be_spared(gpus: float) -> None:
    """With GPUs they are slots of the pool, which students get back when it ends."""
    world, exps = World(), [Exp(name) for name in "ab"]
    for exp in exps:
        world.have(exp, "relabel")
    async with world.broker(workers=4, label_workers=3, gpus_per_worker=gpus, labels="stream") as broker:
        held = world.holds["relabel-a-0"] = asyncio.Event()
        students = asyncio.gather(*(collect(broker, exp, exp.name) for exp in exps))
        await eventually(lambda: world.labelling == 3)
        assert broker._ledger._free_slots() == (1 if gpus else 4)
        held.set()
        await students
        assert broker.status()["labelling"] == 0 and not broker._ledger._label_slots
    assert world.widths[0] == 3


@in_loop
async def test_a_page_is_handed_on_before_its_label_job_ends() -> None:
    world = World()
    for name in "ab":
        world.have(Exp(name), "relabel")
    async with world.broker(workers=2, labels="stream") as broker:
        gate = world.hold("relabel-b-0")
        both = [asyncio.create_task(collect(broker, Exp(name), name)) for name in "ab"]
        await both[0]
        assert not both[1].done()
        gate.set()
        await both[1]


@in_loop
@pytest.mark.parametrize("company", [STEPS, STEPS + 1])
async def test_a_label_job_waits_for_company_while_units_are_queued(
    company: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edc_ray.distributed.ledger.COMPANY", company)
    world = World()
    world.have(Exp("b"), "relabel")
    async with world.broker(workers=1, labels="stream") as broker:
        gate = world.hold("squeeze-a/unit-0")
        squeeze = asyncio.create_task(broker.build(world.task(Exp(), "squeeze"), world.tasks(Exp())))
        await eventually(lambda: world.started)
        pages = asyncio.create_task(broker.build(world.task(Exp("b"), "relabel"), world.tasks(Exp("b"))))
        await eventually(lambda: broker.status()["todo"].get("relabel") == STEPS)
        gate.set()
        await asyncio.gather(squeeze, pages)
    pages_made, rest = ["relabel-b-0"] * STEPS, ["squeeze-a"] * 2
    order = pages_made + rest if company <= STEPS else rest + pages_made
    assert [key for key, _ in world.made] == ["squeeze-a", *order]


@in_loop
async def test_a_label_job_without_a_gpu_holds_no_slot() -> None:
    world = World()
    for name in "ab":
        world.have(Exp(name), "relabel")
    async with world.broker(workers=1, labels="stream", gpus_per_worker=0.0) as broker:
        await asyncio.gather(*(collect(broker, Exp(name), name) for name in "ab"))
    assert world.events["worker_spawned"] == 1
    assert world.events["worker_killed"] == 1  # at the end


@in_loop
async def test_labels_are_made_and_students_run_to_the_next_stop_only() -> None:
    world = World()
    async with world.broker(workers=2, labels="stream") as broker:
        stream = broker.evaluate(Exp(), "t", stops=(0.4, 0.8, 1.0))
        async with aclosing(stream):
            seen = [await anext(stream), await anext(stream)]
            await settled()
            assert [each.progress for each in seen if isinstance(each, Report)] == [200, 400]
            assert len(world.files["relabel-a-0"]) == 4 and world.students["evaluate-a-0-0"] == 4
            assert broker.status()["busy"] == []  # at a stop a student holds no worker
            await anext(stream)
            assert len(world.files["relabel-a-0"]) == 8
        await settled()
        assert world.students["evaluate-a-0-0"] == 8 and "evaluate-a-0-0" not in world.committed


@in_loop
async def test_a_lost_label_job_goes_on_with_the_pages_that_are_left() -> None:
    world = World()
    world.have(Exp(), "relabel")
    world.fail = lost_at(("relabel-a-0", "unit-4", 0), ("relabel-a-0", "unit-7", 0))
    async with world.broker(workers=1, labels="stream") as broker:
        await collect(broker, Exp())
    assert [len(job) for job in world.label_jobs] == [10, 6, 3]


@in_loop
async def test_a_lost_label_job_counts_for_the_page_that_was_at_work_only() -> None:
    world = World()
    world.have(Exp(), "relabel")
    world.fail = lost_at(*(("relabel-a-0", f"unit-{i}", 0) for i in (1, 3, 5, 7, 7)))
    async with world.broker(workers=1, labels="stream", unit_retries=2) as broker:
        await collect(broker, Exp())
    assert [len(job) for job in world.label_jobs] == [10, 9, 7, 5, 3, 3]
    assert world.events["unit_retried"] == 5


@in_loop
async def test_a_page_that_always_loses_its_label_job_spares_the_other_trials() -> None:
    world = World()
    for name in "ab":
        world.have(Exp(name), "relabel")
    world.fail = lost_at(*[("relabel-a-0", "unit-2", 0)] * 100)
    async with world.broker(workers=2, labels="stream", unit_retries=1) as broker:
        both = [asyncio.create_task(collect(broker, Exp(name), name)) for name in "ab"]
        with pytest.raises(UnitFailed, match="unit-2: 2 workers were lost on it"):
            await both[0]
        await both[1]


FULL = StoreError("relabel", "unit-0", "/x", errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "jobs"),
    [(WorkerLost("gone"), [STEPS] * 3), (ValueError("bad page"), [STEPS, 1]), (FULL, [STEPS])],
)
@in_loop
async def test_a_label_job_that_always_fails_ends_the_trial(error: Exception, jobs: list[int]) -> None:
    """Pages are tried one by one only where one of them may be to blame."""
    world = World()
    world.have(Exp(), "relabel")
    world.fail = lambda key, unit, step: error if key.startswith("relabel") else None
    async with world.broker(workers=1, labels="stream", unit_retries=2) as broker:
        with pytest.raises(UnitFailed, match="relabel-a-0"):
            await collect(broker, Exp())
        assert [len(job) for job in world.label_jobs][: len(jobs)] == jobs
        assert error is not FULL or len(world.label_jobs) == 1
        await broker.build(world.task(Exp("b"), "squeeze"), world.tasks(Exp("b")))


@in_loop
async def test_a_bad_page_spares_the_other_trials_of_its_label_job() -> None:
    world = World()
    for name in "ab":
        world.have(Exp(name), "relabel")
    world.fail = lambda key, unit, step: (
        ValueError("bad") if (key, unit) == ("relabel-a-0", "unit-2") else None
    )
    async with world.broker(workers=2, labels="stream") as broker:
        both = [asyncio.create_task(collect(broker, Exp(name), name)) for name in "ab"]
        with pytest.raises(UnitFailed, match="unit-2: ValueError: bad"):
            await both[0]
        await both[1]


@in_loop
async def test_pages_that_nobody_waits_for_any_more_are_not_labelled() -> None:
    """Neither those that wait for a slot nor those that go one by one since a page spoilt their job."""
    world = World()
    for name in "abc":
        world.have(Exp(name), "relabel")
    errors = [ValueError("once")]
    world.fail = lambda key, unit, step: errors.pop() if errors and key.startswith("relabel") else None
    async with world.broker(workers=1, labels="stream") as broker:
        busy, page = world.hold("squeeze-d"), world.hold("relabel-a-0/unit-1")
        one = Exp("d", shards=1)
        squeeze = asyncio.create_task(broker.build(world.task(one, "squeeze"), world.tasks(one)))
        await eventually(lambda: world.started)

        def wanted(pages: int) -> Callable[[], bool]:
            return lambda: broker.status()["todo"].get("relabel") == pages

        builds = []
        for count, name in enumerate("abc", 1):
            exp = Exp(name)
            builds.append(asyncio.create_task(broker.build(world.task(exp, "relabel"), world.tasks(exp))))
            await eventually(wanted(count * STEPS))
        builds[2].cancel()
        await settled()
        busy.set()
        await squeeze
        await eventually(lambda: len(world.label_jobs) == 3)
        builds[1].cancel()
        await settled()
        page.set()
        await builds[0]
        assert broker.status()["todo"] == {}
    alone = [[("relabel-a-0", f"unit-{i}")] for i in range(STEPS)]
    assert {key for key, _ in world.label_jobs[0]} == {"relabel-a-0", "relabel-b-0"}
    assert world.label_jobs[1:] == alone


@in_loop
async def test_a_failure_says_whether_it_is_the_units_own() -> None:
    away = StoreError("recover", "unit-0", "/x", errno.EIO, "Input/output error")
    errors = ((ValueError("own"), False), (away, True), (WorkerLost("gone"), True), (FULL, True))
    for error, lost in errors:
        world = World()
        world.fail = lambda key, unit, step, error=error: error  # type: ignore[misc]
        async with world.broker(workers=1, unit_retries=0) as broker:
            with pytest.raises(UnitFailed) as caught:
                await collect(broker, Exp())
        for failure in (caught.value, pickle.loads(pickle.dumps(caught.value))):
            assert (failure.lost, failure.hopeless) == (lost, error is FULL)


@in_loop
async def test_a_label_job_that_forgets_a_page_is_a_failure() -> None:
    world = World()
    world.have(Exp(), "relabel")
    async with world.broker(workers=1, labels="stream") as broker:
        whole = world.label
        broker._ledger._label = lambda pages, width: whole(pages[:-1], width)
        with pytest.raises(UnitFailed, match=r"unit-9.*ended without"):
            await collect(broker, Exp())


# --- evaluations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["inline", "stream"])
@in_loop
async def test_an_evaluation_reports_the_mean_of_its_seeds_and_sums_up(labels: str) -> None:
    world = World()
    async with world.broker(workers=2, labels=labels) as broker:
        reports, summary = await collect(broker, Exp(seeds=(0, 1)))
        want = [Report(100 * i, (i + 0.5) / 20, (i / 20, (i + 1) / 20)) for i in range(2, 11, 2)]
        assert [each.progress for each in reports] == [each.progress for each in want]
        assert [each.accuracies for each in reports] == [each.accuracies for each in want]
        assert [each.accuracy for each in reports] == pytest.approx([each.accuracy for each in want])
        assert summary.curve == tuple((each.progress, each.accuracy) for each in reports)
        assert summary.accuracies == (0.5, 0.55) and set(summary.seconds) >= {"squeeze", "evaluate"}
        assert (summary.hits, summary.built) == (0, 5 if labels == "inline" else 7)
        assert ("relabel-a-0" in world.committed) == (labels == "stream")

        made = len(world.made)
        again, second = await collect(broker, Exp(seeds=(0, 1)), stops=(0.5, 1.0))
        assert again == reports and len(world.made) == made
        assert (second.hits, second.built, second.curve) == (2, 0, summary.curve)
        _, third = await collect(broker, Exp(lr=1))
        assert (third.hits > 0, third.built) == (True, 1)


@in_loop
async def test_evicted_labels_are_not_made_again_for_a_finished_evaluation() -> None:
    world = World()
    async with world.broker(labels="stream") as broker:
        await collect(broker, Exp())
        world.files["relabel-a-0"].clear()
        world.committed.discard("relabel-a-0")
        await collect(broker, Exp())
    assert len(world.files["relabel-a-0"]) == 0


@in_loop
async def test_labels_over_the_budget_go_but_never_those_in_use() -> None:
    """Room for two of three label artifacts; a trial that stands at a stop holds the oldest."""
    world = World()
    for name in "abc":
        world.have(Exp(name), "relabel")
    async with world.broker(workers=1, labels="stream", label_budget_gb=2.0 * STEPS) as broker:
        stream = broker.evaluate(Exp("a"), "holder", stops=(0.5, 1.0))
        async with aclosing(stream):
            assert isinstance(await anext(stream), Report)
            for name in "bc":
                await collect(broker, Exp(name), name)
            pages = {key: len(units) for key, units in world.files.items() if key.startswith("relabel")}
            assert pages == {"relabel-a-0": STEPS // 2, "relabel-b-0": 0, "relabel-c-0": STEPS}
            assert world.events["labels_evicted"] == 1
            await collect(broker, Exp("b", lr=1), "b")  # made again; now c is the older
            assert not world.files["relabel-c-0"] and len(world.files["relabel-a-0"]) == STEPS // 2
            *_, last = [item async for item in stream]
            assert isinstance(last, Summary)
    assert max(Counter(world.made)["relabel-a-0", unit] for unit in world.files["relabel-a-0"]) == 1


@pytest.mark.parametrize("stops", [((1.0,), (1.0,)), ((0.5, 1.0), (1.0,)), ((0.2, 1.0), (0.6, 1.0))])
@in_loop
async def test_two_trials_with_one_key_share_the_student(stops: tuple[tuple[float, ...], ...]) -> None:
    world = World()
    async with world.broker(workers=2, labels="stream") as broker:
        gate = world.hold("evaluate-a-0-0")
        first = asyncio.create_task(collect(broker, Exp(), "t1", stops=stops[0]))
        await eventually(lambda: ("evaluate-a-0-0", "student") in world.started)
        second = asyncio.create_task(collect(broker, Exp(), "t2", stops=stops[1]))
        await settled()
        gate.set()
        (one, _), (two, _) = await asyncio.gather(first, second)
    assert one == two and len(one) == 5
    assert Counter(world.made)["evaluate-a-0-0", "student"] == 1
    assert len(world.started) - 12 <= len({*stops[0], *stops[1]})


@in_loop
async def test_a_silent_lease_ends_its_evaluation_and_frees_the_worker() -> None:
    world = World()
    async with world.broker(workers=1, lease_seconds=60.0, idle_seconds=1000.0) as broker:
        gate = world.hold("evaluate-a-0-0")
        trial = asyncio.create_task(collect(broker, Exp()))
        await eventually(lambda: broker.status()["busy"] == ["evaluate-evaluate-a-0-0/student"])
        world.now = 50.0
        broker.renew("t")
        world.now = 100.0
        broker.reap()
        await settled()
        assert not trial.done()
        world.now = 110.0
        broker.reap()
        with pytest.raises(LeaseEnded):
            await trial
        gate.set()
        await eventually(lambda: not broker.status()["busy"])
        assert world.students["evaluate-a-0-0"] == 1  # stopped at the next item
        assert broker.status()["building"] == [] and broker.status()["leases"] == 0
        assert not world.alive()[0].busy
        reports, _ = await collect(broker, Exp(), "again")
        assert len(reports) == 5


@in_loop
async def test_a_shared_evaluation_goes_on_for_the_other_lease() -> None:
    world = World()
    async with world.broker(workers=1) as broker:
        gate = world.hold("evaluate-a-0-0")
        first, second = (asyncio.create_task(collect(broker, Exp(), lease)) for lease in ("t1", "t2"))
        await eventually(lambda: broker.status()["busy"] == ["evaluate-evaluate-a-0-0/student"])
        broker.release("t1")
        with pytest.raises(LeaseEnded):
            await first
        gate.set()
        assert len((await second)[0]) == 5
    assert Counter(world.started)["evaluate-a-0-0", "student"] == 1


@in_loop
async def test_a_caller_that_goes_away_stops_its_student() -> None:
    world = World()
    async with world.broker() as broker:
        stream = broker.evaluate(Exp(), "t")
        await anext(stream)
        world.hold("evaluate-a-0-0")
        await stream.aclose()
        world.holds.pop("evaluate-a-0-0").set()
        await eventually(lambda: not broker.status()["busy"])
        assert "evaluate-a-0-0" not in world.committed and broker.status()["building"] == []


@in_loop
async def test_who_comes_back_while_the_student_is_being_stopped_gets_it_all() -> None:
    world = World()
    async with world.broker(workers=2) as broker:
        gate, closed = world.hold("evaluate-a-0-0"), world.hold("closing/student")
        first = asyncio.create_task(collect(broker, Exp(), "t1"))
        await eventually(lambda: broker.status()["busy"] == ["evaluate-evaluate-a-0-0/student"])
        broker.release("t1")
        await settled()
        gate.set()
        await settled()
        second = asyncio.create_task(collect(broker, Exp(), "t2"))
        await settled()
        assert Counter(world.started)["evaluate-a-0-0", "student"] == 1  # not beside the one that is closing
        closed.set()
        assert len((await second)[0]) == 5
        with pytest.raises(LeaseEnded):
            await first
    assert Counter(world.made)["evaluate-a-0-0", "student"] == 1


@in_loop
async def test_close_ends_everything() -> None:
    world = World()
    async with world.broker(workers=6, labels="stream") as broker:  # a slot for every unit and the labels
        world.hold("squeeze-a")
        world.hold("relabel-b-0")
        world.have(Exp("b", shards=2), "relabel")
        trials = [asyncio.create_task(collect(broker, Exp(name, shards=2), name)) for name in "ab"]
        await eventually(lambda: broker.status()["busy"] and broker.status()["labelling"])
    results = await asyncio.gather(*trials, return_exceptions=True)
    assert [type(each) for each in results] == [LeaseEnded, LeaseEnded]


def test_the_broker_itself_imports_neither_ray_nor_torch() -> None:
    folder = Path(ledger.__file__).parent
    code = (  # the package's own __init__ may: it is Ray's side
        "import sys, types; package = types.ModuleType('edc_ray.distributed')\n"
        f"package.__path__ = [{str(folder)!r}]; sys.modules[package.__name__] = package\n"
        "import edc_ray.distributed.broker; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder.parents[1])


# --- everything at once ---------------------------------------------------------------------------------


async def storm(seed: int) -> None:
    """Random trials, losses, bugs, cancellations and silences; then quiet, in which all must come out."""
    rng, world = random.Random(seed), World()
    bugs = {("squeeze-b", "unit-0")} if rng.random() < 0.3 else set()

    def fail(key: str, unit: str, step: int) -> Exception | None:
        if rng.random() < 0.02:
            return WorkerLost("random")
        return RuntimeError("bug") if (key, unit) in bugs else None

    world.fail = fail
    labels, stops = rng.choice(["inline", "stream"]), rng.choice([(1.0,), (0.4, 1.0), (0.2, 0.6, 1.0)])
    exps = [Exp(n, lr, rng.choice([(0,), (0, 1)]), 2) for n in "ab" for lr in range(3)]
    async with world.broker(workers=rng.randint(1, 3), labels=labels, unit_retries=50) as broker:
        trials = [
            asyncio.create_task(collect(broker, rng.choice(exps), f"t{i}", stops=stops)) for i in range(8)
        ]
        trials += [
            asyncio.create_task(collect(broker, exp, f"u{i}", stops=stops)) for i, exp in enumerate(exps)
        ]
        for _ in range(6):
            await asyncio.sleep(rng.choice([0, 0.001]))
            world.now += rng.choice([0.0, 10.0, 40.0])
            rng.choice(trials[:8]).cancel()
            broker.release(f"t{rng.randrange(8)}")
            for i in range(len(exps)):
                broker.renew(f"u{i}")
            broker.reap()
        results = await asyncio.gather(*trials, return_exceptions=True)
        assert broker.status()["building"] == []
        await eventually(lambda: not broker.status()["busy"] and not broker.status()["labelling"])
        assert broker.status()["todo"] == {}
        for exp, result in zip(exps, results[8:], strict=True):
            if bugs and exp.name == "b":
                assert isinstance(result, UnitFailed) and result.key == "squeeze-b"
            else:
                assert not isinstance(result, BaseException), result
                assert [each.progress for each in result[0]] == [200, 400, 600, 800, 1000]
    twice = [unit for unit, count in Counter(world.made).items() if count > 1 and unit[1] != "all"]
    assert not twice, twice


@pytest.mark.parametrize(
    "block", [*range(2), *(pytest.param(block, marks=pytest.mark.slow) for block in range(2, 10))]
)
def test_a_storm_leaves_nothing_undone_done_twice_or_leaked(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        go(storm(seed))
