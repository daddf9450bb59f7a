"""P5: 16 trials of a sweep against 16 separate runs of the same experiments, in core-seconds.

    python benchmarks/inner.py [--device cpu] [--repeats 2] [--json OUT]

    joint        the knobs of sweeps/design_space.yaml, search.inner 4         goal <= 0.5
    evaluation   those of them that change no stage up to recover              goal <= 0.35

Real digits at 16 px, two images a class, two small observers, everything shrunk until a separate run takes
about a second. Trials are asked for as a sweep does, one after the other. The sweep has one store and one
worker; each separate run has its own, follows on its trial and must reach the same accuracy. Both sides count
whatever the process spends: names, hits and files, the sweep's also its sampler; a separate run would start a
process besides, which is left out. How much sharing saves depends on what the stages cost, so their shares of
a separate run are printed, and what the ratio would be if observers and statistics were there already.

Each repeat draws other experiments. Exit code 1: no repeat meets the goal. On a GPU seconds are the wall's.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import optuna
import torch

from edc_ray import config, pipeline, reuse, space, specs, sweep
from edc_ray.artifacts import Store
from edc_ray.config import Budget, Experiment, Knob, Runtime, Sweep

ROOT = Path(__file__).parents[1]
TRIALS = 16
GOALS = {"joint": 0.5, "evaluation": 0.35}
OBSERVERS = ("ingest", "squeeze", "statistics")
CHANGES = {
    "dataset.limit": 300, "squeeze.observers": ["convnet_w16_d2", "vgg5_w16"], "squeeze.epochs": 3,
    "recover.iterations": 20, "evaluate.student": "convnet_w16_d2", "evaluate.epochs": 14,
    "evaluate.reports": 2,
}  # fmt: skip
Facts = dict[str, Any]


def sweeps(trials: int) -> tuple[Experiment, dict[str, Sweep]]:
    """The experiment, and the sweep of each row of the table."""
    _, base = specs.load_file(str(ROOT / "sweeps/quickstart.yaml"))
    base = config.override(base, CHANGES)
    whole, _ = specs.load_file(str(ROOT / "sweeps/design_space.yaml"))
    joint = whole.search | {"recover.iterations": Knob(choices=(10, 20, 40))}
    later = {path: knob for path, knob in joint.items() if path not in reuse.outer(joint, base)}
    common: Facts = {"sampler": whole.sampler, "budget": Budget(trials=trials), "concurrent": 1}
    found = {"joint": Sweep(search=joint, inner=4, **common), "evaluation": Sweep(search=later, **common)}
    for each in found.values():
        sweep.check(each, base)
    return base, found


# --- one repeat ---------------------------------------------------------------------------------------------


class Side:
    """A store with a worker of its own, and the seconds spent on it."""

    def __init__(self, folder: str, runtime: Runtime) -> None:
        self.store, self.runtime, self.seconds = Store(folder), runtime, 0.0
        self.store.check()
        self._mapper = pipeline.in_process(self.store, runtime)

    def run(self, experiment: Experiment) -> float | None:
        """All stages; the accuracy on val, or None where the trial fails."""
        try:
            done = pipeline.ensure(experiment, self.store, self.runtime, self._mapper)
        except FloatingPointError:
            return None
        return float(pipeline.facts(done[-1], self.store)["accuracy"])

    def manifests(self) -> list[Facts]:
        return [json.loads(path.read_text()) for path in Path(self.store.path()).glob("*/manifest.json")]

    def stages(self) -> Counter[str]:
        """Core-seconds by stage, from the manifests."""
        found: Counter[str] = Counter()
        for manifest in self.manifests():
            found[manifest["stage"]] += manifest["core_seconds"]
        return found


def repeat(plan: Sweep, base: Experiment, runtime: Runtime, clock: Callable[[], float]) -> Facts:
    """What both sides spent, in all and by stage, and how many artifacts of each stage the sweep made."""
    study = optuna.create_study(sampler=space.sampler(plan, 0), direction="maximize")
    outer, suggest = reuse.outer(plan.search, base), space.Space(plan.search)
    separate, alone = 0.0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        shared = Side(f"{folder}/sweep", runtime)
        for i in range(plan.budget.trials):
            began = clock()
            reuse.keep(study, outer, plan.inner)
            trial = study.ask()
            suggest(trial)
            experiment = space.apply(base, trial.params, plan.search)
            accuracy = shared.run(experiment)
            study.tell(trial, accuracy, state=optuna.trial.TrialState.FAIL if accuracy is None else None)
            middle = clock()
            own = Side(f"{folder}/{i}", runtime)
            again = own.run(experiment)
            shared.seconds, separate = shared.seconds + middle - began, separate + clock() - middle
            assert again == accuracy, f"trial {i}: {accuracy} in the sweep, {again} by itself"
            alone += own.stages()
        made = Counter(manifest["stage"] for manifest in shared.manifests())
        return {"sweep": shared.seconds, "separate": separate, "ratio": shared.seconds / separate,
                "sweep_stages": shared.stages(), "separate_stages": alone, "made": made}  # fmt: skip


def later(stages: Counter[str]) -> float:
    """Core-seconds of what comes after the observers and their statistics."""
    return sum(seconds for stage, seconds in stages.items() if stage not in OBSERVERS)


# --- the table ----------------------------------------------------------------------------------------------


def met(name: str, runs: Sequence[Facts]) -> bool:
    return min(run["ratio"] for run in runs) <= GOALS[name]


def row(name: str, runs: Sequence[Facts]) -> str:
    """Medians; of the ratio also the least and the most."""
    spent, apart = (statistics.median(run[side] for run in runs) for side in ("sweep", "separate"))
    ratios = [run["ratio"] for run in runs]
    rest = statistics.median(later(run["sweep_stages"]) / later(run["separate_stages"]) for run in runs)
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    goal = f"<= {GOALS[name]} {'met' if met(name, runs) else 'MISSED'}"
    return f"| {name} | {spent:.1f} | {apart:.1f} | {ratio} | {goal} | {rest:.2f} |"


def details(name: str, runs: Sequence[Facts]) -> str:
    """What the sweep made, and the shares of the stages of the separate runs."""
    made = ", ".join(
        f"{stage} {runs[0]['made'][stage]}" for stage in pipeline.STAGES if runs[0]["made"][stage]
    )
    total: Counter[str] = sum((run["separate_stages"] for run in runs), Counter[str]())
    shares = ", ".join(
        f"{stage} {total[stage] / total.total():.0%}" for stage in pipeline.STAGES if total[stage]
    )
    return f"{name}: made by the sweep (first repeat): {made}; shares of a separate run: {shares}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--trials", type=int, default=TRIALS, help="fewer for a look")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the facts there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"cpu ({platform.machine()})"
    clock, unit = (time.perf_counter, "s") if cuda else (time.process_time, "core-s")
    versions = f"torch {torch.__version__}, optuna {optuna.__version__}"
    print(f"{versions}, {device}, one thread; {args.repeats} repeats of {args.trials} trials")
    runtime = config.override(Runtime(), {"device": args.device})
    base, plans = sweeps(args.trials)
    with tempfile.TemporaryDirectory() as folder:  # the first use of everything is not timed
        Side(folder, runtime).run(base)
    runs: dict[str, list[Facts]] = {name: [] for name in plans}
    for seed in range(args.repeats):
        for name, plan in plans.items():
            runs[name].append(repeat(config.override(plan, {"seed": seed}), base, runtime, clock))
    print(f"| trials over | sweep, {unit} | separate, {unit} | ratio, median | goal | after observers |")
    print("|---|---|---|---|---|---|")
    print("\n".join(row(name, found) for name, found in runs.items()))
    print("\n".join(details(name, found) for name, found in runs.items()))
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1))
    return 0 if all(met(name, found) for name, found in runs.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
