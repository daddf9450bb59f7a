"""`edc-ray`: condense one experiment, plan one or a sweep, run a sweep, report on it; list the presets."""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edc_ray import estimate, ladder, pipeline, presets, session, specs, sweep
from edc_ray.artifacts import Receipt, Store
from edc_ray.config import ConfigError, Experiment, NotThere, Runtime, Sweep

TELL_SECONDS = 2.0  # between two lines about one stage


def load(target: str, changes: Sequence[str]) -> tuple[Sweep, Experiment]:
    """A preset or a file (a sweep, or a best.yaml), with changes.

    Raises:
        ConfigError: names the path, the value and what is legal.
    """
    if _is_ladder(target):
        raise ConfigError("file", target, "is a ladder: `edc-ray sweep` runs it, `edc-ray plan` looks at it")
    if _section(target):
        return specs.load_file(target, changes)
    return specs.with_changes(Sweep(preset=target), changes)


def _is_ladder(target: str) -> bool:
    return bool(_section(target)) and specs.is_ladder(target)


def _section(target: str) -> str:
    """Where the fields of the experiment are: a file has them in a section of their own."""
    return "experiment" if Path(target).suffix in (".yaml", ".yml") else ""


# --- condense -----------------------------------------------------------------------------------------------


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


def condense(target: str, changes: Sequence[str], on_ray: bool) -> None:
    """One experiment and its baselines, end to end; every seed of evaluate.seeds is one student."""
    from edc_ray import report

    settings, experiment = load(target, changes)
    with specs.under(_section(target)):
        pipeline.check(experiment)
    experiment = specs.anchored(experiment)
    store = Store(settings.runtime.store)
    store.check()
    if on_ray:
        with session.cluster(settings.runtime):
            from edc_ray.distributed.workers import RayMapper

            mapper = RayMapper(store.path(), settings.runtime)
            _build(experiment, store, settings.runtime, mapper)
            store.drop(mapper.site.probe)
    else:
        _build(experiment, store, settings.runtime, pipeline.in_process(store, settings.runtime))
    print("\n".join(report.condensed(experiment, store)))


def _build(experiment: Experiment, store: Store, runtime: Runtime, mapper: pipeline.Mapper) -> None:
    teller = Teller(runtime)
    for name, arm in pipeline.arms(experiment).items():
        print(f"{name}:", flush=True)
        pipeline.ensure(arm, store, runtime, mapper, teller)
    if whole := pipeline.whole(experiment):
        print("whole data:", flush=True)
        pipeline.ensure(whole, store, runtime, mapper, teller, upto="squeeze")


# --- plan ---------------------------------------------------------------------------------------------------


def plan(target: str, changes: Sequence[str], cluster: str | None) -> None:
    """The stage graph with hits and misses, what is missing, what it takes; runs and writes nothing."""
    if cluster:
        estimate.parse_cluster(cluster)
    if _is_ladder(target):
        print("\n".join(ladder.plan(ladder.prepare(target, changes))))
        return
    settings, experiment = load(target, changes)
    store = Store(settings.runtime.store)
    store.check()
    missing = None
    try:
        with specs.under(_section(target)):
            pipeline.check_names(experiment)
        if settings.search:
            sweep.check(settings, experiment)
        else:
            with specs.under(_section(target)):
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
        told = estimate.lines(settings, experiment, store)
        print("\n".join(estimate.on_cluster(settings, experiment, store, cluster) if cluster else told))
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


# --- the command --------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edc-ray", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, target: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("target", metavar=target)
        if name != "report":
            command.add_argument(
                "--set", action="append", default=[], metavar="PATH=VALUE", help="change one field"
            )
        return command

    presets_text = "a YAML file, or a preset: `edc-ray presets` lists them"
    condense_command = add("condense", "one experiment end to end, with its baselines", "FILE|PRESET")
    condense_command.epilog = presets_text
    condense_command.add_argument(
        "--ray", action="store_true", help="on Ray actors instead of in this process"
    )
    plan_command = add("plan", "what there is to do, is missing and takes; runs nothing", "FILE|PRESET")
    plan_command.epilog = presets_text
    plan_command.add_argument("--cluster", metavar="NxGPU", help="GPU-hours and width there, such as 8xH200")
    add("sweep", "as python -m edc_ray.sweep", "FILE")
    add("report", "leaderboard, final table, results.parquet, best.yaml, pictures", "FOLDER|URI")
    text = "is this machine ready: GPUs, memory, store, data, weights, versions; exit code 1 if not"
    examining = commands.add_parser("doctor", help=text, description=text, epilog=presets_text)
    examining.add_argument("target", metavar="FILE|PRESET", nargs="?", help="default: the digits")
    examining.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change one field"
    )
    text = "how a sweep stands: stages, trials, best, time left, last errors"
    looking = commands.add_parser("status", help=text, description=text)
    looking.add_argument("folder", nargs="?", metavar="FOLDER|URI", help="of the sweep; needs no cluster")
    looking.add_argument("--address", nargs="?", const="auto", help="of a Ray cluster; default: the one here")
    _add_store(commands)
    text = "published results and baselines: what is done, published and measured accuracy"
    listing = commands.add_parser("presets", help=text, description=text)
    listing.add_argument("pattern", nargs="?", help="a part of the name, or a shell pattern; default: all")
    listing.add_argument("--markdown", action="store_true", help="docs/presets.md, on standard output")
    return parser


def _add_store(commands: Any) -> None:
    keeping = commands.add_parser("store", help="what a store holds; its checksums; what no sweep needs")
    acts = keeping.add_subparsers(dest="act", required=True)

    def add_act(name: str, text: str) -> argparse.ArgumentParser:
        act = acts.add_parser(name, help=text, description=text)
        act.add_argument(
            "store", nargs="?", default=Runtime().store, metavar="FOLDER|URI", help="default: store"
        )
        return act

    add_act("ls", "artifacts, units and bytes by stage")
    add_act("verify", "read every finished artifact; exit code 1 and a list where one is damaged")
    removing = add_act("gc", "remove the artifacts that no kept sweep, and none that runs, needs")
    removing.add_argument(
        "--keep", nargs="+", required=True, metavar="FOLDER|URI|FILE", help="of a sweep or ladder"
    )
    removing.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")


def _presets(pattern: str | None, markdown: bool) -> None:
    from edc_ray.presets import text

    if markdown and pattern is not None:
        raise ConfigError("--markdown", pattern, "takes no pattern: the document has all presets")
    print(text.markdown() if markdown else "\n".join(text.lines(presets.find(pattern))))


def _doctor(target: str | None, changes: Sequence[str]) -> None:
    from edc_ray import doctor

    settings, experiment = load(target, changes) if target else specs.with_changes(Sweep(), changes)
    problems = 0
    for finding in doctor.examine(settings, specs.anchored(experiment), "RAY_ADDRESS" in os.environ):
        print(finding, flush=True)
        problems += not finding.ok
    if problems:
        raise RuntimeError(f"{problems} problem{'s' * (problems > 1)}")


def _status(folder: str | None, address: str | None) -> None:
    from edc_ray import status  # Optuna, as for a report

    print("\n".join(status.lines(folder, address)))


def _store(args: argparse.Namespace) -> None:
    from edc_ray import stock  # Optuna, as for a report

    store = Store(args.store)
    store.check()
    if not store.exists("store.json"):
        raise ConfigError("store", args.store, "is no store: it has no store.json")
    if args.act == "ls":
        print("\n".join(stock.ls(store)))
    elif args.act == "gc":
        stock.gc(store, args.keep, args.yes, print)
    elif stock.verify(store, print):
        raise RuntimeError("the store is damaged; a command that reads these files makes them again")


def _report(folder: str) -> None:
    from edc_ray import report

    claim = report.open_claim(folder)
    print("\n".join(report.leaderboard(claim)))
    if not claim.missing():
        report.write(claim, None, print)
    else:
        print("the confirmation is not finished; the same sweep command goes on with it")


def main(argv: Sequence[str] | None = None) -> int:
    """0 = done; 1 = failed; 2 = the input is wrong."""
    args = _parser().parse_args(argv)
    commands: dict[str, Callable[[], Any]] = {
        "condense": lambda: condense(args.target, args.set, args.ray),
        "plan": lambda: plan(args.target, args.set, args.cluster),
        "sweep": lambda: sweep.start(args.target, args.set),
        "report": lambda: _report(args.target),
        "doctor": lambda: _doctor(args.target, args.set),
        "status": lambda: _status(args.folder, args.address),
        "store": lambda: _store(args),
        "presets": lambda: _presets(args.pattern, args.markdown),
    }
    return sweep.guarded(commands[args.command])


if __name__ == "__main__":
    sys.exit(main())
