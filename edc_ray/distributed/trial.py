"""The thin trial, and the driver's and trials' way to the Broker. Imports no torch: trials are many."""

import math
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from edc_ray import space
from edc_ray.config import Experiment, Knob, Runtime
from edc_ray.distributed.broker import Report, Summary


class BrokerHandle:
    """The driver's and the trials' way to the Broker; picklable.

    probe: what start_broker put into the store; the driver drops it.
    """

    def __init__(self, actor: Any, runtime: Runtime, probe: str) -> None:
        self.actor, self._lease_seconds, self.probe = actor, runtime.lease_seconds, probe

    @contextmanager
    def lease(self, name: str) -> Iterator[str]:
        """A lease that is renewed until the block ends."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self._lease_seconds / 4):
                self.actor.renew.remote(name)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield name
        finally:
            ended.set()
            self.actor.release.remote(name)

    def evaluate(
        self, experiment: Experiment, lease: str, stops: Sequence[float] = (1.0,)
    ) -> Iterator[Report | Summary]:
        """The reports as they come, and the Summary. A stop is passed when the caller comes back from it.

        Raises:
            UnitFailed: a unit's own error, with stage and unit.
        """
        how = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
        for item in self.actor.evaluate.options(**how).remote(experiment, lease, tuple(stops)):
            if (told := ray.get(item)) is not None:
                yield told

    def build(self, experiment: Experiment, upto: str) -> None:
        """Make one stage of an experiment and what it needs."""
        ray.get(self.actor.build.remote(experiment, upto))

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """See Broker.status, with counts of events and of finished units by stage."""
        return dict(ray.get(self.actor.status.remote(), timeout=timeout))

    def evaluate_all(self, experiments: Iterable[Experiment], done: Callable[[int, Summary], None]) -> None:
        """All at once; done(index, summary) is called as they end. The first error is raised at the end."""
        listed = [(f"final-{i}-{uuid.uuid4().hex[:6]}", e) for i, e in enumerate(experiments)]

        def one(index: int) -> None:
            name, experiment = listed[index]
            with self.lease(name):
                for item in self.evaluate(experiment, name):
                    if isinstance(item, Summary):
                        done(index, item)

        with ThreadPoolExecutor(max_workers=max(1, len(listed))) as threads:
            try:
                for future in [threads.submit(one, index) for index in range(len(listed))]:
                    future.result()
            except KeyboardInterrupt:
                for name, _ in listed:  # the threads wait for what would go on for hours
                    self.actor.release.remote(name)
                raise


def trial(
    chosen: Mapping[str, Any],
    base: Experiment,
    search: Mapping[str, Knob],
    broker: BrokerHandle,
    stops: Sequence[float],
) -> None:
    """A thin trial: holds no CPU and no GPU, asks the Broker and reports what it hears.

    What is its own fault (a unit's own error, an accuracy that is not finite) it reports as `failed`, and
    ends: Tune tries again whatever raises or dies. What is not (no disk, no worker) is `lost`, and raised;
    and `hopeless`, with the reason, where no trial can do better.
    """
    experiment = space.apply(base, chosen, search)
    last: dict[str, Any] = {space.METRIC: 0.0, "progress": 0}
    with broker.lease(tune.get_context().get_trial_id()) as lease:
        try:
            for item in broker.evaluate(experiment, lease, stops):
                if isinstance(item, Summary):
                    tune.report(last | {"hits": item.hits, "built": item.built, "seconds": item.seconds})
                    continue
                if not math.isfinite(item.accuracy):
                    raise FloatingPointError(f"accuracy {item.accuracy} at progress {item.progress}")
                last = {space.METRIC: item.accuracy, "progress": item.progress}
                if item.progress < space.END:
                    tune.report(last)
        except (FloatingPointError, RayError) as error:
            if isinstance(error, RayError) and getattr(error, "lost", True):  # a UnitFailed says whose fault
                hopeless = str(getattr(error, "cause", error)) if getattr(error, "hopeless", False) else ""
                tune.report(last | {"lost": True, "hopeless": hopeless})
                raise
            tune.report(last | {"failed": str(error).strip().splitlines()[-1]})
