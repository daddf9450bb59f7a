"""The search space and the study: YAML knobs as Optuna distributions. Knows no Ray, so bad input ends early.

The Optuna study, a journal in the sweep's folder, is the only truth of a sweep (architecture.md 6).
"""

import json
import math
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any, get_args

import optuna
import scipy  # loads scipy.stats, which takes a second, when it is asked for
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from edc_ray import config
from edc_ray.config import ConfigError, Experiment, Knob, Sweep
from edc_ray.journal import FileJournal, Folder, Remote, StoreJournal

STUDY = "sweep"
METRIC = "accuracy"  # on val, as a fraction; higher is better
END = 1000  # progress, in per mille of the student's training, of a trial that was not stopped


# --- the space ----------------------------------------------------------------------------------------------


def suggested(search: Mapping[str, Knob]) -> dict[str, Knob]:
    """The space with every empty knob, `{}`, made the field's suggested range.

    It waits for the fields without whose value this one has no effect, where they are searched by choices.

    Raises:
        ConfigError: the field has no suggested range.
    """
    fields, found = config.paths(Experiment), dict(search)
    empty = [path for path, knob in search.items() if path in fields and knob == Knob(when=knob.when)]
    for path in empty:
        if (wanted := fields[path].metadata["search"]) is None:
            legal = "needs choices, or low and high: the field has no suggested range"
            raise ConfigError(f"search.{path}", _plain(search[path]), legal)
        found[path] = config.override(search[path], wanted)
    for path in empty:
        when = dict(found[path].when)
        for parent, values in _waits_for(path).items():
            choices = found[parent].choices if parent in found else None
            when |= {parent: [c for c in choices if c in values]} if choices and parent not in when else {}
        found[path] = config.override(found[path], {"when": when})
    return found


def _waits_for(path: str) -> dict[str, tuple[Any, ...]]:
    """Fields without whose value this one has no effect, with the values that give it one."""
    section = path.rpartition(".")[0]
    when = config.paths(Experiment)[path].metadata["when"]
    return {
        config.join(section, name): wanted if isinstance(wanted, tuple) else (wanted,)
        for name, wanted in when.items()
    }


def searchable(path: str) -> bool:
    """Not what says which images, or which draw: that would change what is compared."""
    return path.partition(".")[0] not in ("split", "dataset", "apply", "diagnose") and "seed" not in path


def check(search: Mapping[str, Knob], base: Experiment) -> None:
    """Every knob is a field that has an effect, every value in its range legal there, every `when` names a
    choice of another knob.

    Raises:
        ConfigError: with the path below `search`.
    """
    if not search:
        raise ConfigError(
            "search", {}, "needs at least one knob: a config path with low and high, or choices"
        )
    fields = config.paths(Experiment)
    for path, knob in search.items():
        if path not in fields:
            raise config.unknown(f"search.{path}", _plain(knob), fields, name=path)
        if not searchable(path):
            raise ConfigError(
                f"search.{path}", _plain(knob), "cannot be searched: it would change what is compared"
            )
        distribution(path, knob)
        _check_when(path, knob, search)
        for parent, wanted in _waits_for(path).items():
            if parent not in search and (value := attrgetter(parent)(base)) not in wanted:
                legal = f"has no effect where {parent} = {json.dumps(value)}"
                raise ConfigError(f"search.{path}", _plain(knob), legal)
    order(search)
    check_values(search, base, lambda changed: None)


def check_values(search: Mapping[str, Knob], base: Experiment, verify: Callable[[Experiment], None]) -> None:
    """Every choice and every end of a range, one at a time, makes an experiment that `verify` accepts.

    Raises:
        ConfigError: with the path below `search`.
    """
    for path, knob in search.items():
        for name, value in ends(knob):
            try:
                verify(config.override(base, {path: value}))
            except ConfigError as error:
                where, inside = f"search.{path}.{name}", error.path.removeprefix(path)
                if error.path == path or (error.path.startswith(path) and inside.startswith(".")):
                    raise ConfigError(where + inside, error.value, error.legal) from None
                raise ConfigError(where, value, f"{error.path} {error.legal}") from None


def check_grid(sweep: Sweep) -> None:
    """A grid has points, and each is computed once.

    Raises:
        ConfigError: a knob that is a range, or a budget larger than the grid.
    """
    for path, knob in sweep.search.items():
        if knob.choices is None:
            raise ConfigError(f"search.{path}", _plain(knob), "needs choices: sampler grid takes no range")
    points = math.prod(len(knob.choices or ()) for knob in sweep.search.values())
    if sweep.budget.trials > points:
        raise ConfigError(
            "budget.trials", sweep.budget.trials, f"must be <= {points}, the points of the grid"
        )


def _plain(knob: Knob) -> dict[str, Any]:
    return {k: v for k, v in config.dump(knob).items() if v is not None and v is not False and v != {}}


def ends(knob: Knob) -> list[tuple[str, Any]]:
    """(name below the knob, value): its choices, or the two ends of its range."""
    if knob.choices is not None:
        return [(f"choices.{i}", choice) for i, choice in enumerate(knob.choices)]
    return [("low", _number(knob.low, knob)), ("high", _number(knob.high, knob))]


def _number(value: float | None, knob: Knob) -> float | int | None:
    """An end of a range as the field wants it: whole numbers stay integers."""
    return int(value) if value is not None and _whole(knob) else value


def _whole(knob: Knob) -> bool:
    return all(isinstance(v, int) or (v is not None and float(v).is_integer()) for v in (knob.low, knob.high))


def _check_when(path: str, knob: Knob, search: Mapping[str, Knob]) -> None:
    for parent, value in knob.when.items():
        if parent not in search:
            raise config.unknown(f"search.{path}.when", parent, search)
        choices = search[parent].choices
        wanted = value if isinstance(value, list) else [value]
        if choices is None or not wanted or not all(v in choices for v in wanted):
            legal = f"must be among the choices of {parent}: {list(choices) if choices else 'it has none'}"
            raise ConfigError(f"search.{path}.when.{parent}", value, legal)


def distribution(path: str, knob: Knob) -> BaseDistribution:
    """The Optuna distribution of one knob, of the field's own type.

    Raises:
        ConfigError: neither a range nor choices, an empty one, or a range for a field that is no number.
    """
    where, given = f"search.{path}", _plain(knob)
    if (knob.choices is None) == (knob.low is None and knob.high is None):
        raise ConfigError(where, given, "needs either choices, or low and high")
    if knob.choices is not None:
        if not knob.choices or len({code(c) for c in knob.choices}) < len(knob.choices):
            raise ConfigError(f"{where}.choices", list(knob.choices), "needs at least one value, each once")
        if knob.log or knob.step is not None:
            raise ConfigError(where, given, "choices take neither log nor step")
        return CategoricalDistribution([code(choice) for choice in knob.choices])
    kind = _number_of(config.paths(Experiment)[path].type)
    if kind is None:
        raise ConfigError(where, given, "needs choices: the field is no number")
    if knob.low is None or knob.high is None or not knob.low < knob.high:
        raise ConfigError(where, given, "needs low < high")
    if knob.log and knob.low <= 0:
        raise ConfigError(f"{where}.low", knob.low, "must be > 0, as log is true")
    if knob.step is not None:
        _check_step(f"{where}.step", knob.step, Decimal(str(knob.high)) - Decimal(str(knob.low)), knob.log)
    if kind is float:
        return FloatDistribution(knob.low, knob.high, log=knob.log, step=knob.step)
    if not _whole(knob) or (knob.step is not None and not float(knob.step).is_integer()):
        raise ConfigError(where, given, "needs whole numbers")
    return IntDistribution(int(knob.low), int(knob.high), log=knob.log, step=int(knob.step or 1))


def _number_of(kind: Any) -> type | None:
    """int or float, also of a field that may be null."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((number for number in (int, float) if number in kinds), None)


def _check_step(where: str, step: float, width: Decimal, log: bool) -> None:
    """Optuna would shrink a range that the step does not divide, in decimals."""
    if log:
        raise ConfigError(where, step, "must be absent, as log is true")
    if not 0 < step <= width or width % Decimal(str(step)):
        raise ConfigError(where, step, f"must be > 0 and divide high - low = {width:g}")


def code(choice: Any) -> Any:
    """Lists and mappings as JSON text, since Optuna's categories are scalars."""
    return json.dumps(choice) if isinstance(choice, list | tuple | dict) else choice


def _decode(value: Any, knob: Knob) -> Any:
    """The choice, as the file has it, that Optuna knows by `value`."""
    return next((choice for choice in knob.choices or () if code(choice) == value), value)


def order(search: Mapping[str, Knob]) -> list[str]:
    """Paths with every knob after those that its `when` names.

    Raises:
        ConfigError: knobs that wait for each other.
    """
    placed: list[str] = []
    while len(placed) < len(search):
        ready = [p for p, knob in search.items() if p not in placed and set(knob.when) <= set(placed)]
        if not ready:
            stuck = next(p for p in search if p not in placed)
            raise ConfigError(
                f"search.{stuck}.when", search[stuck].when, "knobs wait for each other in a circle"
            )
        placed += ready
    return placed


def active(knob: Knob, chosen: Mapping[str, Any]) -> bool:
    """Whether the knob's `when` holds for the values chosen so far."""
    return all(
        parent in chosen and chosen[parent] in (value if isinstance(value, list) else [value])
        for parent, value in knob.when.items()
    )


class Space:
    """The define-by-run space that OptunaSearch calls; picklable, since Tune saves its searcher."""

    def __init__(self, search: Mapping[str, Knob]) -> None:
        self.knobs = {path: search[path] for path in order(search)}

    def __call__(self, trial: optuna.Trial) -> None:
        chosen: dict[str, Any] = {}
        for path, knob in self.knobs.items():
            if active(knob, chosen):
                chosen[path] = _decode(_suggest(trial, path, distribution(path, knob)), knob)


def _suggest(trial: optuna.Trial, path: str, wanted: BaseDistribution) -> Any:
    if isinstance(wanted, CategoricalDistribution):
        return trial.suggest_categorical(path, wanted.choices)
    if isinstance(wanted, IntDistribution):
        return trial.suggest_int(path, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
    assert isinstance(wanted, FloatDistribution)
    return trial.suggest_float(path, wanted.low, wanted.high, step=wanted.step, log=wanted.log)


def apply(base: Experiment, chosen: Mapping[str, Any], search: Mapping[str, Knob]) -> Experiment:
    """The experiment of one trial."""
    return config.override(base, {path: _decode(value, search[path]) for path, value in chosen.items()})


# --- the study ----------------------------------------------------------------------------------------------


class Grid(GridSampler):
    """Optuna's, without the Study.stop at its last point, which raises unless Study.optimize runs."""

    def after_trial(self, *told: Any) -> None:
        pass


def sampler(sweep: Sweep, asked: int) -> BaseSampler:
    """Seeded from (seed, trials ever asked for), so that a resumed sweep does not repeat its suggestions."""
    seed = config.digest([sweep.seed, asked])
    number = int(seed[:8], 16)
    if sweep.sampler == "random":
        return RandomSampler(seed=number)
    if sweep.sampler == "grid":
        values = {path: list(knob.choices or ()) for path, knob in sweep.search.items()}
        return Grid({path: [code(v) for v in options] for path, options in values.items()}, seed=sweep.seed)
    if sweep.sampler == "nsga2":  # a generation must be over long before the budget is
        return NSGAIISampler(population_size=min(50, max(4, sweep.budget.trials // 4)), seed=number)
    # `group` is experimental, and what conditional knobs need.
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        return TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=max(6, 2 * sweep.concurrent),
            seed=number,
        )


def storage(folder: Folder) -> JournalStorage:
    if isinstance(folder, Remote):
        return JournalStorage(StoreJournal(folder))
    return JournalStorage(FileJournal(str(folder / "study.journal")))


def has_study(folder: Folder) -> bool:
    """Not before a sweep's first trial. Optuna makes an empty file before the study."""
    if isinstance(folder, Remote):
        return folder.exists()
    journal = folder / "study.journal"
    return journal.is_file() and journal.stat().st_size > 0


def read_study(folder: Folder) -> optuna.Study:
    """The study as it is; nothing is repaired.

    Raises:
        ConfigError: there is none.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not has_study(folder):
        raise ConfigError("folder", str(folder), "has no study: no trial was ever started")
    return optuna.load_study(storage=storage(folder), study_name=STUDY)


def open_study(folder: Folder, objectives: Sequence[str] = (METRIC,)) -> optuna.Study:
    """The sweep's study, made if it is not there. A trial that a dead driver left running is told FAIL; the
    parameters of all such lost trials are enqueued, unless a trial has them again.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ways = [StudyDirection.MAXIMIZE, *(StudyDirection.MINIMIZE for _ in objectives[1:])]
    study = optuna.create_study(
        storage=storage(folder), study_name=STUDY, directions=ways, load_if_exists=True
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        mark_lost(study, trial)
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    kept = [wanted(trial) for trial in trials if not lost(trial)]
    for trial in filter(lost, trials):
        if (params := wanted(trial)) and not any(params.items() <= other.items() for other in kept):
            study.enqueue_trial(params)
            kept.append(params)
    return study


def mark_lost(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> None:
    """Before a trial ends: if it fails, then not by its own fault. It does not count, and is tried again."""
    study._storage.set_trial_system_attr(trial._trial_id, "edc:lost", True)


def lost(trial: FrozenTrial) -> bool:
    """Whether it failed by no fault of its own."""
    return trial.state == TrialState.FAIL and bool(trial.system_attrs.get("edc:lost"))


def wanted(trial: FrozenTrial) -> dict[str, Any]:
    """What it has, or was to have."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count against the budget: all that ended, but those lost without a fault of their own."""
    ended = (trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    return [trial for trial in ended if not lost(trial)]


def accuracy(trial: FrozenTrial) -> float:
    """Of a complete trial; with several objectives it is the first."""
    return float(trial.values[0])


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, the most accurate first; of equals the cheaper, then the earlier."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda t: (-accuracy(t), t.values[1:], t.number))


def brief(value: Any) -> str:
    """A knob's value for a person."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def rung_correlation(trials: Sequence[FrozenTrial]) -> dict[int, tuple[float, int]]:
    """progress -> (Spearman correlation of the accuracy there with the final one, number of trials)."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    found: dict[int, tuple[float, int]] = {}
    for at in sorted({step for t in complete for step in t.intermediate_values if step < END}):
        pairs = [(t.intermediate_values[at], accuracy(t)) for t in complete if at in t.intermediate_values]
        if len(pairs) >= 4 and all(len(set(side)) > 1 for side in zip(*pairs, strict=True)):
            found[at] = (float(scipy.stats.spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs))
    return found
