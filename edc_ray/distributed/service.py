"""The Broker as an actor: one a job, on the head node."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray

from edc_ray import pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime
from edc_ray.distributed.broker import Broker, Report, Summary
from edc_ray.distributed.labels import LabelJobs
from edc_ray.distributed.probe import Site
from edc_ray.distributed.trial import BrokerHandle
from edc_ray.distributed.watch import Waiting
from edc_ray.distributed.workers import RayWorker, offers, share
from edc_ray.monitor import Monitor

BROKER = "broker-"  # begins the names of the actors that status asks
ANSWER_SECONDS = 30.0
TICK_SECONDS = 2.0  # between two looks of the metrics at the ledger
HEAD = {"node:__internal_head__": 0.001}  # pins to the head node without any cluster set-up (ray.md 1.1)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, resources=HEAD)
class BrokerActor:
    """The one Broker of a job. What it holds is only what is in flight, so Ray may restart it."""

    def __init__(self, site: Site, runtime: Runtime, name: str, best: float | None) -> None:
        self._about = {"name": name, "store": site.root}
        self._monitor, numbers = Monitor(best), itertools.count(1)
        heard = self._monitor.heard
        self._pool = Waiting(
            lambda: RayWorker(f"worker-{next(numbers)}", site, runtime, heard), share(runtime), offers
        )
        self._broker = Broker(
            graph=pipeline,
            store=Store(site.root),
            runtime=runtime,
            spawn=self._pool.spawn,
            label=LabelJobs(site, runtime, heard),
            on_event=self._monitor,
        )
        self._watch: asyncio.Task[None] | None = None  # there is no event loop yet

    async def evaluate(
        self, experiment: Experiment, lease: str, stops: Sequence[float]
    ) -> AsyncGenerator[Report | Summary | None, None]:
        """None after each item: with back-pressure of one, it is taken when the caller comes back."""
        self._start_watch()
        async for item in self._broker.evaluate(experiment, lease, stops):
            if isinstance(item, Summary):
                self._monitor.judged(experiment, item.curve[-1][1])
            yield item
            yield None

    async def build(self, experiment: Experiment, upto: str) -> bool:
        """Make one stage and what it needs; True = it was there already."""
        self._start_watch()
        tasks = pipeline.tasks(experiment, upto)
        return (await self._broker.build(tasks[-1], tasks)).hit

    async def renew(self, lease: str) -> None:
        self._broker.renew(lease)

    async def release(self, lease: str) -> None:
        self._broker.release(lease)

    async def status(self) -> dict[str, Any]:
        """See Broker.status and Monitor.counts; the job's name and store; and what workers wait for."""
        waiting = {"waiting": await self._pool.look()}
        return self._about | self._broker.status() | self._monitor.counts() | waiting

    def _start_watch(self) -> None:
        if self._watch is None:
            self._watch = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            self._monitor.tick(self._broker.status())
            await asyncio.sleep(TICK_SECONDS)


def start_broker(root: str, runtime: Runtime, name: str = "job", best: float | None = None) -> BrokerHandle:
    """A new Broker for this job, which ends with it.

    name: of the sweep or ladder. best: val accuracy of its finished trials.
    """
    actor: Any = BrokerActor
    site = Site.mark(root)
    unique = f"{BROKER}{name}-{uuid.uuid4().hex[:8]}"
    return BrokerHandle(actor.options(name=unique).remote(site, runtime, name, best), runtime, site.probe)


def statuses() -> list[dict[str, Any]]:
    """Of all Brokers on this cluster. One that does not answer has only its name, and `error`."""
    found: list[dict[str, Any]] = []
    for place in ray.util.list_named_actors(all_namespaces=True):
        if place["name"].startswith(BROKER):
            try:
                actor: Any = ray.get_actor(place["name"], place["namespace"])
                found.append(ray.get(actor.status.remote(), timeout=ANSWER_SECONDS))
            except (ray.exceptions.RayError, ValueError) as error:
                found.append({"name": place["name"], "error": str(error).splitlines()[0]})
    return found
