"""What there is to do, is missing and takes; runs nothing."""

import argparse
import math

from edc_ray import estimate, ladder, pipeline, specs, sweep
from edc_ray.artifacts import Store
from edc_ray.cli import target
from edc_ray.config import Experiment, NotThere, Runtime, Sweep


def add(parser: argparse.ArgumentParser) -> None:
    target.add(parser)
    parser.add_argument("--cluster", metavar="NxGPU", help="GPU-hours and width there, such as 8xH200")


def run(args: argparse.Namespace) -> None:
    """The stage graph with hits and misses, what is missing, what it takes; runs and writes nothing."""
    if args.cluster:
        estimate.parse_cluster(args.cluster)
    if target.is_ladder(args.target):
        print("\n".join(ladder.plan(ladder.prepare(args.target, args.set))))
        return
    settings, experiment = target.load(args.target, args.set)
    store = Store(settings.runtime.store)
    store.check()
    missing, section = None, target.section(args.target)
    try:
        with specs.under(section):
            pipeline.check_names(experiment)
        if settings.search:
            sweep.check(settings, experiment)
        else:
            with specs.under(section):
                pipeline.check(experiment)
    except NotThere as error:
        missing = error
    if settings.search:
        _print_sweep(settings, experiment)
    if missing:
        print(f"missing: {missing}")
        print("stages: " + " -> ".join(pipeline.needed(experiment)))
    else:
        _print_plan(experiment, store, settings)
        if args.cluster:
            told = estimate.on_cluster(settings, experiment, store, args.cluster)
        else:
            told = estimate.lines(settings, experiment, store)
        print("\n".join(told))
    _print_devices(settings.runtime)


def _print_sweep(settings: Sweep, experiment: Experiment) -> None:
    """How many trials, and how much of their stages they share in an empty store."""
    from edc_ray import reuse  # Optuna, which only a search needs

    trials, inner = settings.budget.trials, settings.inner
    kept = f", {inner} for each of {math.ceil(trials / inner)} syntheses" if inner > 1 else ""
    print(f"sweep {settings.name}: {trials} trials over {len(settings.search)} knobs{kept}")
    made = reuse.expected(settings, experiment)
    print("expected made + hits: " + ", ".join(f"{stage} {n} + {trials - n}" for stage, n in made.items()))


def _swept(settings: Sweep, experiment: Experiment) -> dict[str, str]:
    """Stage -> what has an artifact of its own; absent where all trials share one."""
    if not settings.search:
        return {}
    from edc_ray import reuse

    kept = reuse.outer(settings.search, experiment) if settings.inner > 1 else frozenset()
    touched = reuse.touching(settings.search, experiment).items()
    return {stage: "per synthesis" if knobs <= kept else "per trial" for stage, knobs in touched if knobs}


def _print_plan(experiment: Experiment, store: Store, settings: Sweep) -> None:
    swept = _swept(settings, experiment)
    print(f"{'artifact':<24} {'units':>6} {'to do':>6}")
    for row in pipeline.plan(experiment, store, settings.runtime):
        note = "; ".join(filter(None, ["hit" * row.hit, row.note, swept.get(row.task.stage)]))
        print(f"{row.task!s:<24} {row.units:>6} {row.missing:>6}  {note}".rstrip())


def _print_devices(runtime: Runtime) -> None:
    import torch

    if runtime.gpus_per_worker and not torch.cuda.is_available():
        print(
            f"note: runtime.gpus_per_worker = {runtime.gpus_per_worker:g} and this machine has no GPU; "
            "an autoscaling cluster starts with none and adds them, a fixed one needs them"
        )
