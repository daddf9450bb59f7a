"""Ray's side of the pool: a unit runs in a process of its own, anywhere in the cluster.

Ray knows nothing of EDC here: an actor is pipeline.Worker behind a streaming call. Supervision is ours
(max_restarts=0): an actor that Ray restarts itself can wait for a lost node for ever (ray.md 0.4).
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.exceptions import RayError, RayTaskError

from edc_ray.artifacts import Attempt, Receipt, Store
from edc_ray.config import Runtime
from edc_ray.distributed.ledger import UnitFailed, WorkerLost, told
from edc_ray.distributed.probe import Site
from edc_ray.pipeline import Progress, Task, Worker, log_attempt


@ray.remote(max_restarts=0)
class UnitActor:
    """A pipeline.Worker in a process of its own. Ray's dashboard shows its name as its repr.

    It is no name of Ray's: those must differ in the whole cluster, and are asked for in one more round trip.
    """

    def __init__(self, name: str, site: Site, runtime: Runtime) -> None:
        self._name, self._site, self._runtime = name, site, runtime
        self._worker: Worker | None = None

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Its node. Raises NotShared; not in __init__, since Ray would make that a lost actor."""
        self._worker = self._worker or Worker(self._site.look(), self._runtime)
        return ray.get_runtime_context().get_node_id()

    def run(self, task: Task, unit: str, until: float) -> Iterator[Progress | Receipt]:
        self.ready()
        assert self._worker is not None
        yield from self._worker.run(task, unit, until)


def share(runtime: Runtime) -> dict[str, float]:
    """What a worker needs of its node, as Ray names it."""
    return {"CPU": runtime.cpus_per_worker, "GPU": runtime.gpus_per_worker}


def start_actor(name: str, site: Site, runtime: Runtime) -> Any:
    """An actor with the worker's share of the cluster; without a GPU of its own it keeps off the others'."""
    if not runtime.gpus_per_worker and runtime.device == "auto":
        runtime = replace(runtime, device="cpu")
    held = {"num_cpus": runtime.cpus_per_worker, "num_gpus": runtime.gpus_per_worker}
    return UnitActor.options(**held).remote(name, site, runtime)  # type: ignore[attr-defined]


def offers(share: Mapping[str, float]) -> list[Mapping[str, float]]:
    """What the nodes that are up have; and the share itself, where an autoscaler does not say that none of
    its node types has it.
    """
    found: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    client = GcsClient(ray.get_runtime_context().gcs_address)
    state = GetClusterStatusReply.FromString(client.get_cluster_status()).autoscaling_state
    wanted = {name: amount for name, amount in share.items() if amount > 0}
    refused = any(dict(each.resources_bundle) == wanted for each in state.infeasible_resource_requests)
    return [*found, share] if state.autoscaler_state_version and not refused else found


def own_error(error: RayError | WorkerLost) -> BaseException:
    """What went wrong inside the actor; what is no error of the unit means that the worker is lost."""
    cause: BaseException | None = error
    while isinstance(cause, RayTaskError):  # nested, where it has crossed several processes
        cause = cause.cause
    if cause is None or isinstance(cause, RayError):
        return WorkerLost(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return cause


def log_loss(root: str, name: str, task: Task, unit: str, began: float, error: WorkerLost) -> None:
    """In the unit's log, as a lost worker cannot do it itself. name: of the worker."""
    lost = Attempt("lost", time.monotonic() - began, name, str(error))
    log_attempt(Store(root), task, unit, lost, error)


class RayWorker:
    """What the Broker spawns. heard: is told of each item."""

    def __init__(
        self, name: str, site: Site, runtime: Runtime, heard: Callable[[Task, Progress | Receipt], None]
    ) -> None:
        self._actor, self._heard = start_actor(name, site, runtime), heard
        self._name, self._root, self._silence = name, site.root, runtime.hang_seconds
        self._ready = self._actor.ready.remote()
        self.waiting = True  # for a node
        self.node: str | None = None

    async def run(self, task: Task, unit: str, until: float, /) -> AsyncGenerator[Progress | Receipt, None]:
        call = self._actor.run.options(num_returns="streaming", name=f"{task.stage}:{unit}")
        stream, ended, began = call.remote(task, unit, until), False, time.monotonic()
        try:
            self.node = await self._ready
            self.waiting = False
            while (item := await _next(stream, self._silence)) is not None:
                self._heard(task, item)
                yield item
            ended = True
        except (RayError, WorkerLost) as error:
            ended, cause = True, own_error(error)
            if isinstance(cause, WorkerLost):
                await asyncio.to_thread(log_loss, self._root, self._name, task, unit, began, cause)
            raise cause from None
        finally:
            if not ended:
                ray.cancel(stream)

    def kill(self) -> None:
        self.waiting = False
        ray.kill(self._actor)


async def _next(stream: Any, seconds: float) -> Progress | Receipt | None:
    """The next item; None at the end. Raises WorkerLost when there is none for so long."""

    async def item() -> Progress | Receipt | None:
        async for ref in stream:
            return cast(Progress | Receipt, await ref)
        return None

    try:
        return await asyncio.wait_for(item(), seconds)
    except TimeoutError:
        raise WorkerLost(f"nothing was heard of it for {seconds:g} s (runtime.hang_seconds)") from None


class RayMapper:
    """pipeline.Mapper over a pool of actors: the same results as in process, for any number of them.

    Actors stay for later calls, as starting one takes seconds, and end with the mapper. A unit whose worker
    was lost goes to another one, up to runtime.unit_retries times.
    """

    def __init__(self, root: str, runtime: Runtime) -> None:
        self.site, self._runtime = Site.mark(root), runtime
        self._idle: list[Any] = []
        self._numbers = itertools.count(1)

    def _start(self) -> Any:
        return start_actor(f"worker-{next(self._numbers)}", self.site, self._runtime)

    def __call__(self, task: Task, units: Sequence[str]) -> Iterator[tuple[str, Progress | Receipt]]:
        """Raises UnitFailed when a unit has cost too many workers, else the unit's own error."""
        todo, losses = list(units), dict.fromkeys(units, 0)
        busy = dict[Any, tuple[Any, str, float]]()
        stream: Any
        try:
            while todo or busy:
                while todo and len(busy) < self._runtime.workers:
                    actor = self._idle.pop() if self._idle else self._start()
                    unit = todo.pop(0)
                    call = actor.run.options(num_returns="streaming", name=f"{task.stage}:{unit}")
                    busy[call.remote(task, unit, 1.0)] = (actor, unit, time.monotonic())
                (stream,), _ = ray.wait(list(busy), num_returns=1)
                actor, unit, began = busy[stream]
                try:
                    yield unit, ray.get(next(stream))
                except StopIteration:
                    del busy[stream]
                    self._idle.append(actor)
                except RayError as error:
                    cause = own_error(error)
                    if not isinstance(cause, WorkerLost):
                        raise cause from None
                    log_loss(self.site.root, "a Ray actor", task, unit, began, cause)
                    losses[unit] += 1
                    if losses[unit] > self._runtime.unit_retries:
                        why = f"{losses[unit]} workers were lost: {told(cause)}"
                        raise UnitFailed(task.stage, task.key, unit, why) from None
                    del busy[stream]
                    for lost in (actor, *self._idle):  # as in the Ledger: the node may be gone
                        _kill(lost)
                    self._idle.clear()
                    todo.insert(0, unit)
        finally:
            for actor, *_ in busy.values():
                _kill(actor)


def _kill(actor: Any) -> None:
    with suppress(RayError):
        ray.kill(actor)
