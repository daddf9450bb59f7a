"""`search.inner`: which knobs make a synthesis, which one the next trial gets, what sharing should save."""

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from edc_ray import config, pipeline, reuse, space, specs, tuning
from edc_ray.config import Budget, ConfigError, Experiment, Knob, Sweep
from tests.test_space import Search, searches

BASE = Experiment()
DESIGN_SPACE = str(Path(__file__).parents[1] / "sweeps/design_space.yaml")
SEARCH = {
    "recover.lr": Knob(low=0.01, high=0.1, log=True),
    "recover.flatness.kind": Knob(choices=("none", "sam")),
    "recover.flatness.rho": Knob(low=0.1, high=1, when={"recover.flatness.kind": "sam"}),
    "evaluate.lr": Knob(low=1e-3, high=1e-2, log=True),
    "evaluate.loss": Knob(choices=("mse", "kl")),
    "evaluate.temperature": Knob(low=1, high=20, when={"evaluate.loss": "kl"}),
}
OUTER = {path for path in SEARCH if path.startswith("recover.")}
Params = dict[str, Any]


def ask(study: optuna.Study, inner: int, search: Search = SEARCH) -> optuna.Trial:
    """The next trial, as StudySearch asks for it; it runs."""
    reuse.keep(study, reuse.outer(search, BASE), inner)
    trial = study.ask()
    space.Space(search)(trial)
    return trial


def part(params: Params, outer: bool) -> tuple[tuple[str, Any], ...]:
    """The knobs of the synthesis, or the others."""
    return tuple(sorted((path, value) for path, value in params.items() if (path in OUTER) == outer))


def keys(params: Params, search: Search = SEARCH) -> dict[str, str]:
    """Stage -> name of its artifact."""
    return {task.stage: task.key for task in pipeline.tasks(space.apply(BASE, params, search))}


def sizes(study: optuna.Study) -> list[int]:
    """Trials of each synthesis, the oldest first; lost ones are not counted."""
    trials = [trial for trial in study.trials if not space.lost(trial)]
    return list(Counter(part(space.wanted(trial), True) for trial in trials).values())


def fresh(kind: str = "random") -> optuna.Study:
    sampler = space.sampler(config.override(Sweep(), {"sampler": kind, "concurrent": 1}), 0)
    return optuna.create_study(sampler=sampler, direction="maximize")


# --- which knobs --------------------------------------------------------------------------------------------


def test_the_synthesis_of_the_design_space_is_what_starts_and_moves_the_images() -> None:
    sweep, base = specs.load_file(DESIGN_SPACE)
    kept = reuse.outer(sweep.search, base)
    assert kept == {path for path in sweep.search if path.startswith(("init.", "recover."))}
    assert sweep.inner == 4 and reuse.expected(sweep, base) == {
        "ingest": 1, "squeeze": 1, "statistics": 1, "init": 25, "recover": 25,
        "relabel": 100, "evaluate": 100,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "choices", "base"),
    [
        ("precision", ("fp32", "tf32"), {}),
        ("squeeze.epochs", (2, 3), {}),
        ("squeeze.epochs", (2, 3), {"recover.iterations": 0}),  # the labels need it, the images do not
        ("statistics.patch", (2, 4), {}),
        ("quirks.verifier_updates", (False, True), {}),
    ],
)
def test_any_stage_up_to_recover_belongs_to_the_synthesis(
    path: str, choices: tuple[Any, ...], base: Params
) -> None:
    search = {path: Knob(choices=choices), "evaluate.lr": SEARCH["evaluate.lr"]}
    assert reuse.outer(search, config.override(BASE, base)) == {path}


def test_what_a_stage_reads_is_asked_of_every_value() -> None:
    """Without iterations recover does not read its learning rate, but here some trials iterate."""
    search = {"recover.iterations": Knob(choices=(0, 50)), "recover.lr": SEARCH["recover.lr"]}
    assert reuse.outer(search, config.override(BASE, {"recover.iterations": 0})) == search.keys()


def test_what_the_synthesis_waits_for_belongs_to_it() -> None:
    waits = SEARCH | {"recover.lr": Knob(low=0.01, high=0.1, when={"evaluate.loss": "kl"})}
    assert reuse.outer(waits, BASE) == OUTER | {"evaluate.loss"}


@pytest.mark.slow
@given(search=searches(), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_trials_with_the_same_outer_knobs_share_the_images(search: Search, seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    first, second = (ask(study, 2, search) for _ in range(2))
    kept = reuse.outer(search, BASE)
    assert {path for path in first.params if path in kept} == {path for path in second.params if path in kept}
    assert keys(first.params, search)["recover"] == keys(second.params, search)["recover"]


# --- which synthesis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False], ids=["one at a time", "all at once"])
@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_synthesis_is_kept_for_n_trials(kind: str, told: bool) -> None:
    study = fresh(kind)
    trials = []
    for i in range(16):
        trials.append(ask(study, 4))
        if told:
            study.tell(trials[-1], 0.1 * (i % 7))
    runs = [trials[first : first + 4] for first in range(0, 16, 4)]
    for run in runs:
        assert len({part(trial.params, True) for trial in run}) == 1
        assert len({part(trial.params, False) for trial in run}) == 4
    assert sizes(study) == [4, 4, 4, 4]
    made = [keys(trial.params) for trial in trials]
    assert len({names["recover"] for names in made}) == 4 and len({names["evaluate"] for names in made}) == 16


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_of_one_trial_each_nothing_is_kept(kind: str) -> None:
    study, plain = fresh(kind), fresh(kind)
    for each in (study, plain):
        for i in range(8):
            trial = ask(each, 1) if each is study else each.ask()
            space.Space(SEARCH)(trial)
            each.tell(trial, 0.1 * i)
    assert [trial.params for trial in study.trials] == [trial.params for trial in plain.trials]


def test_a_resumed_sweep_goes_on_with_the_synthesis_that_is_not_full(tmp_path: Path) -> None:
    first = space.open_study(tmp_path)
    trials = [ask(first, 4) for _ in range(6)]
    for trial in trials[:5]:
        first.tell(trial, 0.5)
    first.enqueue_trial(dict(part(trials[5].params, True)))
    first.ask()  # the driver dies here: one trial runs, of another only the synthesis is drawn
    again = space.open_study(tmp_path)
    assert sizes(again) == [4, 2]  # the one that ran waits; the other has no values to repeat
    assert ask(again, 4).params == trials[5].params
    more = [ask(again, 4) for _ in range(3)]
    assert sizes(again) == [4, 4, 1]
    assert len({part(trial.params, False) for trial in (*trials[4:], *more[:2])}) == 4


def test_a_larger_inner_first_fills_what_is_there_and_a_smaller_one_begins_anew() -> None:
    study = fresh()
    for inner, want in ((1, [1, 1]), (2, [2, 2]), (1, [2, 2, 1, 1])):
        for _ in range(2):
            study.tell(ask(study, inner), 0.5)
        assert sizes(study) == want


# the states of the trials of a synthesis, whether the next trial gets it too
FATES = {
    "only running": (["RUNNING"], True),
    "one ended well": (["FAIL", "COMPLETE"], True),
    "stopped early": (["PRUNED"], True),
    "all failed": (["FAIL", "FAIL"], False),
    "failed and still running": (["FAIL", "RUNNING"], False),
    "lost": (["LOST", "LOST", "LOST", "COMPLETE"], True),
    "failed and lost": (["FAIL", "LOST"], False),
}


@pytest.mark.parametrize("fate", FATES)
def test_a_synthesis_whose_trials_fail_is_not_tried_n_times(fate: str) -> None:
    states, kept = FATES[fate]
    study = fresh()
    trials = [ask(study, 4)]
    trials += [_same(study, trials[0]) for _ in states[1:]]
    for trial, state in zip(trials, states, strict=True):
        if state == "LOST":
            space.mark_lost(study, trial)
        if state != "RUNNING":
            good = state == "COMPLETE"
            known = TrialState.FAIL if state == "LOST" else TrialState[state]
            study.tell(trial, 0.5 if good else None, state=known)
    assert (part(ask(study, 4).params, True) == part(trials[0].params, True)) == kept


def _same(study: optuna.Study, other: optuna.Trial) -> optuna.Trial:
    """Another trial of the same synthesis."""
    study.enqueue_trial(dict(part(other.params, True)))
    trial = study.ask()
    space.Space(SEARCH)(trial)
    return trial


def test_tunes_searcher_keeps_them_also_after_a_restart(tmp_path: Path) -> None:
    sweep = Sweep(search=SEARCH, sampler="random", inner=3)
    for names in ("ab", "cdef"):  # the second finds two lost trials, which it tries again
        search = tuning.make_search(sweep, tmp_path, space.open_study(tmp_path), reuse.outer(SEARCH, BASE))
        said = {name: search.suggest(name) for name in names}
    assert search.suggest("c") == said["c"]  # the same trial again asks for nothing
    assert sizes(space.read_study(tmp_path)) == [3, 1]


# --- the file -----------------------------------------------------------------------------------------------


def test_inner_stands_in_search_and_is_no_knob(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("search: {inner: 4, recover.lr: {}, evaluate.lr: {}}")
    sweep, _ = specs.load_file(str(file))
    assert sweep.inner == 4 and list(sweep.search) == ["recover.lr", "evaluate.lr"]
    assert specs.load_file(str(file), ["search.inner=2"])[0] == config.override(sweep, {"inner": 2})
    other = specs.load_file(str(file), ["search={inner: 3, evaluate.lr: {}}"])[0]
    assert other.inner == 3 and list(other.search) == ["evaluate.lr"]
    assert config.load(Sweep, config.dump(sweep)) == sweep  # as sweep.json holds it
    file.write_text("search: {recover.lr: {}}")
    assert specs.load_file(str(file))[0].inner == 1


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        reuse.check(config.override(Sweep(search=SEARCH, inner=2), changes), BASE)
    return str(refused.value)


def test_inner_is_refused_where_it_has_no_effect() -> None:
    reuse.check(Sweep(search=SEARCH, inner=2), BASE)
    assert refusal(sampler="grid").startswith("search.inner = 2: must be 1 with sampler grid")
    plain = {path: config.dump(knob) for path, knob in SEARCH.items()}
    images = {path: knob for path, knob in plain.items() if path in OUTER}
    assert "no knob is left to differ" in refusal(search=images)
    assert "all trials share them anyway" in refusal(search={"evaluate.lr": plain["evaluate.lr"]})


# --- what is expected ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trials", "inner"), [(10, 4), (8, 4), (5, 1), (3, 8)])
def test_expected_is_what_the_trials_make(trials: int, inner: int) -> None:
    sweep = Sweep(search=SEARCH, inner=inner, budget=Budget(trials=trials))
    study = fresh()
    made = [keys(ask(study, inner).params) for _ in range(trials)]
    want = {stage: len({names[stage] for names in made}) for stage in made[0]}
    assert reuse.expected(sweep, BASE) == want


def test_no_more_is_expected_than_there_are_choices() -> None:
    search = {"recover.iterations": Knob(choices=(10, 20)), "evaluate.lr": SEARCH["evaluate.lr"]}
    found = reuse.expected(Sweep(search=search), BASE)
    assert (found["init"], found["recover"], found["evaluate"]) == (1, 2, 16)
