"""The final claim of a sweep: the best configuration with new seeds, its baselines, and what all of it cost.

Selection ends on val, with confirm.best by new seeds there: the search's accuracies are then discarded.
The claim is read on test, once a seed; every read is on record in the store.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import optuna
import scipy  # loads scipy.stats, which takes a second, when it is asked for
from optuna.trial import FrozenTrial

from edc_ray import pipeline, space
from edc_ray.artifacts import Damaged, Store
from edc_ray.config import Experiment, Sweep
from edc_ray.presets import protocols

if TYPE_CHECKING:  # nothing here needs Ray
    from edc_ray.distributed.broker import Summary
    from edc_ray.distributed.trial import BrokerHandle

Say = Callable[[str], None]
Runs = list[tuple[str, Experiment]]  # what a run is called, and what it is
AGAIN_SEED = pipeline.CONFIRM_SEED + 500  # first seed of the best again on val; no claim has seen it
STUDENT = 10_000  # between the seeds of two students of one condensed set


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean and half width of the 95 % Student t interval of n values; fractions."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        half = f" +- {100 * self.half:.2f}" if self.n > 1 else ""
        return f"{100 * self.mean:.2f}{half} (n = {self.n})"


def interval(values: Sequence[float]) -> Interval:
    """Of independent repetitions; the half width of a single one is infinite."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Interval(mean, math.inf, n)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Interval(mean, float(scipy.stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n), n)


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy that was read on so many images."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def spread(accuracies: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Standard deviations (of the synthesis, of the student) of r students of each of k condensed sets.

    One-way analysis of variance: the variance of the sets' means, less the share of the students in it.
    """
    r = len(accuracies[0])
    means = [math.fsum(each) / r for each in accuracies]
    within = math.fsum(_variance(each) for each in accuracies) / len(accuracies)
    return math.sqrt(max(0.0, _variance(means) - within / r)), math.sqrt(within)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _has(experiment: Experiment, stage: str) -> bool:
    """Whether anything of the experiment depends on the stage."""
    return stage in pipeline.needed(experiment)


class Claim:
    """What the confirmation of one study needs and says. Everything comes from the study and the store."""

    def __init__(self, base: Experiment, sweep: Sweep, store: Store, study: optuna.Study) -> None:
        self.base, self.sweep, self.store, self.study = base, sweep, store, study
        self.ranked = space.ranked(study)
        self._best: FrozenTrial | None = None
        self._rivals: dict[
            int, dict[int, list[Experiment]]
        ] = {}  # by the best trial: there may be many trials
        if not self.ranked:
            raise RuntimeError(f"no trial of sweep {sweep.name} came to its end; the lines above say why")

    def experiment(self, trial: FrozenTrial) -> Experiment:
        return space.apply(self.base, trial.params, self.sweep.search)

    # --- what is run, each step choosing what the next one is ---

    def again(self) -> dict[int, list[Experiment]]:
        """Trial -> runs on val with new seeds, of the search's best; nothing where one only is wanted."""
        wanted, seeds = self.sweep.confirm.best, self.sweep.confirm.seeds
        if wanted == 1 or seeds == 0:
            return {}
        distinct = {self._judge(self.experiment(trial)).key: trial for trial in reversed(self.ranked)}
        first = sorted(distinct.values(), key=self.ranked.index)[:wanted]
        return {
            trial.number: [pipeline.with_seed(self.experiment(trial), AGAIN_SEED + i) for i in range(seeds)]
            for trial in first
        }

    @property
    def best(self) -> FrozenTrial:
        """Of the search or, once they are there, of the runs with new seeds on val."""
        if self._best is None and (again := self._accuracies(self.again())):
            means = {number: math.fsum(values) / len(values) for number, values in again.items()}
            number = max(means, key=lambda each: means[each])
            self._best = next(trial for trial in self.ranked if trial.number == number)
        return self._best or self.ranked[0]

    def rivals(self) -> dict[int, list[Experiment]]:
        """Trial -> random real images on val with its knobs after the synthesis; of trials with the winner's
        synthesis, so that the baseline has as many trials as the winner had. Nothing where it had one.
        """
        if self.best.number not in self._rivals:
            self._rivals[self.best.number] = self._with_same_images()
        return self._rivals[self.best.number]

    def _with_same_images(self) -> dict[int, list[Experiment]]:
        made, found = self._task(self.experiment(self.best), "recover").key, dict[str, int]()
        trials = {trial.number: trial for trial in space.finished(self.study) if trial.state.name != "FAIL"}
        for number, trial in trials.items():
            if self._task(experiment := self.experiment(trial), "recover").key == made:
                found.setdefault(self._judge(experiment).key, number)
        if len(found) < 2 or self.sweep.confirm.seeds == 0:
            return {}
        return {
            number: [pipeline.arms(self.experiment(trials[number]))["random_real"]]
            for number in found.values()
        }

    @property
    def rival(self) -> FrozenTrial:
        """The trial whose knobs suit random real images best, on val."""
        values = self._accuracies(self.rivals())
        number = max(values, key=lambda each: values[each]) if values else self.best.number
        return next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)

    @property
    def winner(self) -> Experiment:
        """The best configuration, with observers trained on fit + val and the student judged on test."""
        return pipeline.refitted(self.experiment(self.best))

    def arms(self) -> dict[str, list[Experiment]]:
        """condensed and its baselines -> one experiment a new seed; the i-th of each belong together."""
        seeds = range(pipeline.CONFIRM_SEED, pipeline.CONFIRM_SEED + self.sweep.confirm.seeds)
        sets = [pipeline.arms(pipeline.with_seed(self.winner, seed)) for seed in seeds]
        if sets and (rival := self.rival).number != self.best.number:
            real = pipeline.refitted(self.experiment(rival))
            for i, seed in enumerate(seeds):
                sets[i]["random_real"] = pipeline.arms(pipeline.with_seed(real, seed))["random_real"]
        return {name: [each[name] for each in sets] for name in (sets[0] if sets else {})}

    def students(self) -> list[list[Experiment]]:
        """For each condensed set of the claim all its students; nothing where there is one each."""
        count, sets = self.sweep.confirm.students, self.arms().get("condensed", [])
        return [[student(each, number) for number in range(count)] for each in sets] if count > 1 else []

    def steps(self) -> Iterator[tuple[str, Runs]]:
        """Title and runs. Ask for the next one when all runs are there: it depends on their accuracies."""
        seeds = self.sweep.confirm.seeds
        if again := self.again():
            title = f"the {len(again)} best again on val: {seeds} new seeds of trials {_listed(again)}"
            yield title, _named(again, "trial")
        if rivals := self.rivals():
            title = f"random_real on val with the evaluation knobs of trials {_listed(rivals)}"
            yield title, _named(rivals, "random_real, trial")
        if arms := self.arms():
            title = f"confirming trial {self.best.number}: {seeds} new seeds of {', '.join(arms)}"
            yield (
                title,
                [(f"{name}, seed {e.evaluate.seeds[0]}", e) for name, arm in arms.items() for e in arm],
            )
        if students := self.students():
            title = f"{len(students[0])} students of each condensed set"
            yield title, [(f"student seed {e.evaluate.seeds[0]}", e) for each in students for e in each[1:]]

    def needed(self) -> list[tuple[Experiment, str]]:
        """(experiment, stage) of every artifact that the facts and the pictures are read from."""
        best = self.experiment(self.best)
        found = [(best, stage) for stage in ("ingest", "init", "recover", "evaluate")]
        for experiment in self.arms().get("condensed", []):
            found += [(experiment, stage) for stage in ("recover", "squeeze") if _has(experiment, stage)]
        return [*found, *((whole, "squeeze") for whole in self._whole(self.winner))]

    def _whole(self, experiment: Experiment) -> list[Experiment]:
        """The student on all the images, where there is such a thing and it will be told."""
        whole = pipeline.whole(experiment) if self.sweep.confirm.seeds else None
        return [whole] if whole else []

    def missing(self) -> list[tuple[Experiment, str]]:
        """What of it is not in the store, or damaged there; as far as that can be known."""
        for _, runs in self.steps():
            if lost := [(e, "evaluate") for _, e in runs if not self._there(self._judge(e))]:
                return lost
        return [(e, stage) for e, stage in self.needed() if not self._there(self._task(e, stage))]

    def _there(self, task: pipeline.Task) -> bool:
        try:
            return pipeline.is_hit(task, self.store, self.sweep.runtime)
        except Damaged as error:
            pipeline.discard(error, self.store)
            return False

    def all_hits(self) -> tuple[int, int]:
        """The hits of a run that finds everything there."""
        tasks = {(task.stage, task.key): task for task in self.everything()}.values()
        return sum(self._there(task) for task in tasks), 0

    def make(self, broker: "BrokerHandle", say: Say) -> None:
        """Build what is missing. Raises a unit's own error; finished artifacts stay."""
        for title, runs in self.steps():

            def done(index: int, summary: "Summary", runs: Runs = runs) -> None:
                accuracy = 100 * summary.curve[-1][1]
                say(f"  {runs[index][0]}: {accuracy:.2f} %, {summary.built} built")

            say(title)
            broker.evaluate_all([experiment for _, experiment in runs], done)
        for experiment, stage in self.missing():
            broker.build(experiment, stage)

    def sign(self) -> None:
        """Put on record that these trials were confirmed on test. Trials that come later are another read."""
        if self.sweep.confirm.seeds and self._signature() not in self._signed():
            why = f"confirmation of sweep {self.sweep.name}: trial {self.best.number}"
            line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "why": why}
            self.store.append_line(
                pipeline.READS, line | {"dataset": self.base.dataset.name} | self._signature()
            )

    def _signature(self) -> dict[str, Any]:
        return {"sweep": self.sweep.name, "trials": len(space.finished(self.study))}

    def _signed(self) -> list[dict[str, Any]]:
        lines = [
            line for line in self.store.read_lines(pipeline.READS) if line.get("sweep") == self.sweep.name
        ]
        return [{"sweep": line["sweep"], "trials": line["trials"]} for line in lines]

    # --- what it says ---

    def facts(self) -> dict[str, Any]:
        """Everything that the table and the files show, as plain data; fractions, bytes and seconds."""
        accuracies = {name: [self._judged(e)["accuracy"] for e in arm] for name, arm in self.arms().items()}
        ours = accuracies.get("condensed", [])
        differences = {
            name: [a - b for a, b in zip(ours, theirs, strict=True)]
            for name, theirs in accuracies.items()
            if name != "condensed"
        }
        judged = self._judged(self.experiment(self.best))
        val = space.accuracy(self.best)
        error = standard_error(val, judged["judged"])
        close = [trial.number for trial in self.ranked if space.accuracy(trial) >= val - error]
        ties = [number for number in close if number != self.best.number]
        return {
            "best": {"trial": self.best.number, "params": self.best.params, "val": val},
            "protocol": protocols.name_of(self.experiment(self.best)),
            "seeds": [run.evaluate.seeds[0] for run in self.arms().get("condensed", [])],
            "val": {"images": judged["judged"], "standard_error": error, "ties": ties},
            "accuracies": accuracies,
            "differences": differences,
            **({"test": self._test()} if ours else {}),
            "core_seconds": self._cost(),
            "trials": self._trials(),
            "rungs": space.rung_correlation(self.study.trials),
            "test_reads": len(self.store.read_lines(pipeline.READS)),
            **self._choices(),
        }

    def _choices(self) -> dict[str, Any]:
        """How the winner and the recipe of random_real were chosen; the spread; each where there is one."""
        found: dict[str, Any] = {}
        if again := self._accuracies(self.again()):
            found["again"] = {str(number): values for number, values in again.items()}
        if rivals := self._accuracies(self.rivals()):
            found["rivals"] = {"trial": self.rival.number, "val": {str(n): v[0] for n, v in rivals.items()}}
        if students := self.students():
            accuracies = [[self._judged(one)["accuracy"] for one in each] for each in students]
            synthesis, student = spread(accuracies)
            found["spread"] = {"synthesis": synthesis, "student": student, "accuracies": accuracies}
        if len(self.sweep.objectives) > 1:
            found["objectives"] = list(self.sweep.objectives)
            front = sorted(self.study.best_trials, key=self.ranked.index)
            found["front"] = [{"trial": trial.number, "values": list(trial.values)} for trial in front]
        if confirmed := [each["trials"] for each in self._signed()]:
            found["confirmed_after"] = confirmed
        return found

    def _test(self) -> dict[str, Any]:
        """Of the condensed sets of the confirmation, and of the networks that saw all the images."""
        one = self.arms()["condensed"][0]
        images = pipeline.facts(self._task(one, "recover"), self.store)
        judged = self._judged(one)
        squeezed = self._task(one, "squeeze") if _has(one, "squeeze") else None
        observers = pipeline.facts(squeezed, self.store) if squeezed else {"accuracy": {}, "ensemble": None}
        student = [pipeline.facts(self._task(each, "squeeze"), self.store) for each in self._whole(one)]
        return {
            "split": judged["split"], "images": judged["judged"],
            "observers": observers["accuracy"], "ensemble": observers["ensemble"],
            "student": student[0]["accuracy"] if student else {},
            "kept": images["images"], "of": self._task(one, "recover").fit,
            "image_bytes": images["bytes"], "label_bytes": judged["label_bytes"],
        }  # fmt: skip

    def _task(self, experiment: Experiment, stage: str) -> pipeline.Task:
        return pipeline.tasks(experiment, stage)[-1]

    def _judge(self, experiment: Experiment) -> pipeline.Task:
        return self._task(experiment, "evaluate")

    def _accuracies(self, runs: Mapping[int, Sequence[Experiment]]) -> dict[int, list[float]]:
        """Of the runs of each trial; nothing while one of them is not there."""
        if not all(self._there(self._judge(e)) for each in runs.values() for e in each):
            return {}
        return {number: [self._judged(e)["accuracy"] for e in each] for number, each in runs.items()}

    def _judged(self, experiment: Experiment) -> dict[str, Any]:
        return pipeline.facts(pipeline.tasks(experiment)[-1], self.store)

    def _trials(self) -> dict[str, int]:
        states = [trial.state.name.lower() for trial in space.finished(self.study)]
        return {state: states.count(state) for state in sorted(set(states))}

    def everything(self) -> Iterator[pipeline.Task]:
        """Every artifact of the trials that ended and of the confirmation; some more than once."""
        for trial in space.finished(self.study):
            yield from pipeline.tasks(self.experiment(trial))
        for _, runs in self.steps():
            for _, experiment in runs:
                yield from pipeline.tasks(experiment)
        for whole in self._whole(self.winner):
            yield from pipeline.tasks(whole, "squeeze")

    def _cost(self) -> Mapping[str, float]:
        """Core-seconds of the units that the sweep's artifacts were made with, whoever made them."""
        spent = {
            (task.stage, task.key): pipeline.core_seconds(task, self.store) for task in self.everything()
        }
        sets = [self._task(e, "recover") for e in self.arms().get("condensed", [self.experiment(self.best)])]
        return {
            "synthesis": math.fsum(spent[task.stage, task.key] for task in sets) / len(sets),
            "everything": math.fsum(spent.values()),
        }


def student(experiment: Experiment, number: int) -> Experiment:
    """Another student of the same condensed set, with labels and views of its own; 0 = the experiment."""
    seeds = tuple(seed + number * STUDENT for seed in experiment.evaluate.seeds)
    return replace(experiment, evaluate=replace(experiment.evaluate, seeds=seeds))


def _named(runs: Mapping[int, Sequence[Experiment]], what: str) -> Runs:
    return [(f"{what} {n}, seed {e.evaluate.seeds[0]}", e) for n, each in runs.items() for e in each]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
