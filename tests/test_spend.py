"""What trials cost by their manifests, as objectives and against a budget in core-hours."""

import json
import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from edc_ray import pipeline, space, spend, tuning
from edc_ray.artifacts import Store
from edc_ray.config import Budget, Knob, Sweep
from tests import tiny

SEARCH = {"evaluate.lr": Knob(low=1e-3, high=1e-2, log=True)}
BASE = tiny.experiment(evaluate__seeds=[0])
SWEEP = Sweep(search=SEARCH, sampler="random")
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


def commit(
    store: Store, task: pipeline.Task, seconds: float, at: datetime | None = None, **facts: Any
) -> None:
    """An artifact of one unit that took so many core-seconds, and twice as many seconds of a worker."""
    artifact = store.artifact(task.stage, task.key)
    meta = {"seconds": 2 * seconds, "core_seconds": seconds, "device": "cpu", **facts}
    got = artifact.write("student", {}, meta)
    unit = {"file": got.file, "sha256": got.sha256, "bytes": got.bytes, "meta": meta}
    made = {"at": (at or datetime.now(UTC)).isoformat(timespec="seconds")}
    runtime = {"gpus_per_worker": 0.5, "labels": "inline"}
    artifact.commit({"units": {"student": unit}, "core_seconds": seconds, "made": made, "runtime": runtime})


def tried(study: optuna.Study, store: Store, lr: float, seconds: float, state: str = "COMPLETE") -> None:
    """A trial that has ended, with the student that it trained; all else was there a day ago."""
    distribution = {"evaluate.lr": space.distribution("evaluate.lr", SEARCH["evaluate.lr"])}
    value = 0.5 if state == "COMPLETE" else None
    trial = create_trial(
        params={"evaluate.lr": lr}, distributions=distribution, value=value, state=TrialState[state]
    )
    study.add_trial(trial)
    *shared, student = pipeline.tasks(space.apply(BASE, trial.params, SEARCH))
    for task in shared:
        if not store.exists(f"{task}/manifest.json"):
            commit(store, task, 1000.0, LONG_AGO)
    if state == "COMPLETE":
        commit(store, student, seconds, label_bytes=77)
    else:  # stopped at a rung
        saved = {"seconds": 2 * seconds, "core_seconds": seconds, "reports": []}
        store.artifact("evaluate", student.key).save_checkpoint("student", {}, saved)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return space.open_study(tmp_path)


def limits(store: Store, **budget: float) -> spend.Limits:
    sweep = replace(SWEEP, budget=Budget(**budget))  # type: ignore[arg-type]
    return spend.Limits(sweep, spend.Spend(sweep, BASE, store))


def test_an_objective_counts_all_artifacts_whoever_made_them(study: optuna.Study, store: Store) -> None:
    tried(study, store, 0.002, 36.0)
    cost = spend.of_trial(space.apply(BASE, study.trials[0].params, SEARCH), store)
    shared = len(pipeline.tasks(BASE)) - 1
    assert cost == spend.Cost(1000.0 * shared + 36.0, 0.0, 77)


def test_half_a_gpu_for_two_seconds_is_one_gpu_second() -> None:
    metas: list[dict[str, Any]] = [
        {"seconds": 2.0, "core_seconds": 1.0, "device": "NVIDIA H100"},
        {"seconds": 4.0, "core_seconds": 1.0},
    ]
    assert spend.of_units(metas, 0.5) == spend.Cost(2.0, 1.0, 0)
    assert spend.of_units(metas, 0.0).gpu_seconds == 2.0


def test_a_budget_counts_once_what_was_made_since_the_first_trial(study: optuna.Study, store: Store) -> None:
    for lr, seconds in ((0.002, 36.0), (0.003, 72.0), (0.002, 36.0)):  # the third is a hit
        tried(study, store, lr, seconds)
    tried(study, store, 0.004, 18.0, "PRUNED")
    spent = spend.Spend(SWEEP, BASE, store)
    assert spent.total(study).core_seconds == 36.0 + 72.0 + 18.0
    tried(study, store, 0.005, 4.0)
    assert (
        spent.total(study).core_seconds == 130.0 == spend.Spend(SWEEP, BASE, store).total(study).core_seconds
    )


def test_no_trial_starts_once_the_core_hours_are_used_up(
    study: optuna.Study, store: Store, tmp_path: Path
) -> None:
    for lr in (0.002, 0.003):
        tried(study, store, lr, 36.0)  # 0.01 core-hours each

    def asked(hours: float, running: int = 0) -> Any:
        """What a searcher says, while so many trials run."""
        search = tuning.make_search(SWEEP, tmp_path, study, limits=limits(store, core_hours=hours))
        other = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        other.add_trials(study.trials)
        for _ in range(running):
            other.ask()
        vars(search)["_ot_study"] = other
        return search.suggest("a")

    assert asked(0.02) == Searcher.FINISHED and asked(0.0) == Searcher.FINISHED
    assert "evaluate.lr" in str(asked(0.021))
    assert asked(0.03, running=1) is None  # the one that runs will use it up: Tune asks again
    assert "evaluate.lr" in str(asked(0.031, running=1)) and asked(0.031, running=2) is None


def test_the_first_trials_need_no_estimate(study: optuna.Study, store: Store) -> None:
    study.ask()
    some = limits(store, core_hours=0.1)
    assert not some.full(study) and some.ended(study) is None
    assert some.said(study) == "0 of 0.1 core-hours"
    assert limits(store).said(study) == "no limit but trials"


def test_gpu_hours(study: optuna.Study, store: Store) -> None:
    tried(study, store, 0.002, 36.0)
    assert limits(store, gpu_hours=0.001).ended(study) is None  # a CPU is no GPU
    *_, student = pipeline.tasks(space.apply(BASE, {"evaluate.lr": 0.003}, SEARCH))
    commit(store, student, 36.0, device="NVIDIA H100")  # 72 s of half a GPU
    tried(study, store, 0.003, 36.0)
    assert limits(store, gpu_hours=0.0101).ended(study) is None
    assert limits(store, gpu_hours=0.0099).ended(study) == "gpu_hours"


def test_what_tune_saves_with_its_searcher(study: optuna.Study, store: Store) -> None:
    tried(study, store, 0.002, 36.0)
    there = pickle.loads(pickle.dumps(limits(store, core_hours=1.0)))
    assert there.said(study) == "0.01 of 1 core-hours" and json.dumps(there._costs)
