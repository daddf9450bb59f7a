"""The traffic light of a job: every artifact has one builder, however many trials ask for it.

Plain asyncio; imports neither Ray nor torch. The Broker holds nothing but what is in flight: the Store is the
memory, so a restarted Broker needs no recovery. Which unit runs when is the Ledger's business.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from edc_ray.config import Runtime
from edc_ray.distributed.budget import LabelBudget
from edc_ray.distributed.curves import Curve, Curves, Report
from edc_ray.distributed.ledger import LABELS, STUDENT, Label, Ledger, Task, UnitFailed, Worker, WorkerLost

__all__ = ["Broker", "LeaseEnded", "Outcome", "Report", "Summary", "UnitFailed", "WorkerLost"]

T = TypeVar("T")
FINISH = "all"  # the unit that folds the others of its stage
REPAIRS = 2  # damaged inputs that one build survives


class LeaseEnded(Exception):
    """The trial that asked for an evaluation fell silent, or gave it up."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`hit`: the artifact was there. `seconds`: from ready parents to the commit, queueing included."""

    key: str
    hit: bool
    seconds: float

    def then(self, later: "Outcome") -> "Outcome":
        return Outcome(self.key, self.hit and later.hit, self.seconds + later.seconds)


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of an evaluation. Artifacts that nothing had to look at count neither as hits nor as built."""

    hits: int
    built: int
    seconds: dict[str, float]  # by stage
    accuracies: tuple[float, ...]  # last one of each seed
    curve: Curve  # means over the seeds


class Graph(Protocol):
    """What is needed of the module `pipeline`. May block on the store: called in threads, where slow."""

    def tasks(self, experiment: Any, /) -> list[Any]: ...
    def parents(self, task: Any, among: list[Any], /) -> list[Any]: ...
    def is_hit(self, task: Any, store: Any, runtime: Any, until: float, /) -> bool: ...
    def missing(self, task: Any, store: Any, runtime: Any, until: float, /) -> list[str]: ...
    def finished(self, task: Any, unit: str, store: Any, /) -> bool: ...
    def commit(self, task: Any, store: Any, runtime: Any, made: list[Any], /) -> Any: ...
    def finish(self, task: Any, /) -> bool:
        """Is there a unit "all" to run after the others?"""
        ...

    def reports(self, task: Any, store: Any, /) -> Curve:
        """Of a committed evaluation."""
        ...

    def skipped(self, task: Any, runtime: Any, /) -> bool:
        """Is it made by those who need it?"""
        ...

    def evict(self, store: Any, limit: float, held: frozenset[str], used: dict[str, int], /) -> list[str]:
        """See LabelBudget."""
        ...

    def discard(self, error: BaseException | None, store: Any, /) -> str | None:
        """If the error says that a file is damaged or gone: remove it and its manifest; return the key."""
        ...


@dataclass(eq=False, slots=True)
class _Flight:
    """A build in progress and how many wait for it."""

    build: "asyncio.Task[dict[str, Outcome]]"
    waiters: int = 0


@dataclass(eq=False, slots=True)
class _Lease:
    ends: float
    trials: "set[asyncio.Task[None]]" = field(default_factory=set)


async def every(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All at once. The first error cancels the others, waits till they have ended, and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Broker:
    """Builds artifacts and evaluates experiments for many trials at once, on the workers it spawns.

    Args:
        store: handed to the graph, never touched.
        spawn: a new worker; returns at once, also when its process has to wait for a node.
        label: a label job over pages of any number of artifacts; yields (key, Receipt) as they are finished.
        clock: seconds, monotonic.
        on_event: called with a name (stage_hit, stage_built, artifact_damaged, lease_ended, unit_done,
            unit_paused, unit_retried, unit_failed, labels_started, labels_evicted, worker_spawned,
            worker_killed) and tags.
    """

    def __init__(
        self,
        *,
        graph: Graph,
        store: Any,
        runtime: Runtime,
        spawn: Callable[[], Worker],
        label: Label,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[..., None] = lambda name, **tags: None,
    ) -> None:
        self._graph, self._store, self._runtime = graph, store, runtime
        self._clock, self._event = clock, on_event
        self._ledger = Ledger(runtime, spawn, label, self._finished, clock, on_event, self._heard)
        self._labels = LabelBudget(graph.evict, store, runtime, on_event)
        self._flights: dict[tuple[str, float], _Flight] = {}
        self._leases: dict[str, _Lease] = {}
        self._ears: dict[str, set[Callable[[str, Curve], None]]] = {}  # by the student that they listen to
        self._ages = itertools.count()
        self._patrol: asyncio.Task[None] | None = None

    # --- artifacts ---

    async def build(self, task: Task, all_tasks: Sequence[Task], until: float = 1.0) -> Outcome:
        """Make the artifact exist, and its ancestors where it does not.

        Args:
            all_tasks: of the task's experiment.
            until: share of the student's training; below 1, labels and student go that far, uncommitted.

        Raises:
            UnitFailed: names stage, key and unit; the artifact may be asked for again later.
        """
        async with self._labels.held(all_tasks):
            return (await self._join(task, list(all_tasks), until))[task.key]

    async def _join(self, task: Task, among: list[Task], until: float) -> dict[str, Outcome]:
        """Wait for the one build of this artifact; it is given up when its last waiter is cancelled."""
        self._start_patrol()
        name = task.key, until if task.stage in (LABELS, STUDENT) else 1.0
        if name not in self._flights:
            flight = _Flight(asyncio.create_task(self._fly(task, among, name[1])))
            self._flights[name] = flight
            flight.build.add_done_callback(lambda _: self._land(name, flight))
        flight = self._flights[name]
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.build)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._land(name, flight)
                flight.build.cancel()

    def _land(self, name: tuple[str, float], flight: _Flight) -> None:
        if self._flights.get(name) is flight:
            del self._flights[name]

    async def _fly(self, task: Task, among: list[Task], until: float) -> dict[str, Outcome]:
        """Outcomes of the artifact and of those it asked for, making damaged ones again."""
        parents = self._parents(task, among)
        for repairs in itertools.count():
            try:
                return await self._attempt(task, parents, among, until)
            except Exception as error:
                damaged = await self._discard(task, error) if repairs < REPAIRS else None
                if damaged is None:
                    raise
            self._event("artifact_damaged", key=damaged, reader=task.key)
            # Ask for it even where it is no direct parent; a unit of this very artifact is just missing now.
            parents += [each for each in among if each.key == damaged and each.key != task.key]
        raise AssertionError("unreachable")

    async def _attempt(
        self, task: Task, parents: list[Task], among: list[Task], until: float
    ) -> dict[str, Outcome]:
        """An artifact that exists asks for no other: what it was made of may have been evicted."""
        if await self._ask(self._graph.is_hit, task, until):
            self._event("stage_hit", task=task, stage=task.stage, key=task.key)
            return {task.key: Outcome(task.key, True, 0.0)}
        below = await every([self._join(parent, among, until) for parent in parents])
        began = self._clock()
        await self._make(task, until)
        outcome = Outcome(task.key, False, self._clock() - began)
        if until >= 1:
            tags = {"task": task, "stage": task.stage, "key": task.key}
            self._event("stage_built", seconds=outcome.seconds, **tags)
        return {key: each for part in below for key, each in part.items()} | {task.key: outcome}

    async def _discard(self, task: Task, error: Exception) -> str | None:
        """The key of the artifact that the task found damaged, if it did; the bad file is removed."""
        if isinstance(error, UnitFailed) and error.key != task.key:
            return None  # a parent's, which has tried this itself
        cause = error.__cause__ if isinstance(error, UnitFailed) else error
        return await asyncio.to_thread(self._graph.discard, cause, self._store)

    async def _make(self, task: Task, until: float) -> None:
        """Run the missing units and commit."""
        # Deepest stage first (it has the most ancestors), then the student that has got furthest, then age.
        rank = -len(task.inputs), -until, next(self._ages)
        with self._ledger.watch(task.key) as finished:
            units = await self._ask(self._graph.missing, task, until)
        todo = [unit for unit in units if unit not in finished]
        made = await every([self._ledger.run(task, unit, until, (*rank, i)) for i, unit in enumerate(todo)])
        if task.stage == LABELS:
            await self._labels.trim()
        if until < 1:
            return
        if self._graph.finish(task) and not await asyncio.to_thread(self._finished, task, FINISH):
            made.append(await self._ledger.run(task, FINISH, until, (*rank, len(todo))))
        receipts = [receipt for receipt in made if receipt is not None]
        await asyncio.to_thread(self._graph.commit, task, self._store, self._runtime, receipts)

    def _parents(self, task: Task, among: list[Task]) -> list[Task]:
        """With inline labels the student's worker does what `relabel` would, and needs what that would."""
        found = list[Task]()
        for parent in self._graph.parents(task, among):
            skipped = self._graph.skipped(parent, self._runtime)
            found += self._graph.parents(parent, among) if skipped else [parent]
        return found

    def _finished(self, task: Task, unit: str) -> bool:
        return self._graph.finished(task, unit, self._store)

    async def _ask(self, question: Callable[[Any, Any, Any, float], T], task: Task, until: float) -> T:
        return await asyncio.to_thread(question, task, self._store, self._runtime, until)

    # --- evaluations ---

    async def evaluate(
        self, experiment: Any, lease: str, stops: Sequence[float] = (1.0,)
    ) -> AsyncGenerator[Report | Summary, None]:
        """Train the experiment's students, as many stops as the caller has patience for.

        Args:
            lease: who asks; must be renewed, or the students stop unless somebody else waits for them.
            stops: increasing shares of the training, the last is 1. Labels are made, and students run, up to
                the next stop only; between stops a student holds no worker, and the next leg begins when the
                caller has taken the reports of the last.

        Yields:
            Report for each progress that all seeds have reached, increasing; Summary at the end.

        Raises:
            LeaseEnded: released, or not renewed in time.
            UnitFailed: as build.
        """
        assert stops[-1] == 1.0, stops
        self._start_patrol()
        self.renew(lease)
        items: asyncio.Queue[Report | Summary | None] = asyncio.Queue()
        trial = asyncio.create_task(self._trial(experiment, stops, items))
        trial.add_done_callback(lambda _: items.put_nowait(None))
        trials = self._leases[lease].trials
        trials.add(trial)
        try:
            while (item := await items.get()) is not None:
                yield item
                items.task_done()
            if trial.cancelled():
                raise LeaseEnded(lease)
            trial.result()
        finally:
            trials.discard(trial)
            trial.cancel()

    async def _trial(
        self, experiment: Any, stops: Sequence[float], items: "asyncio.Queue[Report | Summary | None]"
    ) -> None:
        tasks = await asyncio.to_thread(self._graph.tasks, experiment)
        students = [task for task in tasks if task.stage == STUDENT]
        curves = Curves(student.key for student in students)
        total: dict[str, Outcome] = {}

        def hear(key: str, reports: Curve) -> None:
            for report in curves.add(key, reports):
                items.put_nowait(report)

        async def leg(student: Task, stop: float) -> dict[str, Outcome]:
            outcomes = await self._join(student, tasks, stop)
            if outcomes[student.key].hit or stop >= 1:
                hear(student.key, await asyncio.to_thread(self._graph.reports, student, self._store))
            return outcomes

        async with self._labels.held(tasks):
            with self._listening(students, hear):
                for stop in stops:
                    await items.join()
                    parts = await every([leg(student, stop) for student in students])
                    for key, new in {k: v for part in parts for k, v in part.items()}.items():
                        total[key] = total[key].then(new) if key in total else new
        await self._labels.trim()
        items.put_nowait(_summary(tasks, total, curves.told))

    @contextmanager
    def _listening(self, students: Sequence[Task], hear: Callable[[str, Curve], None]) -> Iterator[None]:
        for student in students:
            self._ears.setdefault(student.key, set()).add(hear)
        try:
            yield
        finally:
            for student in students:
                self._ears[student.key].remove(hear)
                if not self._ears[student.key]:
                    del self._ears[student.key]

    def _heard(self, key: str, reports: Curve) -> None:
        for hear in self._ears.get(key, ()):
            hear(key, reports)

    # --- leases ---

    def renew(self, lease: str) -> None:
        """A sign of life. It does not bring back an evaluation that has ended."""
        self._leases.setdefault(lease, _Lease(0.0)).ends = self._clock() + self._runtime.lease_seconds

    def release(self, lease: str) -> None:
        """End the lease's evaluations.

        Of what nobody else waits for, students stop at their next item, other running units finish, and
        queued ones are dropped.
        """
        ended = self._leases.pop(lease, None)
        for trial in ended.trials if ended else ():
            trial.cancel()

    def reap(self) -> None:
        """End silent leases and give back idle workers; called from time to time by itself."""
        self._ledger.reap()
        for lease in [name for name, each in self._leases.items() if each.ends <= self._clock()]:
            self._event("lease_ended", lease=lease)
            self.release(lease)

    def _start_patrol(self) -> None:
        if self._patrol is None:
            self._patrol = asyncio.create_task(self._walk())

    async def _walk(self) -> None:
        while True:
            await asyncio.sleep(max(0.1, min(self._runtime.idle_seconds, self._runtime.lease_seconds) / 4))
            self.reap()

    def status(self) -> dict[str, Any]:
        """For a status line: slots, workers, busy units, lengths of the queues, keys in flight, leases."""
        flights = sorted({key for key, _ in self._flights})
        return self._ledger.status() | {"building": flights, "leases": len(self._leases)}

    async def close(self) -> None:
        """Cancel everything and kill the workers. Who still waits gets CancelledError, or LeaseEnded."""
        for lease in list(self._leases):
            self.release(lease)
        tasks = [flight.build for flight in self._flights.values()] + ([self._patrol] if self._patrol else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._ledger.close()


def _summary(tasks: Sequence[Task], outcomes: dict[str, Outcome], told: Sequence[Report]) -> Summary:
    seconds: dict[str, float] = {}
    for task in tasks:
        if task.key in outcomes:
            seconds[task.stage] = seconds.get(task.stage, 0.0) + outcomes[task.key].seconds
    hits = sum(outcome.hit for outcome in outcomes.values())
    curve = tuple((report.progress, report.accuracy) for report in told)
    return Summary(hits, len(outcomes) - hits, seconds, told[-1].accuracies, curve)
