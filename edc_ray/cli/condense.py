"""One experiment end to end, with its baselines."""

import argparse
import time

from edc_ray import evaluation, pipeline, session, specs
from edc_ray.artifacts import Receipt, Store
from edc_ray.cli import target
from edc_ray.config import Experiment, Runtime

TELL_SECONDS = 2.0  # between two lines about one stage


def add(parser: argparse.ArgumentParser) -> None:
    target.add(parser)
    parser.add_argument("--ray", action="store_true", help="on Ray actors instead of in this process")


class Teller:
    """Prints how the stages go: units done of all, rate and time left, hits."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._began = runtime, time.monotonic()
        self._told: dict[str, float] = {}
        self._done: dict[str, set[str]] = {}
        self._hits: set[str] = set()

    def __call__(self, task: pipeline.Task, unit: str, item: pipeline.Progress | Receipt | None) -> None:
        name, now = str(task), time.monotonic()
        if item is None:
            if name not in self._hits and name not in self._done:
                print(f"{task.stage:<10} there already ({name})", flush=True)
            self._hits.add(name)
            return
        done = self._done.setdefault(name, set())
        self._told.setdefault(name, now)
        if isinstance(item, Receipt):
            done.add(unit)
        count = len(pipeline.units(task, self._runtime)) + pipeline.finish(task)
        if len(done) < count and now - self._told[name] < TELL_SECONDS:
            return
        inside = f", {unit} at {item.done}/{item.total}" if isinstance(item, pipeline.Progress) else ""
        self._told[name] = now
        print(f"{task.stage:<10} {len(done)}/{count} units{inside}, {now - self._began:.1f} s", flush=True)

    def new(self, task: pipeline.Task, unit: str, item: pipeline.Progress | Receipt | None) -> None:
        """Only what is made: for commands whose stages are mostly there."""
        if item is not None:
            self(task, unit, item)


def run(args: argparse.Namespace) -> None:
    """The experiment and its baselines; every seed of evaluate.seeds is one student."""
    from edc_ray import report

    settings, experiment = target.load(args.target, args.set)
    with specs.under(target.section(args.target)):
        pipeline.check(experiment)
    experiment = specs.anchored(experiment)
    store = Store(settings.runtime.store)
    store.check()
    with session.mapper(args.ray, store, settings.runtime) as mapper:
        _build(experiment, store, settings.runtime, mapper)
    print("\n".join([*report.condensed(experiment, store), *evaluation.how(experiment, store)]))


def _build(experiment: Experiment, store: Store, runtime: Runtime, mapper: pipeline.Mapper) -> None:
    teller = Teller(runtime)
    for name, arm in pipeline.arms(experiment).items():
        print(f"{name}:", flush=True)
        pipeline.ensure(arm, store, runtime, mapper, teller)
    if whole := pipeline.whole(experiment):
        print("whole data:", flush=True)
        pipeline.ensure(whole, store, runtime, mapper, teller, upto="squeeze")
