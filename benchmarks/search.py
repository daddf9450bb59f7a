"""Is the search worth it? Samplers and schedulers, replayed on a table of configurations trained before.

    python benchmarks/search.py [--repeats 40] [--seconds 240] [--json OUT]
    python benchmarks/search.py --make --store FOLDER [--minutes 35]   # the table; goes on where it stopped

    tpe, fifo    the defaults of a sweep, against random      goal <= 0.5

The table (data/search_table.parquet) is the grid of search_table.py over the knobs of sweeps/quickstart.yaml.
A replay is a sweep of that file in virtual time: four trials at once, each on a core of its own, asked for
by our samplers, with all reports told to the study and to the scheduler. A trial costs its synthesis, unless
the sweep has made the very same before (that two values share a point of the table saves nothing), and as
much of the student's training as it was given. Observers and statistics are paid once; asking costs nothing.

Told is how many core-seconds the mean best accuracy on val needs to reach that of random search at the end of
its budget, over this budget ("inf": not in 1.5 budgets); and the regret at the end of the budget: how far the
chosen configuration is below the best of the table, both by the mean of their replicates, while a search sees
one. "least to most" is the 95 % bootstrap interval over the repeats; the goal is missed where it lies above.
"""

import argparse
import functools
import heapq
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import numpy as np
import optuna
import scipy
from optuna.trial import TrialState

from benchmarks import common
from benchmarks.search_table import FILE, Entry, Key, Replicate, Table, make, points, sweep
from edc_ray import config, reuse, space, tuning
from edc_ray.config import Experiment, Knob, Sweep
from edc_ray.space import END, METRIC
from edc_ray.sweep import rungs

METHODS: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random"},
    "grid": {"sampler": "grid"},
    "tpe": {"sampler": "tpe"},
    "tpe + asha": {"sampler": "tpe", "scheduler.kind": "asha"},
    "random, inner 4": {"sampler": "random", "inner": 4},
    "tpe, inner 4": {"sampler": "tpe", "inner": 4},
}
GOALS = {"tpe": 0.5}
SHARES = (1.0, 0.5, 0.25)  # of the budget, at which random's accuracy is the target; the first has the goal
LONGER = 1.5  # the replays go on for so many budgets
MOMENTS = 240  # of the budget, at which the best so far is read
RESAMPLES = 2000


def plans(base: Sweep) -> dict[str, Sweep]:
    """The sweep of each method. Grid visits the points of the table."""
    found = {name: config.override(base, changes) for name, changes in METHODS.items()}
    grid = {path: Knob(choices=tuple(points(path, k)), when=k.when) for path, k in base.search.items()}
    return found | {"grid": replace(found["grid"], search=grid)}


# --- the replay ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """A trial that came to its end. spent: core-seconds of the whole sweep until then."""

    spent: float
    accuracy: float
    key: Key


@dataclass(slots=True)
class Running:
    trial: optuna.Trial
    entry: Entry
    key: Key
    ready: float  # when its synthesis is there
    work: int  # index of its training in Replay.work


@dataclass
class Replay:
    """One sweep in virtual time: seconds, of which each busy trial spends one core's."""

    plan: Sweep
    base: Experiment
    outer: Collection[str]
    table: Table
    replicate: Replicate
    work: list[tuple[float, float]] = field(default_factory=list)  # begin and end of what a core did
    made: dict[tuple[tuple[str, Any], ...], float] = field(
        default_factory=dict
    )  # syntheses, when each is there
    done: list[Done] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.study = optuna.create_study(sampler=space.sampler(self.plan, 0), direction="maximize")
        stops = rungs(self.plan, self.base)
        self.scheduler: Any = tuning.make_scheduler(self.plan.scheduler, stops, ())  # asks for no controller
        self.suggest = space.Space(self.plan.search)
        self.queue: list[tuple[float, int, int]] = []  # (when, trial, which report)
        self.running: dict[int, Running] = {}

    def spent(self, now: float) -> float:
        """Core-seconds until now."""
        return self.table.common + sum(max(0.0, min(now, end) - begin) for begin, end in self.work)

    def run(self, seconds: float) -> list[Done]:
        """The trials that ended before the sweep had spent so many core-seconds."""
        for _ in range(self.plan.concurrent):
            self.start(0.0)
        while True:
            now, number, report = heapq.heappop(self.queue)
            if self.spent(now) > seconds:
                return self.done
            if self.report(now, number, report):
                self.start(now)

    def start(self, now: float) -> None:
        reuse.keep(self.study, self.outer, self.plan.inner)
        trial = self.study.ask()
        self.suggest(trial)
        entry = self.table.look(trial.params, self.replicate)
        synthesis = tuple(sorted((k, v) for k, v in trial.params.items() if k in self.outer))
        if synthesis not in self.made:
            self.made[synthesis] = now + entry.synthesis
            self.work.append((now, now + entry.synthesis))
        ready = max(now, self.made[synthesis])
        self.work.append((ready, ready + entry.training))
        run = Running(trial, entry, self.table.key(trial.params), ready, len(self.work) - 1)
        self.running[trial.number] = run
        self.scheduler.on_trial_add(None, named(trial))
        self._expect(run, 0)

    def _expect(self, run: Running, report: int) -> None:
        at = run.ready + run.entry.training * run.entry.curve[report][0] / END
        heapq.heappush(self.queue, (at, run.trial.number, report))

    def report(self, now: float, number: int, report: int) -> bool:
        """What the trial tells, and hears; whether it has ended."""
        run = self.running[number]
        progress, accuracy = run.entry.curve[report]
        told = {METRIC: accuracy, "progress": progress}
        run.trial.report(accuracy, progress)
        if progress == END:
            self.scheduler.on_trial_complete(None, named(run.trial), told)
            self.study.tell(run.trial, accuracy)
            self.done.append(Done(self.spent(now), accuracy, run.key))
            return True
        if self.scheduler.on_trial_result(None, named(run.trial), told) == self.scheduler.CONTINUE:
            self._expect(run, report + 1)
            return False
        self.work[run.work] = (run.ready, now)
        self.study.tell(run.trial, state=TrialState.PRUNED)
        return True


def named(trial: optuna.Trial) -> Any:
    """All that Tune's schedulers ask of a trial."""
    return SimpleNamespace(trial_id=str(trial.number))


# --- what the replays say -----------------------------------------------------------------------------------


def best_so_far(done: Sequence[Done], at: np.ndarray, value: Callable[[Done], float]) -> np.ndarray:
    """value(the trial with the best accuracy so far) at these core-seconds; 0 before the first."""
    found, best = np.zeros(len(at)), -math.inf
    for trial in done:
        if trial.accuracy > best:
            best = trial.accuracy
            found[at >= trial.spent] = value(trial)
    return found


def needed(curves: np.ndarray, target: float) -> float:
    """When the mean of the curves (repeats, moments) first reaches the target, as a share of the budget."""
    reached = curves.mean(0) >= target - 1e-12
    return float(reached.argmax() + 1) / MOMENTS if reached.any() else math.inf


def interval(statistic: Callable[[np.ndarray], float], repeats: int) -> tuple[float, float, float]:
    """(low, estimate, high): the statistic of which repeats are taken, with a 95 % bootstrap interval."""
    rng, every = np.random.default_rng(0), np.arange(repeats)
    drawn = [statistic(rng.choice(every, repeats)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    estimate = statistic(every)
    return min(float(low), estimate), estimate, max(float(high), estimate)


def rows(runs: Mapping[str, Sequence[Sequence[Done]]], table: Table, seconds: float) -> list[common.Row]:
    """A row's values are the ends of its interval and the estimate, which is their median."""
    at = np.arange(1, round(LONGER * MOMENTS) + 1) * seconds / MOMENTS
    seen = curves_of(runs, at, lambda done: done.accuracy)
    true = curves_of(runs, at, lambda done: table.truth(done.key))
    top, repeats, found = max(table.truth(key) for key in table.entries), len(seen["random"]), []
    for share, name in itertools.product(SHARES, runs):
        end, goal = round(share * MOMENTS) - 1, GOALS.get(name) if share == SHARES[0] else None
        ratio = functools.partial(against, seen[name], seen["random"], end)
        values = interval(ratio, repeats)
        missed = goal is not None and values[0] <= goal < values[1]
        note = "the estimate misses it, by less than the spread" if missed else ""
        found.append(common.Row(f"{name} to random's at {at[end]:.0f} core-s", values, goal, note=note))
    for name, curves in true.items():
        values = interval(functools.partial(below, top, curves[:, MOMENTS - 1]), repeats)
        ended = statistics.mean(sum(trial.spent <= seconds for trial in done) for done in runs[name])
        note = f"val {100 * seen[name][:, MOMENTS - 1].mean():.2f} %, {ended:.0f} trials complete"
        found.append(common.Row(f"{name}, regret at {seconds:.0f} core-s", values, unit="points", note=note))
    return found


def curves_of(
    runs: Mapping[str, Sequence[Sequence[Done]]], at: np.ndarray, value: Callable[[Done], float]
) -> dict[str, np.ndarray]:
    """Method -> (repeats, moments)."""
    return {name: np.stack([best_so_far(done, at, value) for done in found]) for name, found in runs.items()}


def against(curves: np.ndarray, baseline: np.ndarray, end: int, taken: np.ndarray) -> float:
    """What the taken repeats need to the baseline's mean at this moment, over what the baseline had spent."""
    return needed(curves[taken], float(baseline[taken, end].mean())) * MOMENTS / (end + 1)


def below(top: float, ends: np.ndarray, taken: np.ndarray) -> float:
    """Points from the top to the mean of the taken repeats."""
    return 100 * (top - float(ends[taken].mean()))


def about(table: Table) -> str:
    """How large the table is, and how much of what differs in it is noise."""

    def pairs(one: Replicate, other: Replicate) -> list[tuple[float, float]]:
        both = [found for found in table.entries.values() if {one, other} <= set(found)]
        return [(found[one].curve[-1][1], found[other].curve[-1][1]) for found in both]

    means = [table.truth(key) for key in table.entries]
    text = f"{len(table.entries)} configurations, accuracy on val in %: "
    text += f"best {100 * max(means):.2f}, median {100 * statistics.median(means):.2f}"
    for what, other in (("students' seeds", (0, 1)), ("initial images", (1, 0))):
        if len(found := pairs((0, 0), other)) > 2:
            first, second = np.array(found).T
            noise = 100 * float(np.std(first - second, ddof=1)) / math.sqrt(2)
            alike = float(np.corrcoef(first, second)[0, 1])
            text += f"\n{what} ({len(found)} pairs): noise {noise:.2f} points, correlation {alike:.2f}"
    return f"{text}\n{early(table)}"


def early(table: Table) -> str:
    """How well the accuracy during the training ranks the configurations, within each replicate."""
    seen, told = table.complete(), []
    for i in range(len(table.steps) - 1):
        ranks = [scipy.stats.spearmanr(*table.accuracies(one)[:, [i, -1]].T).statistic for one in seen]
        told.append(f"{statistics.fmean(ranks):.2f} at {table.steps[i] / 10:g} %")
    return f"rank correlation with the final accuracy: {', '.join(told)} of the training"


def replays(plan: Sweep, base: Experiment, table: Table, args: argparse.Namespace) -> list[list[Done]]:
    """One of each seed; they see the table's replicates in turn."""
    outer, replicates = reuse.outer(plan.search, base), table.complete()
    seeded = [config.override(plan, {"seed": seed}) for seed in range(args.repeats)]
    return [
        Replay(one, base, outer, table, replicates[seed % len(replicates)]).run(LONGER * args.seconds)
        for seed, one in enumerate(seeded)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__, repeats=40)
    parser.add_argument("--seconds", type=float, default=240.0, help="core-seconds of a replay")
    parser.add_argument("--table", type=Path, default=FILE)
    parser.add_argument("--make", action="store_true", help="compute the table")
    parser.add_argument("--store", help="scratch folder of --make")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of --make, of this process")
    args = parser.parse_args(argv)
    common.begin(args)
    if args.make:
        if not args.store:
            parser.error("--make needs --store")
        make(args.store, args.minutes, args.table)
        return 0
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan, base = sweep()
    table = Table.read(args.table, plan.search)
    print(f"{about(table)}\nsearched: (init.seed, student) in {table.complete()} in turn\n", flush=True)
    runs = {name: replays(one, base, table, args) for name, one in plans(plan).items()}
    found = rows(runs, table, args.seconds)
    return common.finish(args, found)


if __name__ == "__main__":
    sys.exit(main())
