"""The trials of a sweep as the report shows them: a plain study, the knobs that matter, what trials cost."""

import functools
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from edc_ray import pipeline
from edc_ray.artifacts import Damaged
from edc_ray.claim import Claim

ACCURACY, COSTS = "accuracy on val, %", ("core-seconds", "label bytes", "image bytes")
FEW = 4  # complete trials below which no knob can be told from another


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Of knobs: the last part of the path, or as many parts as tell it from the others."""
    found = {}
    for path in paths:
        parts = path.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alone = (tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in paths) == 1)
        found[path] = next(alone, path)
    return found


def label(value: Any) -> Any:
    """A category as text, lists joined by +; numbers stay what they are."""
    if isinstance(value, str) and value.startswith("["):
        return value.strip("[]").replace('"', "").replace(", ", "+")
    return str(value) if value is None or isinstance(value, bool) else value


def _labelled(wanted: BaseDistribution) -> BaseDistribution:
    if isinstance(wanted, CategoricalDistribution):
        return CategoricalDistribution([label(choice) for choice in wanted.choices])
    return wanted


def view(study: optuna.Study, name: str) -> optuna.Study:
    """The same trials, by their numbers, in memory: accuracy in % is the only objective, knobs have short
    names. Optuna's pictures are drawn of this.
    """
    trials = study.get_trials(deepcopy=False)
    names = short_names(list(dict.fromkeys(path for trial in trials for path in trial.params)))
    made = optuna.create_study(study_name=name, direction="maximize")
    for trial in trials:
        value = trial.values[0] if trial.values else None  # the first objective is accuracy
        made.add_trial(
            optuna.trial.create_trial(
                state=trial.state if trial.state.is_finished() else TrialState.RUNNING,
                value=None if value is None or trial.state == TrialState.FAIL else 100 * value,
                params={names[path]: label(value) for path, value in trial.params.items()},
                distributions={names[path]: _labelled(d) for path, d in trial.distributions.items()},
                intermediate_values={at: 100 * seen for at, seen in trial.intermediate_values.items()},
            )
        )
    return made


class Trials:
    """What several sections ask for, computed once. Everything is of the study and the store."""

    def __init__(self, claim: Claim, facts: Mapping[str, Any]) -> None:
        self.claim, self.facts, self.name = claim, facts, claim.sweep.name
        self._manifests = dict[tuple[str, str], dict[str, Any] | None]()

    @functools.cached_property
    def study(self) -> optuna.Study:
        return view(self.claim.study, self.name)

    @functools.cached_property
    def complete(self) -> list[FrozenTrial]:
        """Of `study`, best first, as `claim.ranked`."""
        seen = self.study.get_trials(deepcopy=False)
        return [seen[trial.number] for trial in self.claim.ranked]

    @functools.cached_property
    def importances(self) -> dict[str, float]:
        """Knob -> share by PED-ANOVA, which knows conditional knobs; {} of too few or equal trials."""
        if len(self.complete) < FEW or len({trial.value for trial in self.complete}) < 2:
            return {}
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # few trials, as the text says
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {name: share for name, share in found.items() if math.isfinite(share)}

    @functools.cached_property
    def knobs(self) -> list[str]:
        """Those that varied, the most important first; behind them those that fewer than half the trials
        have, to which a handful of trials can give any importance.
        """
        seen: dict[str, list[Any]] = {}
        for trial in self.complete:
            for name, value in trial.params.items():
                seen.setdefault(name, []).append(value)
        varied = [name for name, values in seen.items() if len(set(values)) > 1]
        rare = {name for name in varied if 2 * len(seen[name]) < len(self.complete)}
        return sorted(varied, key=lambda name: (name in rare, -self.importances.get(name, 0.0)))

    def manifest(self, task: pipeline.Task) -> dict[str, Any] | None:
        """None where the artifact was never finished, or is gone."""
        name = task.stage, task.key
        if name not in self._manifests:
            try:
                self._manifests[name] = self.claim.store.artifact(*name).manifest()
            except Damaged:
                self._manifests[name] = None
        return self._manifests[name]

    @functools.cached_property
    def used(self) -> Counter[tuple[str, str]]:
        """(stage, key) of what the trials and the confirmation needed -> how often."""
        return Counter((task.stage, task.key) for task in self.tasks)

    @functools.cached_property
    def tasks(self) -> list[pipeline.Task]:
        return list(self.claim.everything())

    @functools.cached_property
    def costs(self) -> list[dict[str, Any]]:
        """A row a complete trial, best first: its accuracy and what it took, shared or not."""
        rows = []
        for trial, seen in zip(self.claim.ranked, self.complete, strict=True):
            tasks = pipeline.tasks(self.claim.experiment(trial))
            manifests = {task.stage: self.manifest(task) for task in tasks}
            # Labels that are made inline have none, and their time is the student's.
            gone = any(each is None and stage != "relabel" for stage, each in manifests.items())
            spent = [each["core_seconds"] for each in manifests.values() if each]
            judged, images = (_facts(manifests.get(stage)) for stage in ("evaluate", "recover"))
            rows.append(
                {
                    "trial": trial.number,
                    ACCURACY: seen.value,
                    "core-seconds": None if gone else math.fsum(spent),
                    "label bytes": judged.get("label_bytes"),
                    "image bytes": images.get("bytes"),
                }
            )
        return rows


def _facts(manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """As pipeline.facts; {} of nothing."""
    units = (manifest or {}).get("units", {})
    return dict(units["all" if "all" in units else next(iter(units))]["meta"]) if units else {}
