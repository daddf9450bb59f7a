"""The search space: distributions of the fields' own types, conditions, and what the study is asked."""

import math
import pickle
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import spearmanr

from edc_ray import config, pipeline, space, specs
from edc_ray.config import Budget, ConfigError, Experiment, Knob, Sweep
from edc_ray.core.init import INITS
from edc_ray.core.matching import MATCHERS

BASE = Experiment()
FIELDS = config.paths(Experiment)
Search = dict[str, Knob]
optuna.logging.set_verbosity(optuna.logging.WARNING)


def ask(search: Search, sampler: optuna.samplers.BaseSampler | None = None, trials: int = 1) -> list[Any]:
    """Parameters of the first trials; each is told 0."""
    study = optuna.create_study(
        sampler=sampler or optuna.samplers.RandomSampler(seed=0), direction="maximize"
    )
    found, suggest = [], space.Space(search)
    for _ in range(trials):
        trial = study.ask()
        suggest(trial)
        found.append(trial.params)
        study.tell(trial, 0.0)
    return found


def value_of(experiment: Experiment, path: str) -> Any:
    """As a file would have it."""
    found = attrgetter(path)(experiment)
    return list(found) if isinstance(found, tuple) else found


# --- any legal space ----------------------------------------------------------------------------------------

SEARCHED = sorted(
    path
    for path in FIELDS
    if not path.startswith(("split.", "dataset.", "apply.", "diagnose."))
    and path not in ("seed", "init.seed", "evaluate.seeds")  # refused
    and path not in ("squeeze.observers", "squeeze.epochs", "init.factor")  # limit others, or are limited
    and all(attrgetter(parent)(BASE) in values for parent, values in space._waits_for(path).items())
)
TABLES: dict[str, list[Any]] = {
    "init.kind": list(INITS),
    "recover.matching.loss": list(MATCHERS),
    "recover.betas": [[0.5, 0.9], [0.9, 0.999]],
    "relabel.observers": [None, [BASE.squeeze.observers[0]], list(BASE.squeeze.observers[1:])],
}


@st.composite
def ranges(draw: st.DrawFn, path: str) -> Knob:
    """A range inside the field's own, whole numbers for an int."""
    field = FIELDS[path]
    bottom, top = field.metadata["low"], field.metadata["high"]
    top = bottom + 20 if top is None else top
    whole = field.type is int
    numbers = st.integers(int(bottom), int(top)) if whole else st.floats(bottom, top, allow_subnormal=False)
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    kind = draw(st.sampled_from(["plain", "log", "step"]))
    if kind == "log" and low > 0:
        return Knob(low=low, high=high, log=True)
    return Knob(low=low, high=high, step=1 if kind == "step" and whole else None)


@st.composite
def choices(draw: st.DrawFn, path: str) -> Knob:
    field = FIELDS[path]
    if get_origin(field.type) is Literal:
        every: list[Any] = list(get_args(field.type))
    else:
        every = TABLES.get(path) or ([False, True] if field.type is bool else [attrgetter(path)(BASE)])
    return Knob(choices=tuple(draw(st.lists(st.sampled_from(every), min_size=1, unique_by=str))))


@st.composite
def searches(draw: st.DrawFn) -> Search:
    """Up to eight knobs in any order; some wait for values of others."""
    found: Search = {}
    for path in draw(st.lists(st.sampled_from(SEARCHED), min_size=1, max_size=8, unique=True)):
        number = FIELDS[path].type in (int, float) and path not in TABLES
        knob = draw(ranges(path) if number else choices(path))
        parents = [other for other, there in found.items() if there.choices]
        when = {}
        for parent in draw(st.lists(st.sampled_from(parents), max_size=2, unique=True)) if parents else ():
            values = list(found[parent].choices or ())
            when[parent] = draw(st.lists(st.sampled_from(values), min_size=1, unique_by=str))
        found[path] = config.override(knob, {"when": when}) if when else knob
    return {path: found[path] for path in draw(st.permutations(list(found)))}


@given(search=searches(), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_every_suggestion_of_a_legal_space_is_an_experiment(search: Search, seed: int) -> None:
    space.check(search, BASE)
    (params,) = ask(search, optuna.samplers.RandomSampler(seed=seed))
    made = space.apply(BASE, params, search)
    for path, knob in search.items():
        wanted = all(
            parent in params and value_of(made, parent) in values for parent, values in knob.when.items()
        )
        assert (path in params) == wanted, f"{path} with {knob.when}"
        if not wanted:
            assert attrgetter(path)(made) == attrgetter(path)(BASE)
        elif knob.choices is not None:
            assert value_of(made, path) in knob.choices
        else:
            assert knob.low is not None and knob.high is not None
            assert knob.low <= attrgetter(path)(made) <= knob.high
            assert type(attrgetter(path)(made)) is FIELDS[path].type


def test_an_empty_knob_is_the_suggested_range_of_the_field() -> None:
    """A field that waits for another waits for it here, where that one is searched by choices."""
    asked = {
        "recover.lr": Knob(),
        "recover.flatness.rho": Knob(),
        "recover.flatness.weight": Knob(),
        "recover.flatness.kind": Knob(),
        "evaluate.zeta": Knob(low=1, high=2),
        "evaluate.temperature": Knob(when={"evaluate.loss": ["kl"]}),
        "evaluate.loss": Knob(choices=("mse", "kl")),
    }
    got = space.suggested(asked)
    kind, zeta, loss = "recover.flatness.kind", asked["evaluate.zeta"], asked["evaluate.loss"]
    assert got == {
        "recover.lr": Knob(low=0.005, high=0.25, log=True),
        "recover.flatness.rho": Knob(low=0.01, high=0.5, log=True, when={kind: ["sam"]}),
        "recover.flatness.weight": Knob(low=0.025, high=25, log=True, when={kind: ["logits", "statistics"]}),
        kind: Knob(choices=("none", "logits", "statistics", "sam")),
        "evaluate.zeta": zeta,
        "evaluate.temperature": Knob(low=1, high=20, when={"evaluate.loss": ["kl"]}),
        "evaluate.loss": loss,
    }
    space.check(got, BASE)


@pytest.mark.parametrize("path", [path for path, field in FIELDS.items() if field.metadata["search"]])
def test_a_suggested_range_can_be_searched(path: str) -> None:
    needed = {parent: values[0] for parent, values in space._waits_for(path).items()}
    base = config.override(BASE, needed)
    search = space.suggested({path: Knob()})
    space.check(search, base)
    (params,) = ask(search)
    assert space.apply(base, params, search) != base or len(search[path].choices or ()) > 1


def test_a_field_without_a_suggested_range_needs_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search.recover.jpeg_quality = {}: .* no suggested range"):
        space.suggested({"recover.jpeg_quality": Knob()})
    file = tmp_path / "sweep.yaml"
    file.write_text("search: {recover.lr: {}, init.crops: {low: 2, high: 3}}")
    loaded = specs.load_file(str(file))[0].search
    assert loaded == {"recover.lr": Knob(low=0.005, high=0.25, log=True), "init.crops": Knob(low=2, high=3)}


def test_a_knob_that_can_have_no_effect_is_refused() -> None:
    knob = {"evaluate.gamma": Knob(low=0.1, high=0.9)}
    with pytest.raises(ConfigError, match=r'search.evaluate.gamma = .* where evaluate.schedule = "cos"'):
        space.check(knob, BASE)
    space.check(knob, config.override(BASE, {"evaluate.schedule": "alrs"}))
    space.check(knob | {"evaluate.schedule": Knob(choices=("cos", "alrs"))}, BASE)


@given(search=searches())
@settings(max_examples=20)
def test_parents_come_first(search: Search) -> None:
    order = space.order(search)
    assert sorted(order) == sorted(search)
    for path, knob in search.items():
        assert all(order.index(parent) < order.index(path) for parent in knob.when)


@given(search=searches())
@settings(max_examples=10)
def test_a_space_goes_through_pickle(search: Search) -> None:
    there = pickle.loads(pickle.dumps(space.Space(search)))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    there(trial)
    assert [trial.params] == ask(search)


@pytest.mark.parametrize(
    "file",
    [f for f in sorted(Path(__file__).parents[1].glob("sweeps/*.yaml")) if not specs.is_ladder(str(f))],
    ids=lambda p: p.stem,
)
def test_the_files_have_legal_spaces(file: Path) -> None:
    found, base = specs.load_file(str(file))
    space.check(found.search, base)
    space.check_values(found.search, base, pipeline.check_names)
    for params in ask(found.search, trials=20):
        pipeline.check_names(space.apply(base, params, found.search))


# --- distributions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "knob", "want"),
    [
        ("recover.lr", Knob(low=0, high=1), FloatDistribution(0, 1)),
        ("recover.lr", Knob(low=0.1, high=1, log=True), FloatDistribution(0.1, 1, log=True)),
        ("recover.lr", Knob(low=0.1, high=0.9, step=0.2), FloatDistribution(0.1, 0.9, step=0.2)),
        ("recover.iterations", Knob(low=0, high=100), IntDistribution(0, 100)),
        ("recover.iterations", Knob(low=0, high=100, step=25), IntDistribution(0, 100, step=25)),
        ("recover.iterations", Knob(low=1, high=100, log=True), IntDistribution(1, 100, log=True)),
        ("recover.iterations", Knob(choices=(0, 50)), CategoricalDistribution([0, 50])),
        ("recover.flip", Knob(choices=(True, False)), CategoricalDistribution([True, False])),
        (
            "relabel.observers",
            Knob(choices=(None, ["a", "b"])),
            CategoricalDistribution([None, '["a", "b"]']),
        ),
    ],
)
def test_distribution_has_the_type_of_the_field(path: str, knob: Knob, want: BaseDistribution) -> None:
    assert space.distribution(path, knob) == want
    numbers = isinstance(want, FloatDistribution | IntDistribution)
    assert not numbers or isinstance(space.ends(knob)[0][1], int | float)


SETS: list[Any] = [["convnet_w32"], ["convnet_w32", "vgg5_w16"], ["vgg5_w16"]]


def test_lists_are_choices_that_come_back_and_can_be_waited_for(tmp_path: Path) -> None:
    """Through the journal: Optuna's categories are scalars, so a list is a JSON text on the way."""
    waiting = Knob(low=0.01, high=0.1, when={"squeeze.observers": [SETS[1]]})
    search = {"recover.lr": waiting, "squeeze.observers": Knob(choices=tuple(SETS))}
    space.check(search, BASE)
    study = space.open_study(tmp_path)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    for _ in range(12):
        trial = study.ask()
        space.Space(search)(trial)
        study.tell(trial, 0.5)
    seen = [space.apply(BASE, trial.params, search) for trial in space.read_study(tmp_path).trials]
    assert {made.squeeze.observers for made in seen} == {tuple(names) for names in SETS}
    for made in seen:
        assert (made.recover.lr != BASE.recover.lr) == (list(made.squeeze.observers) == SETS[1])


def test_active_needs_every_parent() -> None:
    knob = Knob(low=0, high=1, when={"a": "x", "b": [1, 2]})
    assert space.active(knob, {"a": "x", "b": 2})
    assert not space.active(knob, {"a": "x"}) and not space.active(knob, {"a": "y", "b": 2})
    assert not space.active(knob, {"a": "x", "b": 3}) and space.active(Knob(), {})


# --- samplers -----------------------------------------------------------------------------------------------

SEARCH = {
    "recover.lr": Knob(low=0.01, high=0.1, log=True),
    "recover.flatness.kind": Knob(choices=("none", "sam")),
    "recover.flatness.rho": Knob(low=0.1, high=1, when={"recover.flatness.kind": "sam"}),
}


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_suggestions_follow_from_the_seed_and_the_trials_so_far(kind: str) -> None:
    made = config.load(Sweep, {"sampler": kind, "seed": 3}) and config.override(
        Sweep(), {"sampler": kind, "seed": 3}
    )

    def suggested(seed: int, done: int) -> list[Any]:
        return ask(SEARCH, space.sampler(config.override(made, {"seed": seed}), done), trials=10)

    assert suggested(3, 0) == suggested(3, 0)
    assert suggested(3, 0) != suggested(3, 5) != suggested(4, 5)


GRID = {
    "recover.iterations": Knob(choices=(0, 10, 20)),
    "relabel.observers": Knob(choices=(None, ["vgg5_w16"])),
}


def test_a_grid_visits_each_point_once_and_ends_quietly() -> None:
    grid = Sweep(search=GRID, sampler="grid", budget=Budget(trials=6))
    space.check_grid(grid)
    first, second = (ask(GRID, space.sampler(grid, done), trials=6) for done in (0, 4))
    points = {(params["recover.iterations"], params["relabel.observers"]) for params in first}
    assert points == {(n, names) for n in (0, 10, 20) for names in (None, '["vgg5_w16"]')}
    assert first == second  # the order is the sweep's, so that a resumed grid has no gap


def test_a_grid_is_not_larger_than_its_points() -> None:
    with pytest.raises(ConfigError, match=r"budget.trials = 7: must be <= 6"):
        space.check_grid(Sweep(search=GRID, sampler="grid", budget=Budget(trials=7)))
    with pytest.raises(ConfigError, match=r"search.recover.lr = .*needs choices"):
        space.check_grid(Sweep(search=SEARCH, sampler="grid", budget=Budget(trials=1)))


# --- the study ----------------------------------------------------------------------------------------------


def trial(
    value: float | None,
    curve: Mapping[int, float] | None = None,
    state: TrialState = TrialState.COMPLETE,
    lost: bool = False,
) -> FrozenTrial:
    attrs = {"edc:lost": True} if lost else {}
    return create_trial(value=value, state=state, intermediate_values=dict(curve or {}), system_attrs=attrs)


def test_ranked_and_finished() -> None:
    study = optuna.create_study(direction="maximize")
    states = (TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING)
    study.add_trials([trial(0.5), trial(0.7), trial(0.0), trial(0.7)])
    study.add_trials([trial(None, state=state) for state in states])
    study.add_trial(trial(None, state=TrialState.FAIL, lost=True))
    assert [t.number for t in space.ranked(study)] == [1, 3, 0, 2]
    assert [t.number for t in space.finished(study)] == [0, 1, 2, 3, 4, 5]


def test_a_trial_that_was_running_is_asked_again_once(tmp_path: Path) -> None:
    study = space.open_study(tmp_path)
    done, lost = study.ask(), study.ask()
    for each in (done, lost):
        space.Space(SEARCH)(each)
    study.tell(done, 0.5)
    for _ in range(2):  # the driver dies twice
        study = space.open_study(tmp_path)
        states = [t.state for t in study.trials]
        assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert [t.number for t in space.finished(study)] == [0]
    again = study.ask()
    space.Space(SEARCH)(again)
    assert again.params == lost.params


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no study: no trial"):
        space.read_study(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "study.journal").touch()  # as Optuna does before it makes the study
    with pytest.raises(ConfigError, match=r"has no study: no trial"):
        space.read_study(tmp_path)


def test_rung_correlation_is_spearmans_over_complete_trials() -> None:
    finals, early, late = [0.1, 0.4, 0.3, 0.9, 0.5], [0.1, 0.2, 0.3, 0.2, 0.0], [0.2, 0.3, 0.1, 0.8, 0.6]
    complete = [trial(f, {200: a, 700: b, 1000: f}) for f, a, b in zip(finals, early, late, strict=True)]
    others = [
        trial(None, {200: 0.9}, TrialState.PRUNED),
        trial(None, {}, TrialState.FAIL),
        trial(0.2, {700: 0.2}),
    ]
    found = space.rung_correlation([*others, *complete])
    assert list(found) == [200, 700]  # the end is no rung
    assert found[200] == pytest.approx((spearmanr(early, finals).statistic, 5))
    assert found[700] == pytest.approx((spearmanr([0.2, *late], [0.2, *finals]).statistic, 6))


@pytest.mark.parametrize("early", [[0.1, 0.2, 0.3], [0.5] * 6], ids=["too few", "no difference"])
def test_no_rung_correlation(early: list[float]) -> None:
    assert space.rung_correlation([trial(0.1 * i, {500: at}) for i, at in enumerate(early)]) == {}


def test_brief() -> None:
    assert [space.brief(v) for v in (0.0123456, 3, "cos", True, math.pi)] == [
        "0.0123",
        "3",
        "cos",
        "True",
        "3.14",
    ]
