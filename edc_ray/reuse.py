"""`search.inner: n`: a sampled synthesis, that is everything up to recover, is kept for n trials.

Which knobs make the synthesis follows from the stage table; what was sampled so far, from the study.
"""

import json
import math
from collections.abc import Collection, Mapping

import optuna
from optuna.trial import TrialState

from edc_ray import config, pipeline, space
from edc_ray.config import ConfigError, Experiment, Knob, Sweep

SYNTHESIS = list(pipeline.STAGES)[: list(pipeline.STAGES).index("recover") + 1]


def touching(search: Mapping[str, Knob], base: Experiment) -> dict[str, set[str]]:
    """Stage -> the knobs that can change its name, by what it reads or through its inputs.

    What it reads depends on the experiment: each value is tried by itself, as `space.check_values` does.
    """
    values = [(path, value) for path, knob in search.items() for _, value in space.ends(knob)]
    every = [base, *(config.override(base, {path: value}) for path, value in values)]
    found: dict[str, set[str]] = {}
    for stage, row in pipeline.STAGES.items():
        read = {path for experiment in every for path in row.reads(experiment)}
        own = {knob for knob in search if any(f"{knob}.".startswith(f"{path}.") for path in read)}
        inputs = {name for experiment in every for name in row.inputs(experiment)}
        found[stage] = own.union(*(found[name] for name in inputs))
    return found


def outer(search: Mapping[str, Knob], base: Experiment) -> frozenset[str]:
    """The knobs of a synthesis, and those that they wait for: who keeps these keeps the synthesis."""
    touched = touching(search, base)
    found = set[str]().union(*(touched[stage] for stage in SYNTHESIS))
    for path in reversed(space.order(search)):  # each before its parents
        found |= set(search[path].when) if path in found else set()
    return frozenset(found)


def check(sweep: Sweep, base: Experiment) -> None:
    """Refuse `inner` where it can have no effect, or would try the same configuration again.

    Raises:
        ConfigError: with the path in the file.
    """
    if sweep.inner == 1:
        return
    kept = outer(sweep.search, base)
    legal = ""
    if sweep.sampler == "grid":
        legal = "must be 1 with sampler grid, which visits each point once"
    elif not kept:
        legal = "must be 1: no knob changes a stage up to recover, so all trials share them anyway"
    elif len(kept) == len(sweep.search):
        legal = "must be 1: no knob is left to differ between trials that share the stages up to recover"
    if legal:
        raise ConfigError("search.inner", sweep.inner, legal)


def keep(study: optuna.Study, outer: Collection[str], inner: int) -> None:
    """Enqueue the oldest synthesis that has had fewer than `inner` trials: the next trial gets it, and the
    sampler draws its other knobs. Nothing where there is none, or where another trial waits, which is next.

    Trials lost by no fault of their own do not count. A synthesis whose ended trials have all failed is not
    tried again: the fault may be its own.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if not space.lost(trial)]
    if inner == 1 or any(trial.state == TrialState.WAITING for trial in trials):
        return
    syntheses: dict[str, list[TrialState]] = {}
    for trial in trials:
        knobs = {path: value for path, value in space.wanted(trial).items() if path in outer}
        syntheses.setdefault(json.dumps(knobs, sort_keys=True), []).append(trial.state)
    for knobs_of, states in syntheses.items():
        if len(states) < inner and set(states) - {TrialState.RUNNING} != {TrialState.FAIL}:
            study.enqueue_trial(json.loads(knobs_of))
            return


def expected(sweep: Sweep, base: Experiment) -> dict[str, int]:
    """Stage -> how often the whole budget makes it at most, from an empty store; the rest are hits."""
    kept, found = outer(sweep.search, base), {}
    for stage, knobs in touching(sweep.search, base).items():
        asked = math.ceil(sweep.budget.trials / sweep.inner) if knobs <= kept else sweep.budget.trials
        choices = [sweep.search[path].choices for path in knobs]
        points = math.prod(math.inf if values is None else len(values) for values in choices)
        found[stage] = int(min(asked, points))
    return {stage: found[stage] for stage in pipeline.needed(base)}
