"""What trials cost, by the manifests of their artifacts: as objectives, and against the budget.

An objective is a sum over all artifacts of a trial, whoever made them, so that it does not depend on what was
there. A budget counts each artifact once, and only what was made since the sweep's first trial began.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from edc_ray import pipeline, space
from edc_ray.artifacts import Damaged, Store
from edc_ray.config import Experiment, Runtime, Sweep


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of CPU cores and of GPUs (a worker with half a GPU: half as many); bytes of soft labels."""

    core_seconds: float = 0.0
    gpu_seconds: float = 0.0
    label_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.core_seconds + other.core_seconds,
            self.gpu_seconds + other.gpu_seconds,
            self.label_bytes + other.label_bytes,
        )


def of_units(metas: Iterable[Mapping[str, Any]], gpus_per_worker: float) -> Cost:
    """Of what the units say of themselves."""
    metas = list(metas)
    core = math.fsum(meta["core_seconds"] for meta in metas)
    gpu = math.fsum(meta["seconds"] for meta in metas if meta.get("device", "cpu") != "cpu")
    return Cost(
        core, gpu * (gpus_per_worker or 1.0), max((m.get("label_bytes", 0) for m in metas), default=0)
    )


def of_trial(experiment: Experiment, store: Store) -> Cost:
    """All that a finished trial is made of. Labels count as if they were kept, also where they are not."""
    found = Cost()
    for task in pipeline.tasks(experiment):
        if (manifest := store.artifact(task.stage, task.key).manifest()) is not None:
            metas = [unit["meta"] for unit in manifest["units"].values()]
            found += of_units(metas, manifest["runtime"]["gpus_per_worker"])
    return found


class Spend:
    """What the trials of a sweep have had made so far. Remembers what it has read."""

    def __init__(self, sweep: Sweep, base: Experiment, store: Store) -> None:
        self._sweep, self._base, self._store = sweep, base, store
        self._artifacts: dict[tuple[str, str], Cost] = {}
        self._trials: set[int] = set()

    def total(self, study: optuna.Study) -> Cost:
        """Of the trials that have ended. Of a student that was stopped, what its last checkpoint says."""
        began = start(study)
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in self._trials and began is not None:
                self._read(trial, began)
                self._trials.add(trial.number)
        return sum(self._artifacts.values(), Cost())

    def _read(self, trial: FrozenTrial, began: datetime) -> None:
        experiment = space.apply(self._base, space.wanted(trial), self._sweep.search)
        for task in pipeline.tasks(experiment):
            cost = _since(task, self._store, self._sweep.runtime, began)
            known = self._artifacts.get((task.stage, task.key), Cost())
            self._artifacts[task.stage, task.key] = max(cost, known, key=lambda c: c.core_seconds)


def _since(task: pipeline.Task, store: Store, runtime: Runtime, began: datetime) -> Cost:
    """Of an artifact; nothing where it was committed before, or was never begun."""
    artifact = store.artifact(task.stage, task.key)
    try:
        if (manifest := artifact.manifest()) is not None:
            if datetime.fromisoformat(manifest["made"]["at"]).timestamp() + 1 < began.timestamp():
                return Cost()
            metas = [unit["meta"] for unit in manifest["units"].values()]
            return of_units(metas, manifest["runtime"]["gpus_per_worker"])
    except Damaged:
        return Cost()
    saved = artifact.load_checkpoint("student") if task.stage == "evaluate" else None
    device = "cuda" if runtime.gpus_per_worker else "cpu"
    return of_units([saved[1] | {"device": device}] if saved else [], runtime.gpus_per_worker)


def start(study: optuna.Study) -> datetime | None:
    """When the sweep's first trial began, however often it was interrupted since."""
    began = [
        trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start is not None
    ]
    return min(began, default=None)


def deadline(sweep: Sweep, study: optuna.Study) -> datetime | None:
    """budget.hours after the sweep's first trial began; None = never."""
    if sweep.budget.hours is None:
        return None
    return (start(study) or datetime.now()) + timedelta(hours=sweep.budget.hours)


class Limits:
    """Whether a sweep may start another trial: budget.hours, core_hours and gpu_hours."""

    def __init__(self, sweep: Sweep, spend: Spend) -> None:
        self._budget, self._sweep, self._spend = sweep.budget, sweep, spend
        hours = {"core_hours": self._budget.core_hours, "gpu_hours": self._budget.gpu_hours}
        self._costs = {name: limit for name, limit in hours.items() if limit is not None}

    def ended(self, study: optuna.Study) -> str | None:
        """The name of a budget that is used up."""
        end = deadline(self._sweep, study)
        if end is not None and datetime.now() > end:
            return "hours"
        spent = self._spent(study) if self._costs else {}
        return next((name for name, limit in self._costs.items() if spent[name] >= limit), None)

    def full(self, study: optuna.Study) -> bool:
        """Whether those that run are expected to use up a budget: each as the mean of those that ended."""
        trials = study.get_trials(deepcopy=False)
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        ended = sum(trial.state.is_finished() for trial in trials)
        if not self._costs or not running or not ended:
            return False
        spent = self._spent(study)
        return any(spent[name] * (1 + running / ended) >= limit for name, limit in self._costs.items())

    def said(self, study: optuna.Study) -> str:
        """What has been used of each, for a person."""
        spent = self._spent(study)
        told = [
            f"{spent[name]:.3g} of {limit:g} {name.replace('_', '-')}" for name, limit in self._costs.items()
        ]
        if (end := deadline(self._sweep, study)) is not None:
            told.append(f"until {end:%Y-%m-%d %H:%M:%S}")
        return ", ".join(told) or "no limit but trials"

    def _spent(self, study: optuna.Study) -> dict[str, float]:
        cost = self._spend.total(study)
        return {"core_hours": cost.core_seconds / 3600, "gpu_hours": cost.gpu_seconds / 3600}
