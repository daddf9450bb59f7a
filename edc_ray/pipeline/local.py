"""The synchronous driver and the in-process mapper, which is the reference for every other one."""

from collections.abc import Callable, Iterator, Sequence

from edc_ray.artifacts import Damaged, Missing, Receipt, Store
from edc_ray.config import Experiment, Runtime
from edc_ray.pipeline import graph
from edc_ray.pipeline.types import Progress, Task
from edc_ray.pipeline.worker import Worker

REBUILDS = 2  # damaged inputs that one run survives

Mapper = Callable[[Task, Sequence[str]], Iterator[tuple[str, Progress | Receipt]]]
Tell = Callable[[Task, str, Progress | Receipt | None], None]


def in_process(store: Store, runtime: Runtime) -> Mapper:
    """One unit after the other, here."""
    worker = Worker(store, runtime)

    def mapper(task: Task, units: Sequence[str]) -> Iterator[tuple[str, Progress | Receipt]]:
        for unit in units:
            for item in worker.run(task, unit):
                yield unit, item

    return mapper


def ensure(
    experiment: Experiment,
    store: Store,
    runtime: Runtime,
    mapper: Mapper,
    tell: Tell = lambda task, unit, item: None,
    upto: str = "evaluate",
) -> list[Task]:
    """Make every artifact of the experiment that is not there yet; returns its tasks.

    tell(task, unit, item) hears of every item; unit "" and None = a stage that was there already.

    Raises:
        FloatingPointError, Damaged, Missing, OSError: a unit's own; finished units stay for the next call.
    """
    for attempt in range(REBUILDS + 1):
        try:
            found = graph.tasks(experiment, upto)
            for task in found:
                if not graph.skipped(task, runtime):
                    _build(task, store, runtime, mapper, tell)
            return found
        except (Damaged, Missing) as damage:
            if attempt == REBUILDS:
                raise
            graph.discard(damage, store)
    raise AssertionError("unreachable")


def _build(task: Task, store: Store, runtime: Runtime, mapper: Mapper, tell: Tell) -> None:
    if graph.is_hit(task, store, runtime):
        tell(task, "", None)
        return
    made = list[Receipt]()

    def run(units: list[str]) -> None:
        for unit, item in mapper(task, units):
            tell(task, unit, item)
            if isinstance(item, Receipt):
                made.append(item)

    run(graph.missing(task, store, runtime))
    if graph.finish(task) and not graph.finished(task, "all", store):
        run(["all"])
    graph.commit(task, store, runtime, made)
