"""`warm_start`: the best configurations of another sweep are tried first; its accuracies are not copied."""

from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from edc_ray import config, space
from edc_ray.config import ConfigError, Experiment, Sweep
from edc_ray.specs import read_folder


def check(sweep: Sweep) -> None:
    """Raises ConfigError where `warm_start.folder` is not of a sweep, or no trial there came to its end."""
    if sweep.warm_start.folder is not None:
        _theirs(sweep.warm_start.folder, 1)


def _theirs(folder: str, most: int) -> list[Experiment]:
    """The other sweep's best configurations, the best first."""
    try:
        sweep, base, _, place = read_folder(folder)
        best = space.ranked(space.read_study(place))[:most]
    except ConfigError as error:
        raise ConfigError("warm_start.folder", folder, error.legal) from None
    if not best:
        raise ConfigError("warm_start.folder", folder, "has no trial that came to its end")
    return [space.apply(base, trial.params, sweep.search) for trial in best]


def params(experiment: Experiment, sweep: Sweep) -> dict[str, Any] | None:
    """Its values of the sweep's knobs, as Optuna has them; None where one is outside of the space."""
    found, chosen = dict[str, Any](), dict[str, Any]()
    for path in space.order(sweep.search):
        knob = sweep.search[path]
        if space.active(knob, chosen):
            value = config.dump(experiment)
            for name in path.split("."):
                value = value[name]
            chosen[path] = value
            found[path] = space.code(value)
            if not _may_be(found[path], space.distribution(path, knob)):
                return None
    return found


def _may_be(value: Any, wanted: BaseDistribution) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number and not isinstance(wanted, CategoricalDistribution):
        return False
    try:
        return wanted._contains(wanted.to_internal_repr(value))
    except ValueError:
        return False


def start(sweep: Sweep, base: Experiment, study: optuna.Study, say: Callable[[str], None]) -> None:
    """Enqueue them, once a study; a configuration that it has had, or has waiting, is left out."""
    folder = sweep.warm_start.folder
    if folder is None or folder in study.user_attrs.get("edc:warm", []):
        return
    theirs = _theirs(folder, sweep.warm_start.best)
    legal = [found for experiment in theirs if (found := params(experiment, sweep)) is not None]
    for wanted in legal:
        study.enqueue_trial(wanted, skip_if_exists=True)
    study.set_user_attr("edc:warm", [*study.user_attrs.get("edc:warm", []), folder])
    out = len(theirs) - len(legal)
    outside = f"; {out} more are not, having values that this space does not" if out else ""
    say(f"warm start: {len(legal)} configurations of {folder} are tried first{outside}")
