"""Tune's side of a sweep: its searcher, its scheduler and its lines, all over the study of `space`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from edc_ray import reuse, space
from edc_ray.config import Scheduler, Sweep
from edc_ray.journal import Folder
from edc_ray.space import END, METRIC
from edc_ray.spend import Limits


class Hopeless(RuntimeError):
    """A trial told why no trial can succeed: the sweep ends; the next command tries again what ran."""


def own_error(error: BaseException) -> BaseException:
    """What went wrong in the searcher, which Tune has made an error of its own; else that."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Hopeless | OSError):
        cause = cause.__context__
    return cause or error


class StudySearch(OptunaSearch):
    """OptunaSearch that tells the study everything once: each report while the trial runs, and PRUNED for a
    trial that a scheduler stopped (architecture.md 6; Tune would call it complete with its last value).
    """

    limits: Limits | None = None  # no trial starts after them
    costs: Callable[[Mapping[str, Any]], Sequence[float]] | None = None  # of a finished trial's knobs
    outer: Collection[str] = ()  # the knobs that `inner` trials share
    inner = 1

    def suggest(self, trial_id: str) -> Any:
        study: Any = self._ot_study
        if self.limits is not None and self.limits.ended(study):
            return Searcher.FINISHED
        if self.limits is not None and self.limits.full(study):
            return None  # Tune asks again
        if trial_id not in self._ot_trials:
            reuse.keep(study, self.outer, self.inner)
        return super().suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        trial: optuna.Trial = self._ot_trials[trial_id]
        seen = trial.study._storage.get_trial(trial._trial_id)
        if seen.state != TrialState.RUNNING:
            return
        if result.get("lost"):
            space.mark_lost(trial.study, trial)
            if result.get("hopeless"):
                raise Hopeless(result["hopeless"])
        elif "failed" not in result and result["progress"] not in seen.intermediate_values:
            # Not trial.report, which refuses to where there are several objectives.
            trial.study._storage.set_trial_intermediate_value(
                trial._trial_id, result["progress"], result[METRIC]
            )

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if result and not error:
            self.on_trial_result(trial_id, result)
            for fact in ("hits", "built"):
                if fact in result:
                    self._ot_trials[trial_id].set_user_attr(fact, result[fact])
        failed = result is not None and "failed" in result
        if error and not failed:  # its process was lost, more often than Tune tries again
            space.mark_lost(self._ot_trials[trial_id].study, self._ot_trials[trial_id])
        if error or failed or (result and result["progress"] < END):
            result = None  # the base class then tells FAIL, or PRUNED
        if result and self.costs:  # Tune, which checks its metrics at every report, knows of accuracy only
            result = {**result, METRIC: [result[METRIC], *self.costs(self._ot_trials[trial_id].params)]}
        super().on_trial_complete(trial_id, result, error or failed)


class Names:
    """What Tune calls a trial: by its number in the study.

    Tune copies it, which must not copy the study, and pickles it with every trial, where the study is no use.
    """

    def __init__(self, search: StudySearch | None = None) -> None:
        self._search = search

    def __call__(self, trial: Any) -> str:
        assert self._search is not None, "only the driver names trials"
        return f"trial-{self._search._ot_trials[trial.trial_id].number}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Names":
        return self

    def __reduce__(self) -> tuple[type["Names"], tuple[()]]:
        return Names, ()


class Named:
    """Mixed into Tune's trainable: its actor shows the trial's name as its repr."""

    def setup(self, config: dict[str, Any]) -> None:
        super().setup(config)  # type: ignore[misc]
        self._name = self.trial_name  # type: ignore[attr-defined]


def keep_credentials() -> None:
    """Tune would hand the driver's AWS keys to its trials in a runtime_env, which Ray writes into its logs
    and shows on the dashboard. Ours find them in the environment of their node, as all workers do.
    """
    wanted = class_cache.ENV_VARS_TO_PROPAGATE
    wanted -= {name for name in wanted if name.startswith("AWS_")}


def make_search(
    sweep: Sweep,
    folder: Folder,
    study: optuna.Study,
    outer: Collection[str] = (),
    limits: Limits | None = None,
    costs: Callable[[Mapping[str, Any]], Sequence[float]] | None = None,
) -> StudySearch:
    """The searcher that goes on with the study in the folder, until a budget is used up.

    outer: the knobs that sweep.inner trials share. costs: of a finished trial's knobs, where sweep.objectives
    asks for some.
    """
    search = StudySearch(
        space=space.Space(sweep.search), metric=METRIC, mode="max", study_name=space.STUDY,
        sampler=space.sampler(sweep, len(study.trials)), storage=space.storage(folder),
    )  # fmt: skip
    search.limits, search.costs = limits, costs if len(sweep.objectives) > 1 else None
    search.outer, search.inner = outer, sweep.inner
    return search


def make_scheduler(cfg: Scheduler, stops: Sequence[float], done: Sequence[FrozenTrial]) -> TrialScheduler:
    """FIFO, or ASHA whose brackets have heard of the trials that ended in earlier runs of the sweep.

    stops: shares of the training where a trial may be stopped, and the end.
    """
    if cfg.kind == "fifo":
        return FIFOScheduler()
    asha = ASHAScheduler(
        time_attr="progress", metric=METRIC, mode="max", max_t=END + 1,
        grace_period=max(1, int(1000 * stops[0])), reduction_factor=cfg.reduction,
    )  # fmt: skip
    for trial in done:
        for progress, value in sorted(trial.intermediate_values.items()):
            earlier: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
            asha._brackets[0].on_result(earlier, progress, value)
    return asha


class TrialLines(Callback):
    """One line a trial, as it ends."""

    def __init__(self, done: int, trials: int, say: Callable[[str], None]) -> None:
        self._done, self._trials, self._say = done, trials, say

    def _line(self, outcome: str, chosen: Mapping[str, Any]) -> None:
        self._done += 1
        knobs = ", ".join(f"{path.rsplit('.', 1)[-1]} {space.brief(value)}" for path, value in chosen.items())
        self._say(f"trial {self._done}/{self._trials}  {outcome}  {knobs}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result
        if "failed" in last:
            self._line(f"failed: {last['failed'][:160]}", trial.config)
            return
        if last.get("progress", 0) < END or "hits" not in last:
            self._line(f"{_percent(last)}  stopped at {last.get('progress', 0) / 10:g} %", trial.config)
            return
        facts = f"{last['hits']} hits, {last['built']} built, {last['time_total_s']:.0f} s"
        self._line(f"{_percent(last)}  {facts}", trial.config)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Not trial.get_error(): that reads what Tune copies to the sweep's folder only later.
        why = Path(trial.error_file).read_text().strip().splitlines()[-1]
        self._line(f"failed: {why[:400]}", trial.config)


def _percent(result: Mapping[str, Any]) -> str:
    return f"{100 * result[METRIC]:5.2f} % on val" if METRIC in result else "no accuracy"
