"""`edc-ray status`: how a sweep stands, on one screen; from its folder and store, or from its Broker.

It reads only, and needs no cluster for a folder.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edc_ray import pipeline, space
from edc_ray.artifacts import Attempt, Damaged, Store, StoreError, attempts, log_path, logged
from edc_ray.claim import Claim
from edc_ray.config import ConfigError, Experiment, Sweep
from edc_ray.pipeline import Task
from edc_ray.rates import duration
from edc_ray.specs import read_folder

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LAST = 5  # errors, and the trials whose pace counts
SHOWN = 8  # busy units


# --- from the folder ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Work:
    """The artifacts of a sweep's trials, by key; of those that ended well nothing is asked of the store."""

    made: dict[str, Task] = field(default_factory=dict)
    wanted: dict[str, Task] = field(default_factory=dict)  # of trials that run, and of the confirmation
    failed: dict[str, Task] = field(default_factory=dict)


def of_folder(folder: str) -> list[str]:
    """A sweep's state, of its study and its store; by its folder or URI.

    Raises:
        ConfigError: the folder is not of a sweep, or no trial was started. StoreError: it cannot be read.
    """
    sweep, base, store, place = read_folder(folder)
    study = space.read_study(place)
    trials = [trial for trial in study.get_trials(deepcopy=False) if not space.lost(trial)]
    lines = _trials(sweep, trials)
    try:
        work = _work(sweep, base, trials, store, study)
    except ConfigError as error:
        return [*lines, f"stages: unknown here: {error}"]
    rows, left = _stages(work, sweep, store)
    if left == 0 and _over(sweep, trials):
        lines.append(f"finished: `edc-ray report {folder}`")
    return [*lines, *rows, *_errors(_logged(work, store))]


def _over(sweep: Sweep, trials: "Sequence[FrozenTrial]") -> bool:
    """Whether no trial is left."""
    return sum(trial.state.is_finished() for trial in trials) >= sweep.budget.trials


def _trials(sweep: Sweep, trials: "Sequence[FrozenTrial]") -> list[str]:
    states = [trial.state.name.lower() for trial in trials]
    ended = sum(trial.state.is_finished() for trial in trials)
    each = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(sorted(states)))
    times = [at for trial in trials for at in (trial.datetime_start, trial.datetime_complete) if at]
    lines = [
        f"sweep {sweep.name}: {ended} of {sweep.budget.trials} trials ended",
        f"trials: {each or 'none'}",
    ]
    if times:
        silent = max(0, round((datetime.now() - max(times)).total_seconds()))
        lines[0] += f"; the last one began or ended {duration(silent)} ago"
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if complete:
        best = max(complete, key=lambda trial: (space.accuracy(trial), -trial.number))
        lines.append(f"best: trial {best.number}, {100 * space.accuracy(best):.2f} % on val")
    return [*lines, *_eta(sweep, trials, complete)]


def _eta(sweep: Sweep, trials: "Sequence[FrozenTrial]", complete: "Sequence[FrozenTrial]") -> list[str]:
    left = sweep.budget.trials - sum(trial.state.is_finished() for trial in trials)
    if left <= 0:
        return []
    ended = sorted(complete, key=lambda trial: str(trial.datetime_complete))[-LAST:]
    spans = [trial.duration.total_seconds() for trial in ended if trial.duration is not None]
    if not spans:
        return [f"left: {left} trials; no trial has come to its end, so nobody knows how long"]
    mean = math.fsum(spans) / len(spans)
    seconds = mean * math.ceil(left / sweep.concurrent)
    pace = f"{duration(mean)} each, as the last {len(spans)}, {sweep.concurrent} at once"
    rest = ", then the confirmation" if sweep.confirm.seeds else ""
    return [f"left: {left} trials, about {duration(seconds)} ({pace}){rest}"]


def _work(sweep: Sweep, base: Experiment, trials: "Sequence[FrozenTrial]", store: Store, study: Any) -> _Work:
    work = _Work()
    places = {"COMPLETE": work.made, "PRUNED": work.made, "RUNNING": work.wanted, "FAIL": work.failed}
    for trial in trials:
        if trial.state.name in places:
            for task in pipeline.tasks(space.apply(base, trial.params, sweep.search)):
                if trial.state.name != "PRUNED" or task.stage not in ("relabel", "evaluate"):
                    places[trial.state.name][task.key] = task
    if _over(sweep, trials) and space.ranked(study):
        for _, runs in Claim(base, sweep, store, study).steps():
            work.wanted |= {task.key: task for _, experiment in runs for task in pipeline.tasks(experiment)}
    work.wanted = {key: task for key, task in work.wanted.items() if key not in work.made}
    return work


def _stages(work: _Work, sweep: Sweep, store: Store) -> tuple[list[str], int]:
    """A line a stage, and how many units are left of what has begun."""
    lines, all_left = [f"{'stage':<12}{'artifacts':>10}{'units':>12}{'left':>8}"], 0
    for stage in pipeline.STAGES:
        made = [task for task in work.made.values() if task.stage == stage]
        wanted = [task for task in work.wanted.values() if task.stage == stage]
        if not made + wanted or pipeline.skipped((made + wanted)[0], sweep.runtime):
            continue
        left = [_left(task, sweep, store) for task in wanted]
        units = sum(
            len(pipeline.units(task, sweep.runtime)) + pipeline.finish(task) for task in made + wanted
        )
        artifacts = f"{len(made) + left.count(0)}/{len(made) + len(wanted)}"
        lines.append(f"{stage:<12}{artifacts:>10}{f'{units - sum(left)}/{units}':>12}{sum(left):>8}")
        all_left += sum(left)
    return lines, all_left


def _left(task: Task, sweep: Sweep, store: Store) -> int:
    """Units without a file; 1 where only the manifest is missing."""
    try:
        if pipeline.is_hit(task, store, sweep.runtime):
            return 0
    except Damaged:
        pass
    done = store.artifact(task.stage, task.key).units()
    names = [*pipeline.units(task, sweep.runtime), *(["all"] if pipeline.finish(task) else [])]
    return max(1, sum(name not in done for name in names))


def _logged(work: _Work, store: Store) -> list[tuple[str, str]]:
    """(when, what) of each unit whose last attempt did not end well, oldest first."""
    found = []
    for task in {**work.failed, **work.wanted}.values():
        artifact = store.artifact(task.stage, task.key)
        for unit in logged(artifact):
            last: Attempt = attempts(artifact, unit)[-1]
            if last.outcome != "done":
                why = f"{task}, unit {unit}: attempt {last.number} {last.outcome}: {last.why}"
                found.append((last.at, f"{why}; log: {log_path(artifact, unit)}"))
    return sorted(found)


def _errors(found: Sequence[tuple[str, str]]) -> list[str]:
    return ["last errors:", *(f"  {at}  {what}" for at, what in found[-LAST:])] if found else []


# --- from the Broker ----------------------------------------------------------------------------------------


def of_cluster(address: str) -> list[str]:
    """The jobs that run on a cluster, of their Brokers; and of their folders, where they are seen from here.

    Raises:
        ConfigError: no cluster answers.
    """
    from edc_ray import session

    with session.connected(address):
        from edc_ray.distributed.service import statuses

        found = statuses()
    if not found:
        return [f"no sweep runs on {address}"]
    return [line for status in found for line in (*of_broker(status), *_folder_of(status))]


def _folder_of(status: Mapping[str, Any]) -> list[str]:
    if "error" in status:
        return []
    folder = Store(status["store"]).path(f"sweeps/{status['name']}")
    try:
        return [f"folder: {folder}", *of_folder(folder)]
    except (ConfigError, StoreError):
        return []  # another machine's, or of a ladder


def of_broker(status: Mapping[str, Any]) -> list[str]:
    """What one Broker says of itself."""
    if "error" in status:
        return [f"{status['name']} does not answer: {status['error']}"]
    busy, done = status["busy"], status["done"]
    lines = [f"job {status['name']}, for {duration(status['seconds'])}: store {status['store']}"]
    label = f", {status['labelling']} pages in a label job" if status["labelling"] else ""
    workers = f"{status['workers']} of {status['slots']} workers, {len(busy)} busy{label}"
    lines.append(f"ledger: {workers}; leases of trials: {status['leases']}")
    stages = [stage for stage in pipeline.STAGES if stage in done or stage in status["todo"]]
    lines += [f"{'stage':<12}{'units done':>11}{'left':>8}"] * bool(stages)
    for stage in stages:
        left, made = status["todo"].get(stage, 0), done.get(stage, 0)
        pace = f"   about {duration(left * status['seconds'] / made)}" if left and made else ""
        lines.append(f"{stage:<12}{made:>11}{left:>8}{pace}")
    if busy:
        more = f" and {len(busy) - SHOWN} more" if len(busy) > SHOWN else ""
        lines.append(f"running: {', '.join(busy[:SHOWN])}{more}")
    best = "" if status["best"] is None else f"best so far {100 * status['best']:.2f} % on val; "
    names = {"stage_hit": "hits", "stage_built": "built", "unit_retried": "units queued again"}
    lines.append(best + ", ".join(f"{text}: {status['events'].get(n, 0)}" for n, text in names.items()))
    return [*lines, *_errors([(error["at"], error["why"]) for error in status["errors"]])]


def lines(folder: str | None, address: str | None) -> Iterable[str]:
    """What the command prints. Raises as `of_folder` and `of_cluster`."""
    if (folder is None) == (address is None):
        raise ConfigError("folder", folder, "give either a sweep's folder or --address")
    return of_cluster(address) if address is not None else of_folder(folder or "")
