"""Who may run now: an elastic pool of workers and at most one label job share a fixed number of slots.

The Ledger starts, feeds, retires and replaces workers. It knows units, not artifacts, and imports neither Ray
nor torch: workers, label jobs and the clock are arguments, so all of it runs in a test with fakes.
"""

import asyncio
import heapq
import itertools
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from edc_ray.config import Runtime

STUDENT, LABELS = "evaluate", "relabel"  # the stages that have a position inside (`until`)
COMPANY = 16  # wanted pages for which a label job does not wait any longer
Pages = list[tuple[Any, str]]  # (task, unit) pairs
Label = Callable[[Pages, int], AsyncGenerator[tuple[str, Any], None]]  # on so many labellers; (key, receipt)


class WorkerLost(Exception):
    """A worker's process or node died; the unit is innocent until it has cost too many workers."""


class UnitFailed(Exception):
    """A unit cannot be finished; `__cause__` is its own error. Plain fields, so that it crosses processes.

    lost: not by its own fault, but for want of workers, of disk, of a store.
    hopeless: and no other unit can do better.
    """

    def __init__(
        self, stage: str, key: str, unit: str, why: str, lost: bool = False, hopeless: bool = False
    ) -> None:
        super().__init__(stage, key, unit, why, lost, hopeless)
        self.stage, self.key, self.unit, self.why = stage, key, unit, why
        self.lost, self.hopeless = lost, hopeless

    def __str__(self) -> str:
        return f"{self.stage}-{self.key}, unit {self.unit}: {self.why}"


def told(error: BaseException) -> str:
    """The error and its notes, which say where the unit's log is."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


class Task(Protocol):
    """What is needed of pipeline.Task."""

    @property
    def stage(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def inputs(self) -> tuple[tuple[str, str], ...]: ...


class Worker(Protocol):
    """A process that runs one unit at a time. node: where it is, once that is known."""

    node: str | None

    def run(self, task: Any, unit: str, until: float, /) -> AsyncGenerator[Any, None]:
        """Yields Progress now and then, and the Receipt last; closing it frees the worker at its next item.

        Raises:
            WorkerLost: the process or its node died.
        """
        ...

    def kill(self) -> None: ...


@dataclass(eq=False, slots=True)
class Job:
    """One unit that is queued or runs, for all who wait for it."""

    task: Task
    unit: str
    until: float
    rank: tuple[float, ...]  # the lowest goes first
    done: "asyncio.Future[Any]"  # its receipt; True: ended, with none told; False: given up, as nobody waited
    page: bool  # made by a label job, not by a worker
    alone: bool = False  # a page that shares no label job, since one that it was in has failed
    waiters: int = 0
    losses: int = 0

    @property
    def name(self) -> tuple[str, str]:
        return self.task.key, self.unit

    def __str__(self) -> str:
        return f"{self.task.stage}-{self.task.key}/{self.unit}"

    def tags(self) -> dict[str, Any]:
        return {"task": self.task, "stage": self.task.stage, "key": self.task.key, "unit": self.unit}


class Ledger:
    """runtime.workers slots; each worker, busy or idle, holds one, and so does each labeller with a GPU."""

    def __init__(
        self,
        runtime: Runtime,
        spawn: Callable[[], Worker],
        label: Label,
        finished: Callable[[Task, str], bool],
        clock: Callable[[], float],
        on_event: Callable[..., None],
        heard: Callable[[str, tuple[tuple[int, float], ...]], None],
    ) -> None:
        self._runtime, self._spawn, self._label, self._finished = runtime, spawn, label, finished
        self._clock, self._event, self._heard = clock, on_event, heard
        self._jobs: dict[tuple[str, str], Job] = {}
        self._queue: list[
            tuple[tuple[float, ...], int, Job]
        ] = []  # a heap; jobs nobody waits for fall out when they come to its head
        self._pages: list[Job] = []  # wanted from the next label job
        self._alone: deque[Job] = deque()  # pages that go before it, each in a job of its own
        self._labelling: list[Job] = []  # in the running label job
        self._label_slots = 0  # that it holds: processors may be shared for a while, GPUs not
        self._busy: dict[Job, Worker | None] = {}  # None: about to be spawned
        self._idle: dict[Worker, float] = {}  # since when; the most recently used is last
        self._running: set[asyncio.Task[None]] = set()
        self._watchers: dict[str, list[set[str]]] = {}  # by the artifact's key
        self._serial = itertools.count()
        self._wakeup: asyncio.Handle | None = None

    async def run(self, task: Task, unit: str, until: float, rank: tuple[float, ...]) -> Any | None:
        """Return when the unit has run up to `until`, its receipt if one was told. All who ask share one run.

        If all give up the wait, a queued unit is dropped, a student stops at its next item, and any other
        running unit goes on.

        Raises:
            UnitFailed: its own error, or too many lost workers.
        """
        while True:
            job = self._jobs.get((task.key, unit)) or self._enqueue(task, unit, until, rank)
            job.waiters += 1
            try:
                ended = await asyncio.shield(job.done)
            finally:
                job.waiters -= 1
            if ended and job.until >= until:
                return None if ended is True else ended

    @contextmanager
    def watch(self, key: str) -> Iterator[set[str]]:
        """The artifact's units finished inside the block: a listing of the store made there may lack them."""
        finished: set[str] = set()
        self._watchers.setdefault(key, []).append(finished)
        try:
            yield finished
        finally:
            self._watchers[key] = [each for each in self._watchers[key] if each is not finished]
            if not self._watchers[key]:
                del self._watchers[key]

    def reap(self) -> None:
        """Give back the workers that have been idle too long, so that their nodes can go."""
        limit = self._clock() - self._runtime.idle_seconds
        for worker in [w for w, since in self._idle.items() if since <= limit]:
            self._kill(worker)

    def status(self) -> dict[str, Any]:
        return {
            "slots": self._runtime.workers,
            "workers": len(self._busy) + len(self._idle),
            "busy": [str(job) for job in self._busy],
            "labelling": len(self._labelling),
            "todo": dict(Counter(job.task.stage for job in self._jobs.values() if job.waiters)),
        }

    async def close(self) -> None:
        """Stop whatever runs and kill all workers."""
        if self._wakeup:
            self._wakeup.cancel()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for worker in [*self._idle, *filter(None, self._busy.values())]:
            self._kill(worker)
        for job in self._jobs.values():
            job.done.cancel()
        self._jobs.clear()
        self._busy.clear()

    # --- who is next ---

    def _enqueue(self, task: Task, unit: str, until: float, rank: tuple[float, ...]) -> Job:
        page = task.stage == LABELS and self._runtime.labels == "stream"
        job = Job(task, unit, until, rank, asyncio.get_running_loop().create_future(), page)
        self._jobs[job.name] = job
        self._push(job)
        return job

    def _push(self, job: Job) -> None:
        if job.page:
            (self._alone if job.alone else self._pages).append(job)
        else:
            heapq.heappush(self._queue, (job.rank, next(self._serial), job))
        self._wake()

    def _wake(self) -> None:
        # Not at once: what is asked for in one turn of the loop is ranked, or put into a label job, together.
        if self._wakeup is None:
            self._wakeup = asyncio.get_running_loop().call_soon(self._dispatch)

    def _free_slots(self) -> int:
        return self._runtime.workers - len(self._busy) - len(self._idle) - self._label_slots

    def _dispatch(self) -> None:
        self._wakeup = None
        self._start_labels()
        while self._wanted() and (self._idle or self._free_slots() > 0):
            _, _, job = heapq.heappop(self._queue)
            worker = self._idle.popitem()[0] if self._idle else None
            self._busy[job] = worker
            self._start(self._serve(job, worker))
        self._start_labels()  # those that waited for company may find nothing left to wait for

    def _wanted(self) -> bool:
        """Is a unit queued that somebody waits for? Then it is the head of the queue."""
        while self._queue and not self._queue[0][2].waiters:
            self._settle(heapq.heappop(self._queue)[2], False)
        return bool(self._queue)

    def _wanted_pages(self) -> int:
        """How many pages, less those that nobody waits for any more."""
        while self._alone and not self._alone[0].waiters:
            self._settle(self._alone.popleft(), False)
        for job in self._pages:
            if not job.waiters:
                self._settle(job, False)
        self._pages = [job for job in self._pages if job.waiters]
        return len(self._alone) + len(self._pages)

    def _start_labels(self) -> None:
        """A label job takes seconds to start, so it waits for more pages while other units can run. Then it
        goes first: with one slot, a student that held it while it waits for labels would never end. It has
        runtime.label_workers, or as many as can be spared now.
        """
        gpus = bool(self._runtime.gpus_per_worker)
        spare = len(self._idle) + self._free_slots() if gpus else max(1, self._free_slots())
        if self._labelling or not spare:  # first, so that pages are not counted at every turn of a long wait
            return
        pages = self._wanted_pages()
        if not pages or (pages < COMPANY and self._wanted()):
            return
        if self._alone:
            self._labelling = [self._alone.popleft()]
        else:
            self._labelling, self._pages = self._pages, []
        width = min(self._runtime.label_workers, spare, len(self._labelling))
        while gpus and self._free_slots() < width:
            self._kill(next(iter(self._idle)))
        self._label_slots = width if gpus else 0
        self._start(self._run_labels(self._labelling, width))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    # --- running ---

    async def _serve(self, job: Job, worker: Worker | None) -> None:
        """One unit on one worker, which is idle afterwards, or gone if it was lost."""
        outcome: Any
        began = self._clock()
        try:
            if job.losses and await asyncio.to_thread(self._finished, job.task, job.unit):
                outcome = True  # its lost worker had written it, and not told
            else:
                if worker is None:
                    worker = self._busy[job] = self._spawn()
                    self._event("worker_spawned")
                outcome = await self._follow(job, worker)
        except Exception as error:  # whatever it is, it is reported to those who wait for the unit
            outcome = error
        del self._busy[job]
        if worker is not None:
            self._idle[worker] = self._clock()
            if isinstance(outcome, Exception) and not isinstance(outcome, FloatingPointError):
                self._kill(worker)  # its process may be spoilt: a CUDA error stays
        if isinstance(outcome, WorkerLost):
            # Idle neighbours may have died with its node; finding out would cost the unit one retry each.
            node = worker.node if worker is not None else None
            for each in [idle for idle in self._idle if node is None or idle.node == node]:
                self._kill(each)
            self._lose(job, outcome)
        else:
            if outcome and not isinstance(outcome, Exception):
                name = "unit_done" if job.until >= 1 else "unit_paused"
                self._event(name, seconds=self._clock() - began, **job.tags())
            self._settle(job, outcome)

    async def _follow(self, job: Job, worker: Worker) -> Any:
        """What `Job.done` is to be."""
        receipt: Any = True
        async with aclosing(worker.run(job.task, job.unit, job.until)) as stream:
            async for item in stream:
                reports = getattr(item, "reports", None)
                if reports is None:  # the unit is finished
                    receipt = item
                    continue
                self._heard(job.task.key, reports)
                if job.task.stage == STUDENT and not job.waiters:
                    return False
        return receipt

    async def _run_labels(self, jobs: list[Job], width: int) -> None:
        """One label job over all pages that were wanted when it began, of any number of artifacts."""
        self._event("labels_started", pages=len(jobs))
        outcome: Exception = RuntimeError("the label job ended without it")
        try:
            async with aclosing(self._label([(job.task, job.unit) for job in jobs], width)) as stream:
                async for key, receipt in stream:
                    job = self._jobs[key, receipt.unit]
                    self._event("unit_done", **job.tags())
                    self._settle(job, receipt)
        except Exception as error:  # as in _serve
            outcome = error
        self._labelling, self._label_slots = [], 0
        left = [job for job in jobs if not job.done.done()]
        for job in left:
            if isinstance(outcome, WorkerLost):
                if job is left[0]:  # they begin in this order, so most others have only waited
                    self._lose(job, outcome)
                elif left[0].done.done() and job.task.key == left[0].task.key:
                    self._settle(job, outcome)  # of no use without the one that was given up
                else:
                    self._push(job)
            elif len(left) == 1 or getattr(outcome, "hopeless", False):
                self._settle(job, outcome)
            else:  # which page it was is not known: each in a job of its own, the good are spared
                job.alone = True
                self._push(job)
        self._wake()

    def _lose(self, job: Job, error: WorkerLost) -> None:
        """Queue a unit again after its worker was lost, unless it has cost too many."""
        job.losses += 1
        if job.losses <= self._runtime.unit_retries:
            self._event("unit_retried", losses=job.losses, **job.tags())
            self._push(job)
        else:
            self._settle(
                job, error, f"{job.losses} workers were lost on it, the last one with: {told(error)}"
            )

    def _settle(self, job: Job, outcome: Any, why: str = "") -> None:
        self._jobs.pop(job.name)
        if isinstance(outcome, Exception):
            why = why or f"{type(outcome).__name__}: {told(outcome)}"
            lost = isinstance(outcome, WorkerLost | OSError)
            hopeless = getattr(outcome, "hopeless", False)
            failure = UnitFailed(job.task.stage, *job.name, why, lost, hopeless)
            failure.__cause__ = outcome
            self._event("unit_failed", why=str(failure), **job.tags())
            job.done.set_exception(failure)
            job.done.exception()  # nobody may be waiting for it
        else:
            job.done.set_result(outcome)
            if outcome and job.until >= 1:
                for finished in self._watchers.get(job.task.key, ()):
                    finished.add(job.unit)
        self._wake()

    def _kill(self, worker: Worker) -> None:
        self._idle.pop(worker, None)
        worker.kill()
        self._event("worker_killed")
