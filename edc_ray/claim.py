"""The final claim of a sweep: the best configuration with new seeds, its baselines, and what all of it cost.

Selection ends on val. The claim is read on test, once a seed; every read is on record in the store.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
import scipy  # loads scipy.stats, which takes a second, when it is asked for
from optuna.trial import FrozenTrial

from edc_ray import pipeline, space
from edc_ray.artifacts import Damaged, Store
from edc_ray.config import Experiment, Sweep

if TYPE_CHECKING:  # nothing here needs Ray
    from edc_ray.distributed.broker import Summary
    from edc_ray.distributed.trial import BrokerHandle

Say = Callable[[str], None]


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


def _has(experiment: Experiment, stage: str) -> bool:
    """Whether anything of the experiment depends on the stage."""
    return stage in pipeline.needed(experiment)


class Claim:
    """What the confirmation of one study needs and says. Everything comes from the study and the store."""

    def __init__(self, base: Experiment, sweep: Sweep, store: Store, study: optuna.Study) -> None:
        self.base, self.sweep, self.store, self.study = base, sweep, store, study
        self.ranked = space.ranked(study)
        if not self.ranked:
            raise RuntimeError(f"no trial of sweep {sweep.name} came to its end; the lines above say why")

    @property
    def best(self) -> FrozenTrial:
        return self.ranked[0]

    def experiment(self, trial: FrozenTrial) -> Experiment:
        return space.apply(self.base, trial.params, self.sweep.search)

    @property
    def winner(self) -> Experiment:
        """The best configuration, with observers trained on fit + val and the student judged on test."""
        return pipeline.refitted(self.experiment(self.best))

    def arms(self) -> dict[str, list[Experiment]]:
        """condensed and its baselines -> one experiment a new seed; the i-th of each belong together."""
        seeds = range(pipeline.CONFIRM_SEED, pipeline.CONFIRM_SEED + self.sweep.confirm.seeds)
        sets = [pipeline.arms(pipeline.with_seed(self.winner, seed)) for seed in seeds]
        return {name: [each[name] for each in sets] for name in (sets[0] if sets else {})}

    def needed(self) -> list[tuple[Experiment, str]]:
        """(experiment, stage) of every artifact that the facts and the pictures are read from."""
        best = self.experiment(self.best)
        found = [(best, stage) for stage in ("ingest", "init", "recover", "evaluate")]
        for arm in self.arms().values():
            found += [(experiment, "evaluate") for experiment in arm]
        for experiment in self.arms().get("condensed", []):
            found += [(experiment, stage) for stage in ("recover", "squeeze") if _has(experiment, stage)]
        return [*found, *((whole, "squeeze") for whole in self._whole(self.winner))]

    def _whole(self, experiment: Experiment) -> list[Experiment]:
        """The student on all the images, where there is such a thing and it will be told."""
        whole = pipeline.whole(experiment) if self.sweep.confirm.seeds else None
        return [whole] if whole else []

    def missing(self) -> list[tuple[Experiment, str]]:
        """What of it is not in the store, or damaged there."""
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
        listed = [(name, i, e) for name, arm in self.arms().items() for i, e in enumerate(arm)]

        def done(index: int, summary: "Summary") -> None:
            name, i, _ = listed[index]
            accuracy = 100 * summary.curve[-1][1]
            say(f"  {name}, seed {pipeline.CONFIRM_SEED + i}: {accuracy:.2f} %, {summary.built} built")

        if listed:  # else nothing may read test
            names, seeds = ", ".join(self.arms()), self.sweep.confirm.seeds
            say(f"confirming trial {self.best.number}: {seeds} new seeds of {names}")
            broker.evaluate_all([e for _, _, e in listed], done)
        for experiment, stage in self.missing():
            broker.build(experiment, stage)

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
        error = standard_error(self.best.value or 0.0, judged["judged"])
        ties = [t.number for t in self.ranked[1:] if (t.value or 0.0) >= (self.best.value or 0.0) - error]
        return {
            "best": {"trial": self.best.number, "params": self.best.params, "val": self.best.value},
            "val": {"images": judged["judged"], "standard_error": error, "ties": ties},
            "accuracies": accuracies,
            "differences": differences,
            **({"test": self._test()} if ours else {}),
            "core_seconds": self._cost(),
            "trials": self._trials(),
            "rungs": space.rung_correlation(self.study.trials),
            "test_reads": len(self.store.read_lines("test_reads.jsonl")),
        }

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

    def _judged(self, experiment: Experiment) -> dict[str, Any]:
        return pipeline.facts(pipeline.tasks(experiment)[-1], self.store)

    def _trials(self) -> dict[str, int]:
        states = [trial.state.name.lower() for trial in space.finished(self.study)]
        return {state: states.count(state) for state in sorted(set(states))}

    def everything(self) -> Iterator[pipeline.Task]:
        """Every artifact of the trials that ended and of the confirmation; some more than once."""
        for trial in space.finished(self.study):
            yield from pipeline.tasks(self.experiment(trial))
        for arm in self.arms().values():
            for experiment in arm:
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
