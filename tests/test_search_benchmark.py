"""benchmarks/search.py: what a replay charges and tells, on tables made by hand; the grid of the real one."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from benchmarks import search, search_table
from edc_ray import config, presets, reuse
from edc_ray.config import Knob, Scheduler, Sweep

BASE = config.override(presets.experiment("digits/ipc2"), {"evaluate.epochs": 40, "evaluate.reports": 10})
KNOBS = {"recover.iterations": Knob(choices=(25, 50)), "evaluate.zeta": Knob(choices=(1.0, 2.0, 3.0))}
SYNTHESIS = {25: 1.0, 50: 2.0}
TRAINING, COMMON = 0.5, 8.0


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def table(final: Mapping[float, float]) -> search_table.Table:
    """final: accuracy by zeta; a third of it at 30 % of the training."""
    rows = [
        {"recover.iterations": iterations, "evaluate.zeta": zeta, "init_seed": 0, "student_seed": 0,
         "progress": [300, 1000], "accuracy": [final[zeta] / 3, final[zeta]], "init_seconds": 0.0,
         "recover_seconds": SYNTHESIS[iterations], "evaluate_seconds": TRAINING}
        for iterations, zeta in itertools.product((25, 50), final)
    ]  # fmt: skip
    return search_table.Table(KNOBS, rows, COMMON)


def replay(plan: Sweep, final: Mapping[float, float] | None = None) -> search.Replay:
    made = table(final or {1.0: 0.3, 2.0: 0.6, 3.0: 0.9})
    return search.Replay(plan, BASE, reuse.outer(KNOBS, BASE), made, (0, 0))


def sweep(**changes: Any) -> Sweep:
    fields: dict[str, Any] = {"search": KNOBS, "sampler": "random", "concurrent": 1}
    return Sweep(**(fields | changes))


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_a_sweep_pays_each_synthesis_once_and_each_training(sampler: str) -> None:
    run = replay(sweep(sampler=sampler))
    done = run.run(18.0)
    paid, there, by_hand = COMMON, set(), []
    for trial in run.study.get_trials(states=(TrialState.COMPLETE,)):
        iterations = trial.params["recover.iterations"]
        paid += TRAINING + (0 if iterations in there else SYNTHESIS[iterations])
        there.add(iterations)
        by_hand.append((paid, trial.value))
    assert [(trial.spent, trial.accuracy) for trial in done] == by_hand[: len(done)]  # exact: halves
    assert there == {25, 50} and done[-1].spent <= 18.0 < done[-1].spent + TRAINING + 2.0


@pytest.mark.parametrize("inner, paid", [(1, [2, 2, 2, 2, 2, 2]), (3, [2, 1, 1, 2, 1, 1])])
def test_a_range_shares_points_of_the_table_but_a_synthesis_only_by_inner(
    monkeypatch: pytest.MonkeyPatch, inner: int, paid: Sequence[float]
) -> None:
    monkeypatch.setitem(search_table.PARTS, "recover.lr", 2)
    knobs = {"recover.lr": Knob(low=0.01, high=1.0, log=True), "evaluate.zeta": KNOBS["evaluate.zeta"]}
    rows = [
        {"recover.lr": lr, "evaluate.zeta": zeta, "init_seed": 0, "student_seed": 0, "progress": [1000],
         "accuracy": [lr], "init_seconds": 0.0, "recover_seconds": 1.0, "evaluate_seconds": 1.0}
        for lr in search_table.points("recover.lr", knobs["recover.lr"]) for zeta in (1.0, 2.0, 3.0)
    ]  # fmt: skip
    made = search_table.Table(knobs, rows, 0.0)
    plan = sweep(search=knobs, inner=inner)
    run = search.Replay(plan, BASE, reuse.outer(knobs, BASE), made, (0, 0))
    run.run(40.0)
    assert [trial.spent for trial in run.done[:6]] == list(itertools.accumulate(paid))
    assert {trial.key[0] for trial in run.done} == {0, 1}  # though no two trials have the same value


def test_four_at_once_wait_for_one_synthesis_and_spend_it_once() -> None:
    run = replay(sweep(concurrent=4, search={"recover.iterations": Knob(choices=(50,))} | {
        "evaluate.zeta": KNOBS["evaluate.zeta"]}))  # fmt: skip
    done = run.run(20.0)
    assert [trial.spent for trial in done[:4]] == pytest.approx([COMMON + 2.0 + 4 * TRAINING] * 4)
    assert done[-1].spent == pytest.approx(20.0)  # 20 trainings


def test_asha_charges_the_trained_share_and_its_trials_are_never_the_best() -> None:
    run = replay(sweep(scheduler=Scheduler(kind="asha")))
    done = run.run(40.0)
    pruned = [t for t in run.study.trials if t.state == TrialState.PRUNED]
    assert pruned and all(trial.params["evaluate.zeta"] < 3.0 for trial in pruned)
    trained = {number: end - begin for number, (begin, end) in enumerate(trainings(run))}
    for trial in run.study.get_trials(states=(TrialState.PRUNED, TrialState.COMPLETE)):
        share = 0.3 if trial.state == TrialState.PRUNED else 1.0
        assert trained[trial.number] == pytest.approx(share * TRAINING)
    assert len(done) == len(run.study.get_trials(states=(TrialState.COMPLETE,)))
    ended = {t.number for t in run.study.trials if t.state.is_finished()}
    paid = COMMON + sum(SYNTHESIS.values()) + sum(trained[number] for number in ended)
    assert run.spent(max(end for end in finish(run, ended))) == pytest.approx(paid)


def finish(run: search.Replay, ended: Collection[int]) -> list[float]:
    return [run.work[run.running[number].work][1] for number in ended]


def trainings(run: search.Replay) -> list[tuple[float, float]]:
    """Of each trial, in order."""
    return [run.work[run.running[number].work] for number in sorted(run.running)]


def test_the_best_so_far_is_that_of_the_trials_that_ended() -> None:
    done = [search.Done(3.0, 0.5, (0,)), search.Done(5.0, 0.4, (1,)), search.Done(8.0, 0.7, (2,))]
    at = np.arange(1.0, 11.0)
    assert search.best_so_far(done, at, lambda t: t.accuracy).tolist() == [0, 0, *[0.5] * 5, 0.7, 0.7, 0.7]
    assert search.best_so_far(done, at, lambda t: 10.0 * t.key[0]).tolist() == [0] * 7 + [20.0] * 3


@pytest.mark.slow
def test_a_ratio_is_the_time_to_randoms_accuracy_over_its_budget() -> None:
    def until(seconds: float, accuracy: float = 0.6) -> list[list[search.Done]]:
        return [[search.Done(10.0, 0.3, (0, 0)), search.Done(seconds, accuracy, (0, 1))]] * 3

    runs = {"random": until(100.0), "tpe": until(40.0), "grid": until(130.0), "tpe + asha": until(20.0, 0.5)}
    found = {row.name: row for row in search.rows(runs, table({1.0: 0.3, 2.0: 0.6, 3.0: 0.9}), 100.0)}
    for name, ratio in {"random": 1.0, "tpe": 0.4, "grid": 1.3, "tpe + asha": math.inf}.items():
        assert found[f"{name} to random's at 100 core-s"].values == pytest.approx((ratio,) * 3, abs=0.005)
    assert found["tpe to random's at 50 core-s"].values == pytest.approx((0.2,) * 3, abs=0.01)
    assert found["tpe to random's at 100 core-s"].goal == 0.5
    assert found["tpe, regret at 100 core-s"].values == pytest.approx((30.0,) * 3)  # 0.9 - 0.6
    assert found["grid, regret at 100 core-s"].values == pytest.approx((60.0,) * 3)


def test_an_interval_is_of_the_repeats() -> None:
    values = np.arange(100.0)
    low, mean, high = search.interval(lambda taken: float(values[taken].mean()), 100)
    half = 1.96 * values.std() / 10
    assert (
        mean == 49.5
        and low == pytest.approx(mean - half, abs=1)
        and high == pytest.approx(mean + half, abs=1)
    )
    assert search.interval(lambda taken: 7.0, 5) == (7.0, 7.0, 7.0)


# --- the grid and the file ----------------------------------------------------------------------------------


def test_a_point_stands_for_an_equal_part_of_its_range() -> None:
    plan, _ = search_table.sweep()
    for path, knob in plan.search.items():
        points = search_table.points(path, knob)
        assert [search_table.cell(path, knob, value) for value in points] == list(range(len(points)))
        if knob.choices is None:
            assert search_table.cell(path, knob, knob.low) == 0
            assert search_table.cell(path, knob, knob.high) == len(points) - 1


def test_every_configuration_is_computed_once_a_replicate_and_a_synthesis_in_one_go() -> None:
    plan, base = search_table.sweep()
    outer = reuse.outer(plan.search, base)
    listed = list(search_table.order(plan.search, outer))
    n = len(search_table.configurations(plan.search))
    assert n >= 500 and len(listed) == n * len(search_table.REPLICATES)
    first = [{path: v for path, v in chosen.items() if path in outer} for _, chosen in listed[:n]]
    runs = [key for key, _ in itertools.groupby(map(str, first))]
    assert len(runs) == len(set(runs))
    assert len({str(chosen) for _, chosen in listed[:n]}) == n


def test_the_table_has_every_configuration_of_the_sweep_file_with_two_replicates() -> None:
    plan, _ = search_table.sweep()
    made = search_table.Table.read(search_table.FILE, plan.search)
    assert set(made.entries) == {made.key(chosen) for chosen in search_table.configurations(plan.search)}
    assert len(made.complete()) >= 2 and len(made.entries) >= 500
    assert search_table.FILE.stat().st_size < 1e6
    for found in made.entries.values():
        for entry in found.values():
            assert [at for at, _ in entry.curve] == made.steps and made.steps[-1] == 1000
            assert all(0 <= accuracy <= 1 for _, accuracy in entry.curve)
            assert 0 < entry.training and 0 < entry.synthesis
