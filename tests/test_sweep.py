"""Whole sweeps, each in a process and a Ray of its own: the study, the files, and what a second run finds."""

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray import tune
from ray.tune.search import Searcher

from edc_ray import cli, config, pipeline, space, spend, sweep, tuning
from edc_ray.artifacts import Store
from edc_ray.config import Budget, ConfigError, Experiment, Knob, Scheduler, Sweep
from edc_ray.journal import Folder, Remote, folder_of
from edc_ray.specs import load_file
from tests import tiny

CONDITIONAL = {
    "evaluate.lr": {"low": 1e-3, "high": 1e-2, "log": True},
    "recover.flatness.kind": {"choices": ["none", "sam"]},
    "recover.flatness.rho": {"low": 0.01, "high": 1, "log": True, "when": {"recover.flatness.kind": "sam"}},
}
ASHA = {"kind": "asha", "grace": 0.3, "reduction": 2}


def study(folder: Path) -> optuna.Study:
    return space.read_study(folder / "store/sweeps/tiny")


def states(folder: Path) -> dict[str, int]:
    """How many trials of each state."""
    names = [trial.state.name for trial in study(folder).trials]
    return {name: names.count(name) for name in set(names)}


def curves(folder: Path) -> dict[str, Any]:
    """The accuracies of every configuration that came to its end, by its knobs."""
    return {
        json.dumps(trial.params, sort_keys=True): (trial.value, trial.intermediate_values)
        for trial in study(folder).get_trials(states=(TrialState.COMPLETE,))
    }


def experiment_of(file: str, trial: FrozenTrial) -> Experiment:
    sweep, base = load_file(file)
    return space.apply(base, trial.params, sweep.search)


# --- a sweep, again, and further ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[str]]:
    """A file, its folder, and what the first run said."""
    folder = tmp_path_factory.mktemp("swept")
    file = tiny.sweep_file(folder, search=CONDITIONAL | {"inner": 2}, seed=2)
    return file, folder, tiny.sweep(file).splitlines()


@pytest.mark.ray
def test_a_sweep_finishes_its_budget_and_writes_its_files(swept: tuple[str, Path, list[str]]) -> None:
    file, folder, said = swept
    assert states(folder) == {"COMPLETE": 4}
    assert [line[:9] for line in said if line.startswith("trial ")] == [f"trial {i}/4" for i in range(1, 5)]
    results = folder / "store/sweeps/tiny"
    facts = json.loads((results / "final.json").read_text())
    assert facts["trials"] == {"complete": 4}
    rows = pq.read_table(results / "results.parquet").to_pylist()
    assert sum(row["arm"] == "search" for row in rows) == 4
    assert sum(row["split"] == "test" for row in rows) == 2 * len(facts["accuracies"])
    for picture in ("images.png", "curves.png"):
        assert (results / picture).read_bytes().startswith(b"\x89PNG")
    named = {path.name.partition("_")[0] for path in results.glob("tune/*/trial-*")}
    assert named == {"trial-0", "trial-1", "trial-2", "trial-3"}  # as in the study
    best, base = load_file(str(results / "best.yaml"))
    assert base == experiment_of(file, space.ranked(study(folder))[0]) and best.runtime.workers == 1
    assert cli.main(["plan", str(results / "best.yaml")]) == 0


@pytest.mark.ray
def test_an_inactive_knob_is_absent(swept: tuple[str, Path, list[str]]) -> None:
    trials = study(swept[1]).trials
    kinds = {trial.params["recover.flatness.kind"] for trial in trials}
    assert kinds == {"none", "sam"}
    for trial in trials:
        assert ("recover.flatness.rho" in trial.params) == (trial.params["recover.flatness.kind"] == "sam")


@pytest.mark.ray
def test_two_trials_each_share_their_images(swept: tuple[str, Path, list[str]]) -> None:
    made = [pipeline.tasks(experiment_of(swept[0], trial)) for trial in study(swept[1]).trials[:4]]
    first, same, second, other = [{task.stage: task.key for task in tasks} for tasks in made]
    for stage in ("init", "recover"):
        assert first[stage] == same[stage] and second[stage] == other[stage]
    assert len({names["recover"] for names in (first, second)}) == 2
    assert len({names["evaluate"] for names in (first, same, second, other)}) == 4


@pytest.mark.ray
def test_the_second_run_only_reads(
    swept: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    file, folder, first = swept
    final = (folder / "store/sweeps/tiny/final.json").read_text()
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("no Ray is needed"))
    assert cli.main(["sweep", file]) == 0
    second = capsys.readouterr().out.splitlines()
    assert second[0].startswith("sweep tiny: 0 of 4 trials")
    table = [line for line in first[first.index("") + 1 :] if not line.startswith("stage hits")]
    assert [line for line in second[2:] if not line.startswith("stage hits")] == table
    assert any(line.startswith("stage hits: 100 %") for line in second)
    assert (folder / "store/sweeps/tiny/final.json").read_text() == final


@pytest.mark.ray
def test_a_larger_budget_goes_on(swept: tuple[str, Path, list[str]]) -> None:
    """Last of those that share the folder."""
    file, folder, _ = swept
    before = curves(folder)
    said = tiny.sweep(file, "budget.trials=6").splitlines()
    assert said[0].startswith("sweep tiny: 2 of 6 trials")
    assert any(line.startswith("rank correlation of val accuracy") for line in said)
    assert states(folder) == {"COMPLETE": 6} and before.items() <= curves(folder).items()


@pytest.mark.slow
@pytest.mark.ray
def test_two_more_trials_of_a_finished_sweep(
    swept: tuple[str, Path, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    """After the larger budget: in this process, with a Ray of its own."""
    _, folder, _ = swept
    before, ended = curves(folder), states(folder)["COMPLETE"]
    assert cli.main(["extend", str(folder / "store/sweeps/tiny"), "--trials", "2"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith(f"sweep tiny: 2 of {ended + 2} trials")
    assert states(folder) == {"COMPLETE": ended + 2} and before.items() <= curves(folder).items()
    assert any(line.startswith("reads of a test split") for line in said)


# --- a new study, more trials -------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", "mock:///x"], ids=["local", "object store"])
def test_a_fresh_study_leaves_the_old_one_readable(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(root or str(tmp_path))
    ready = sweep.Prepared(
        Sweep(name="tiny", search=LR), tiny.experiment(), store, folder_of(store, "sweeps/tiny")
    )
    sweep.put_aside(ready)  # nothing is there
    assert capsys.readouterr().out == ""
    for times in (1, 2):
        store.put("sweeps/tiny/sweep.json", b"{}")
        made = space.open_study(ready.folder)
        made.tell(made.ask(), times / 10)
        sweep.put_aside(ready)
        assert f"sweeps/tiny-old{times}" in capsys.readouterr().out
        assert not space.has_study(ready.folder)
        assert not [info for info in store.listed("sweeps/tiny", deep=True) if info.is_file]
    for times in (1, 2):
        old = folder_of(store, f"sweeps/tiny-old{times}")
        assert [trial.value for trial in space.read_study(old).trials] == [times / 10]
        assert store.get(f"sweeps/tiny-old{times}/sweep.json") == b"{}"


def test_fresh_is_not_for_a_ladder_nor_for_a_sweep_that_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a ladder, which has no study"):
        sweep.start("sweeps/cifar10_cpu_ladder.yaml", [], fresh=True)
    store = Store(str(tmp_path))
    ready = sweep.Prepared(
        Sweep(name="tiny", search=LR), tiny.experiment(), store, folder_of(store, "sweeps/tiny")
    )
    with (
        store.alone("sweeps/tiny/driver.lock"),
        pytest.raises(ConfigError, match="another process is running"),
    ):
        sweep.put_aside(ready)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"objectives": ("accuracy", "label_bytes"), "scheduler": Scheduler(kind="asha")},
            "scheduler.kind = 'asha'",
        ),
        ({"objectives": ("label_bytes",)}, "objectives = ('label_bytes',): must begin with accuracy"),
        ({"objectives": ("accuracy", "accuracy")}, "objectives = "),
    ],
)
def test_objectives_that_cannot_be(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sweep(**fields)
    assert str(caught.value).startswith(error)


def test_a_sweep_of_one_objective_is_who_it_was(tmp_path: Path) -> None:
    """A folder of before there were several objectives goes on; one of others does not."""
    made, base = load_file(tiny.sweep_file(tmp_path))
    assert set(sweep.identity(made, base)) == {"dataset", "experiment", "search"}
    several = replace(made, objectives=("accuracy", "core_seconds"))
    store = Store(str(tmp_path / "store"))
    for ours, theirs in ((made, several), (several, made)):
        facts = {"identity": sweep.identity(theirs, base)}
        store.put("sweeps/tiny/sweep.json", json.dumps(facts).encode())
        with pytest.raises(ConfigError, match="differs in objectives"):
            sweep._check_same(store, ours, base)
        sweep._check_same(store, theirs, base)


def test_a_dry_run_is_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny.sweep_file(tmp_path)
    said = []
    for command in (["sweep", file, "--dry-run"], ["plan", file]):
        assert cli.main([*command, "--set", "budget.trials=7"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].startswith("sweep tiny: 7 trials over 1 knobs")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("changes", "trials", "error"),
    [
        ([], 0, "--trials = 0: must be >= 1"),
        (["search.evaluate.lr.low=0.1"], 1, "search.evaluate.lr.low = 0.1: is what the sweep is"),
        (["budget.trails=3"], 1, "budget.trails = 3: unknown; did you mean budget.trials"),
        (["budget.hours=0"], 1, "budget.hours = 0.0: is used up: no trial would start"),
    ],
)
def test_what_cannot_be_extended(changes: list[str], trials: int, error: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    search = {"evaluate.lr": {"low": 1e-3, "high": 1e-2, "log": True}}
    made, base = load_file(tiny.sweep_file(tmp_path, search=search))
    facts = {"identity": sweep.identity(made, base), "sweep": config.dump(made), "base": config.dump(base)}
    store.put("sweeps/tiny/sweep.json", json.dumps(facts).encode())
    asked = space.open_study(folder_of(store, "sweeps/tiny"))
    asked.tell(asked.ask(), 0.5)
    with pytest.raises(ConfigError) as caught:
        sweep.extend(str(tmp_path / "sweeps/tiny"), trials, changes)
    assert str(caught.value).startswith(error)


# --- grid, labels, explosions -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
def test_a_grid_repeats_exactly_and_an_explosion_ends_one_trial(tmp_path: Path) -> None:
    """Inline in one store, Ray Data's stream in the other."""
    said = {}
    for labels in ("inline", "stream"):
        (tmp_path / labels).mkdir()
        file = tiny.sweep_file(
            tmp_path / labels, sampler="grid", search={"evaluate.lr": {"choices": [3e-3, 1e-2, 1e30]}},
            budget={"trials": 3}, confirm={"seeds": 0}, runtime__labels=labels,
        )  # fmt: skip
        said[labels] = tiny.sweep(file)
        assert states(tmp_path / labels) == {"COMPLETE": 2, "FAIL": 1}
        (failed,) = [line for line in said[labels].splitlines() if "failed:" in line]
        assert "unit student" in failed and "not finite before step" in failed and "lr 1e+30" in failed
        assert "2 complete, 1 fail" in said[labels]
        assert not list((tmp_path / labels).rglob("error.txt"))  # else Tune has tried it again
    assert curves(tmp_path / "inline") == curves(tmp_path / "stream")
    pages = list((tmp_path / "stream/store").glob("relabel-*/page-*.parquet"))
    assert len(pages) == 3 and not list((tmp_path / "inline/store").glob("relabel-*"))


# --- several objectives, the best again, budgets in core-hours ----------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
def test_accuracy_against_costs_and_the_best_again(tmp_path: Path) -> None:
    """Then another sweep begins with its best, and ends when its core-hours are used up."""
    file = tiny.sweep_file(
        tmp_path, sampler="nsga2", objectives=["accuracy", "label_bytes", "core_seconds"],
        search={"evaluate.epochs": {"choices": [2, 12]}, "evaluate.lr": {"low": 1e-3, "high": 1e-2}},
        budget={"trials": 6}, confirm={"seeds": 2, "best": 2, "students": 2}, callbacks=["tensorboard"],
    )  # fmt: skip
    said = tiny.sweep(file).splitlines()
    made = study(tmp_path)
    assert states(tmp_path) == {"COMPLETE": 6} and len(made.directions) == 3
    store = Store(str(tmp_path / "store"))
    for trial in made.trials:
        cost = spend.of_trial(experiment_of(file, trial), store)
        assert trial.values[1:] == [cost.label_bytes, cost.core_seconds] and trial.values[1] > 0
        assert trial.intermediate_values[space.END] == trial.values[0]
    facts = json.loads((tmp_path / "store/sweeps/tiny/final.json").read_text())
    assert {point["trial"] for point in facts["front"]} == {trial.number for trial in made.best_trials}
    assert set(facts["again"]) == {str(trial.number) for trial in space.ranked(made)[:2]}
    assert len(facts["spread"]["accuracies"]) == 2 == len(facts["spread"]["accuracies"][0])
    assert any(line.startswith("Pareto front of accuracy, label_bytes, core_seconds: ") for line in said)
    assert any(line.startswith("the 2 best again on val") for line in said)
    assert list((tmp_path / "store/sweeps/tiny/tune").rglob("events.out.tfevents.*"))
    assert facts["confirmed_after"] == [6]

    (tmp_path / "next").mkdir()
    costs = [trial.values[2] for trial in made.trials]
    seconds = spend.Spend(*load_file(file), store).total(made).core_seconds
    shared = (sum(costs) - seconds) / (len(costs) - 1)  # all but the students: each trial has its own
    limit_hours = (shared + 2.5 * (median(costs) - shared)) / 3600
    later = tiny.sweep_file(
        tmp_path / "next", budget={"trials": 60, "core_hours": limit_hours}, confirm={"seeds": 0},
        warm_start={"folder": str(tmp_path / "store/sweeps/tiny"), "best": 2},
    )  # fmt: skip
    said = tiny.sweep(later).splitlines()
    assert any(line.startswith("warm start: 2 configurations of ") for line in said), said
    first = [trial.params["evaluate.lr"] for trial in study(tmp_path / "next").trials[:2]]
    assert first == [trial.params["evaluate.lr"] for trial in space.ranked(made)[:2]]
    (told,) = [line for line in said if line.startswith("budget.core_hours is used up: ")]
    found = re.search(r"used up: (\S+) of (\S+) core-hours", told)
    assert found, told
    used, limit = map(float, found.groups())
    ended = len(space.finished(study(tmp_path / "next")))
    assert used >= limit and 2 <= ended < 60, told


# --- ASHA ---------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_asha_stops_trials_and_their_students(tmp_path: Path) -> None:
    file = tiny.sweep_file(
        tmp_path, search={"evaluate.lr": {"low": 1e-5, "high": 1e-1, "log": True}}, budget={"trials": 8},
        scheduler=ASHA, confirm={"seeds": 0}, **{"experiment__evaluate.epochs": 40},
    )  # fmt: skip
    said, store = tiny.sweep(file), Store(str(tmp_path / "store"))
    counts = states(tmp_path)
    assert counts["PRUNED"] >= 1 and counts["COMPLETE"] >= 1 and sum(counts.values()) == 8
    assert f"{counts['COMPLETE']} complete, {counts['PRUNED']} pruned" in said
    for trial in study(tmp_path).trials:
        task = pipeline.tasks(experiment_of(file, trial))[-1]
        complete = trial.state == TrialState.COMPLETE
        assert pipeline.is_hit(task, store, tiny.runtime()) == complete, trial
        last = max(trial.intermediate_values)  # the rung that stopped it is on record too
        assert (300 <= last < space.END) != complete, trial


# --- Tune's view of the study, without Ray ------------------------------------------------------------------

LR = {"evaluate.lr": Knob(low=1e-3, high=1e-2, log=True)}


@pytest.fixture(params=["local", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A sweep's folder."""
    return tmp_path if request.param == "local" else Remote(Store("mock:///x"), "sweeps/tiny")


def searcher(folder: Folder) -> tuning.StudySearch:
    return tuning.make_search(Sweep(search=LR, sampler="random"), folder, space.open_study(folder))


def limited(sweep: Sweep, folder: Folder, made: optuna.Study) -> tuning.StudySearch:
    """With the budgets of the sweep, whose artifacts are in a store of its own."""
    limits = spend.Limits(sweep, spend.Spend(sweep, tiny.experiment(), Store("mock:///nothing")))
    return tuning.make_search(sweep, folder, made, limits=limits)


def told(progress: int, accuracy: float, **facts: int | str) -> dict[str, Any]:
    return {"progress": progress, space.METRIC: accuracy, **facts}


def test_the_study_hears_each_report_once(place: Folder) -> None:
    search = searcher(place)
    search.suggest("a")
    for result in (told(333, 0.1), told(667, 0.2), told(333, 0.9)):  # the last as from a second attempt
        search.on_trial_result("a", result)
    search.on_trial_complete("a", told(space.END, 0.3, hits=4, built=1))
    (trial,) = space.read_study(place).trials
    assert trial.intermediate_values == {333: 0.1, 667: 0.2, space.END: 0.3}
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 0.3, {"hits": 4, "built": 1})


@pytest.mark.parametrize(
    ("last", "error", "state"),
    [
        (told(667, 0.2), False, "PRUNED"),
        (None, False, "PRUNED"),
        (told(667, 0.2), True, "FAIL"),
        (told(667, 0.2, failed="why"), False, "FAIL"),
        (None, True, "FAIL"),
    ],
)
def test_a_trial_that_did_not_end_is_told_so(place: Folder, last: Any, error: bool, state: str) -> None:
    search = searcher(place)
    search.suggest("a")
    search.on_trial_result("a", told(333, 0.1))
    search.on_trial_complete("a", last, error)
    (trial,) = space.read_study(place).trials
    assert trial.state.name == state and trial.intermediate_values[333] == 0.1


def frozen(number: int, *accuracies: float) -> FrozenTrial:
    """A trial that reported at 333, 667 and 1000 per mille, as far as it came."""
    values = dict(zip((333, 667, space.END), accuracies, strict=False))
    trial = create_trial(value=accuracies[-1], intermediate_values=values)
    trial.number = number
    return trial


def test_a_resumed_asha_has_heard_of_the_earlier_trials() -> None:
    from types import SimpleNamespace

    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    cfg, stops = Scheduler(kind="asha", grace=0.3, reduction=2), [0.3, 0.6, 1.0]
    earlier = [frozen(i, 0.5 + i / 10, 0.6 + i / 10) for i in range(4)]

    def verdict(done: list[FrozenTrial]) -> str:
        scheduler = tuning.make_scheduler(cfg, stops, done)
        assert isinstance(scheduler, ASHAScheduler)
        new: Any = SimpleNamespace(trial_id="new")
        return str(scheduler._brackets[0].on_result(new, 333, 0.4))

    assert verdict([]) == TrialScheduler.CONTINUE and verdict(earlier) == TrialScheduler.STOP


def test_trials_of_a_dead_driver_are_told_and_asked_again(place: Folder) -> None:
    search = searcher(place)
    for name in ("a", "b", "c"):
        search.suggest(name)
    search.on_trial_complete("a", told(space.END, 0.3))
    for _ in range(2):  # the second driver dies before its first trial
        study = space.open_study(place)
        assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "FAIL", "WAITING", "WAITING"]
        assert len(space.finished(study)) == 1
    lost, again = study.trials[1:3], searcher(place)
    for name in ("d", "e"):
        again.suggest(name)
    assert [t.params for t in space.read_study(place).trials[3:]] == [t.params for t in lost]
    for name in ("d", "e"):
        again.on_trial_complete(name, told(space.END, 0.2))
    assert len(space.finished(space.open_study(place))) == 3


def test_a_trial_lost_without_its_fault_does_not_count_and_comes_again(place: Folder) -> None:
    search = searcher(place)
    search.suggest("a")
    search.on_trial_result("a", told(0, 0.0) | {"lost": True})
    search.on_trial_complete("a", None, error=True)
    search.suggest("b")
    search.on_trial_complete("b", told(0, 0.0) | {"failed": "its own fault"})
    told_all = space.read_study(place)
    lost, own = told_all.trials
    assert [trial.number for trial in space.finished(told_all)] == [own.number]
    for _ in range(2):  # the second time it is waiting already
        again = space.open_study(place)
        waiting = [t for t in again.trials if t.state == TrialState.WAITING]
        assert [t.system_attrs["fixed_params"] for t in waiting] == [lost.params]


def test_a_trial_whose_process_is_lost_too_often_comes_again(place: Folder) -> None:
    search = searcher(place)
    search.suggest("a")
    search.on_trial_complete("a", None, error=True)  # Tune has given it up, and it has said nothing
    assert not space.finished(space.open_study(place))
    assert [trial.state.name for trial in space.read_study(place).trials] == ["FAIL", "WAITING"]


def test_a_trial_that_no_other_can_better_ends_the_search(place: Folder) -> None:
    search = searcher(place)
    search.suggest("a")
    with pytest.raises(tuning.Hopeless, match="node x does not see the store") as caught:
        search.on_trial_result(
            "a", told(0, 0.0) | {"lost": True, "hopeless": "node x does not see the store"}
        )
    assert not space.finished(space.open_study(place))
    try:  # as Tune does it
        try:
            raise caught.value
        except tuning.Hopeless as error:
            raise tune.TuneError("Traceback ...") from error
    except tune.TuneError as error:
        assert tuning.own_error(error) is caught.value
    assert str(tuning.own_error(tune.TuneError("its own"))) == "its own"


def test_a_waiting_trial_that_is_lost_before_it_has_values_keeps_them(place: Folder) -> None:
    made = space.open_study(place)
    made.enqueue_trial({"evaluate.lr": 0.002})
    made.ask()  # the driver dies here
    again = space.open_study(place)
    assert again.ask().suggest_float("evaluate.lr", 1e-3, 1e-2, log=True) == 0.002


def test_no_trial_starts_after_the_hours_however_often_it_is_interrupted(place: Folder) -> None:
    made = space.open_study(place)
    made.tell(made.ask(), 0.5)
    hours = Sweep(search=LR, sampler="random", budget=Budget(hours=0.0))
    assert spend.deadline(hours, made) == made.trials[0].datetime_start
    assert limited(hours, place, made).suggest("b") == Searcher.FINISHED
    later = replace(hours, budget=Budget(hours=1.0))
    assert "evaluate.lr" in str(limited(later, place, made).suggest("c"))


def test_a_resumed_search_does_not_repeat_its_suggestions(place: Folder) -> None:
    first = searcher(place)
    said = [first.suggest(name) for name in "ab"]
    second = searcher(place)  # the driver died before any trial ended: the lost ones come first
    heard = [second.suggest(name) for name in "cdef"]
    assert heard[:2] == said and not any(later in said for later in heard[2:])
