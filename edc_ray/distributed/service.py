"""The Broker as an actor: one a job, on the head node."""

import functools
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray

from edc_ray import pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime
from edc_ray.distributed.broker import Broker, Report, Summary
from edc_ray.distributed.labels import LabelJobs
from edc_ray.distributed.trial import BrokerHandle
from edc_ray.distributed.workers import RayWorker
from edc_ray.monitor import Monitor

HEAD = {"node:__internal_head__": 0.001}  # pins to the head node without any cluster set-up (ray.md 1.1)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, resources=HEAD)
class BrokerActor:
    """The one Broker of a job. What it holds is only what is in flight, so Ray may restart it."""

    def __init__(self, root: str, runtime: Runtime) -> None:
        self._monitor = Monitor()
        self._broker = Broker(
            graph=pipeline,
            store=Store(root),
            runtime=runtime,
            spawn=functools.partial(RayWorker, root, runtime),
            label=LabelJobs(root, runtime),
            on_event=self._monitor,
        )

    async def evaluate(
        self, experiment: Experiment, lease: str, stops: Sequence[float]
    ) -> AsyncGenerator[Report | Summary | None, None]:
        """None after each item: with back-pressure of one, it is taken when the caller comes back."""
        async for item in self._broker.evaluate(experiment, lease, stops):
            yield item
            yield None

    async def build(self, experiment: Experiment, upto: str) -> bool:
        """Make one stage and what it needs; True = it was there already."""
        tasks = pipeline.tasks(experiment, upto)
        return (await self._broker.build(tasks[-1], tasks)).hit

    async def renew(self, lease: str) -> None:
        self._broker.renew(lease)

    async def release(self, lease: str) -> None:
        self._broker.release(lease)

    async def status(self) -> dict[str, Any]:
        return self._broker.status() | self._monitor.counts()


def start_broker(root: str, runtime: Runtime) -> BrokerHandle:
    """A new Broker for this job, which ends with it."""
    name = f"broker-{uuid.uuid4().hex[:8]}"
    return BrokerHandle(BrokerActor.options(name=name).remote(root, runtime), runtime)  # type: ignore[attr-defined]
