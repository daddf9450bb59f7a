"""How a confirmation goes: who wins on val with new seeds, random_real, the spread, the record."""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from optuna.trial import TrialState

from edc_ray import config, pipeline, report, space
from edc_ray.artifacts import Store
from edc_ray.claim import Claim, spread
from edc_ray.config import Confirm, Experiment, Knob, Runtime, Sweep
from edc_ray.distributed.broker import Summary
from edc_ray.report.files import results
from edc_ray.report.remarks import remarks

BASE = config.override(
    Experiment(),
    {
        "dataset.limit": 200, "dataset.size_px": 8, "split.val": 0.3, "squeeze.epochs": 1,
        "squeeze.observers": ["convnet_w16_d2"], "recover.iterations": 1, "evaluate.student": "vgg5_w16",
        "evaluate.epochs": 2, "evaluate.reports": 1, "relabel.batch_size": 5,
    },
)  # fmt: skip
SEARCH = {"evaluate.lr": Knob(low=1e-4, high=0.1), "recover.flip": Knob(choices=(True, False))}
ASKED: list[dict[str, Any]] = [
    {"evaluate.lr": 0.05, "recover.flip": True}, {"evaluate.lr": 0.001, "recover.flip": True},
    {"evaluate.lr": 0.01, "recover.flip": False}, {"evaluate.lr": 0.05, "recover.flip": True},
]  # fmt: skip


class InProcess:
    """What a Claim wants of a Broker; tells which experiments it was asked for."""

    def __init__(self, store: Store) -> None:
        self.store, self.asked = store, list[Experiment]()

    def build(self, experiment: Experiment, upto: str) -> None:
        pipeline.ensure(
            experiment, self.store, Runtime(), pipeline.in_process(self.store, Runtime()), upto=upto
        )

    def evaluate_all(self, experiments: Sequence[Experiment], done: Callable[[int, Summary], None]) -> None:
        for index, experiment in enumerate(experiments):
            self.asked.append(experiment)
            self.build(experiment, "evaluate")
            curve = pipeline.reports(pipeline.tasks(experiment)[-1], self.store)
            done(index, Summary(0, 1, {}, (curve[-1][1],), curve))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four trials, the last one as the first; the values in the study are wrong on purpose."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    study = space.open_study(Path(store.folder("sweeps/sweep")))
    for value, params in zip((0.9, 0.8, 0.7, 0.9), ASKED, strict=True):
        study.enqueue_trial(params)
        trial = study.ask()
        space.Space(SEARCH)(trial)
        InProcess(store).build(space.apply(BASE, trial.params, SEARCH), "evaluate")
        study.tell(trial, value)
    return store


def claim_of(store: Store, **confirm: int) -> Claim:
    sweep = Sweep(search=SEARCH, confirm=Confirm(**confirm), runtime=replace(Runtime(), store=store.path()))
    return Claim(BASE, sweep, store, space.read_study(Path(store.path("sweeps/sweep"))))


@pytest.fixture(scope="module")
def made(searched: Store) -> tuple[Claim, list[Experiment], list[str]]:
    """A confirmation of the best three with two students each; what it ran, and what it said."""
    claim, broker, said = claim_of(searched, seeds=2, best=3, students=2), InProcess(searched), list[str]()
    claim.make(broker, said.append)  # type: ignore[arg-type]
    assert not claim.missing() and not claim_of(searched, seeds=2, best=3, students=2).missing()
    return claim, broker.asked, said


@pytest.mark.slow
def test_the_best_run_again_on_val_with_seeds_that_no_search_and_no_claim_has(made: Any) -> None:
    claim, asked, said = made
    again = claim.again()
    assert list(again) == [0, 1, 2]  # the fourth trial is the first
    runs = [run for each in again.values() for run in each]
    assert asked[: len(runs)] == runs
    assert all(run.split.val == 0.3 and run.recover == claim.experiment(claim.study.trials[n]).recover
               for n, each in again.items() for run in each)  # fmt: skip
    seeds = {run.init.seed for run in runs} | {seed for run in runs for seed in run.evaluate.seeds}
    final = {run.init.seed for arm in claim.arms().values() for run in arm}
    assert len(seeds) == 2 and min(seeds) >= pipeline.CONFIRM_SEED and not seeds & final
    assert said[0].startswith("the 3 best again on val: 2 new seeds of trials 0, 1, 2")


@pytest.mark.slow
def test_the_search_values_are_discarded(made: Any) -> None:
    claim, _, _ = made
    again = claim.facts()["again"]
    means = {int(number): sum(values) / 2 for number, values in again.items()}
    assert claim.best.number == max(means, key=lambda each: means[each])
    for number, each in claim.again().items():
        read = [pipeline.facts(pipeline.tasks(run)[-1], claim.store) for run in each]
        assert [one["accuracy"] for one in read] == again[str(number)]
        assert all(one["split"] == "val" for one in read)


@pytest.mark.slow
def test_random_real_has_as_many_trials_of_the_recipe(searched: Store) -> None:
    """Trials 0 and 1 have the winner's images; 3 is 0 again, and 2 has images of its own."""
    claim = claim_of(searched, seeds=2)
    assert claim.best.number == 0 and list(claim.rivals()) == [0, 1]
    rivals = [run for (run,) in claim.rivals().values()]
    assert all(run.split.val == 0.3 and run.recover.iterations == 0 for run in rivals)
    assert {run.init.seed for run in rivals} == {BASE.init.seed + 500_000}
    broker = InProcess(searched)
    claim.make(broker, lambda text: None)  # type: ignore[arg-type]
    values = [pipeline.facts(pipeline.tasks(run)[-1], searched)["accuracy"] for run in rivals]
    best = max((0, 1), key=lambda i: values[i])
    assert claim.rival.number == best and claim.facts()["rivals"]["trial"] == best
    lr = ASKED[best]["evaluate.lr"]
    assert {run.evaluate.lr for run in claim.arms()["random_real"]} == {lr}
    assert (
        {run.evaluate.lr for run in claim.arms()["t0"]}
        == {0.05}
        == {run.evaluate.lr for run in claim.arms()["condensed"]}
    )
    assert all(run.split.val == 0 for arm in claim.arms().values() for run in arm)


@pytest.mark.slow
def test_students_share_the_images_and_nothing_else(made: Any) -> None:
    claim, _, _ = made
    students = claim.students()
    assert [each[0] for each in students] == claim.arms()["condensed"] and len(students[0]) == 2
    for each in students:
        names = [{task.stage: task.key for task in pipeline.tasks(one)} for one in each]
        assert names[0]["recover"] == names[1]["recover"]
        assert names[0]["relabel"] != names[1]["relabel"] and names[0]["evaluate"] != names[1]["evaluate"]
    found = claim.facts()["spread"]
    assert [each[0] for each in found["accuracies"]] == claim.facts()["accuracies"]["condensed"]
    assert (found["synthesis"], found["student"]) == spread(found["accuracies"])


@pytest.mark.parametrize(("synthesis", "student"), [(0.03, 0.01), (0.0, 0.02), (0.02, 0.0)])
def test_the_spread_of_a_known_mixture(synthesis: float, student: float, rng: torch.Generator) -> None:
    k, r = 4000, 3
    sets = 0.8 + synthesis * torch.randn(k, 1, generator=rng, dtype=torch.float64)
    values = (sets + student * torch.randn(k, r, generator=rng, dtype=torch.float64)).tolist()
    got = spread(values)
    assert math.isclose(got[1], student, rel_tol=0.05, abs_tol=1e-12)
    assert math.isclose(got[0], synthesis, rel_tol=0.05, abs_tol=0.004)


@pytest.mark.slow
def test_one_student_and_one_candidate_cost_nothing_more(searched: Store) -> None:
    claim = claim_of(searched, seeds=2)
    assert claim.again() == {} and claim.students() == []
    titles = [title for title, _ in claim.steps()]
    assert [title.split()[0] for title in titles] == ["random_real", "confirming"]
    assert list(claim_of(searched, seeds=0).steps()) == []


@pytest.mark.slow
def test_each_confirmation_is_on_record_once(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    claim, _, _ = made
    before = len(claim.store.read_lines(pipeline.READS))
    for _ in range(2):
        claim.sign()
    assert len(claim.store.read_lines(pipeline.READS)) == before + 1 == claim.facts()["test_reads"]
    assert claim.facts()["confirmed_after"] == [4]
    assert not any("not one clean read" in line for line in remarks(claim.facts()))
    study = space.read_study(Path(claim.store.path("sweeps/sweep")))
    study.tell(study.ask(), state=TrialState.FAIL)
    later = Claim(BASE, claim.sweep, claim.store, study)
    later.sign()
    assert later.facts()["confirmed_after"] == [4, 5]
    assert "confirmed on test 2 times, after 4, 5 trials: not one clean read" in remarks(later.facts())


@pytest.mark.slow
def test_every_run_is_a_row_of_the_results(made: Any) -> None:
    claim, asked, _ = made
    table = pq.read_table(io.BytesIO(results(claim)))
    rows = [row for row in table.to_pylist() if row["arm"] != "search"]
    read = [pipeline.facts(pipeline.tasks(run)[-1], claim.store) for run in asked]
    key = lambda row: (row["split"], row["accuracy"], json.dumps(row["reports"]))  # noqa: E731
    told = [row | {"reports": json.loads(row["curve"])} for row in rows]
    assert sorted(map(key, told)) == sorted(map(key, read))
    again = [(row["trial"], row["seed"]) for row in rows if row["arm"] == "again"]
    assert again == [(n, run.evaluate.seeds[0]) for n, each in claim.again().items() for run in each]
    extra = [row["seed"] for row in rows if row["arm"] == "students"]
    assert extra == [run.evaluate.seeds[0] for each in claim.students() for run in each[1:]]
    trials = {row["trial"] for row in rows if row["arm"] == "random_real"}
    assert trials == {claim.rival.number}
    for row in rows:
        assert json.loads(row["params"]) == claim.study.trials[row["trial"]].params


@pytest.mark.slow
def test_the_table_tells_all_of_it(made: Any) -> None:
    claim, _, _ = made
    facts = claim.facts()
    lines = report.table(json.loads(json.dumps(facts)), None)
    for words in ("chosen on val with new seeds, in %: trial 0 ", "spread (standard deviation in %): "):
        assert any(line.startswith(words) for line in lines), lines
    assert any("2 condensed sets, 2 students each" in line for line in lines)
    several = {"objectives": ["accuracy", "label_bytes"], "front": [{"trial": 3, "values": [0.5, 1234567]}]}
    assert remarks(several) == [
        "Pareto front of accuracy, label_bytes: 1 trials; the most accurate counts below",
        "    trial    3  50.00 %, label_bytes 1,234,567.0",
    ]
