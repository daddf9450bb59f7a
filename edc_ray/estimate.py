"""What a plan would take: time, GPU-hours, disk and memory, at rates that were measured in the store.

What no rate was measured for is unknown, and said to be.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edc_ray import pipeline
from edc_ray.artifacts import Store, free_bytes
from edc_ray.config import ConfigError, Experiment, Runtime, Sweep
from edc_ray.pipeline import Task
from edc_ray.pipeline.pages import view_bytes
from edc_ray.rates import Rates, duration, planned, size

NO_RATE = "no rate measured yet"


# --- what there is to do ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """Artifacts like one: how many, a share of one where some units are there; and the units to do."""

    task: Task
    copies: float
    units: float


def todo(settings: Sweep, experiment: Experiment, store: Store) -> list[Item]:
    """What is missing of an experiment with its baselines, or of a sweep's trials and its confirmation.

    The trials that are still to be sampled are taken to be like the file's experiment.

    Raises:
        ConfigError: the dataset is not there.
    """
    if not settings.search:
        every = [task for arm in pipeline.arms(experiment).values() for task in pipeline.tasks(arm)]
        if whole := pipeline.whole(experiment):
            every += pipeline.tasks(whole, "squeeze")
        return _missing(every, store, settings.runtime)
    return _swept(settings, experiment, store)


def _missing(tasks: Sequence[Task], store: Store, runtime: Runtime) -> list[Item]:
    found = []
    for task in {(task.stage, task.key): task for task in tasks}.values():
        if not pipeline.skipped(task, runtime) and not pipeline.is_hit(task, store, runtime):
            left = len(pipeline.missing(task, store, runtime))
            units = len(pipeline.units(task, runtime))
            found.append(Item(task, left / units, left + pipeline.finish(task)))
    return found


def _swept(settings: Sweep, experiment: Experiment, store: Store) -> list[Item]:
    from edc_ray import reuse, space  # Optuna, which only a search needs
    from edc_ray.journal import folder_of

    folder = folder_of(store, f"sweeps/{settings.name}")
    trials, best, runtime = 0, experiment, settings.runtime
    if space.has_study(folder):
        study = space.read_study(folder)
        trials = len(space.finished(study))
        if ranked := space.ranked(study):
            best = space.apply(experiment, ranked[0].params, settings.search)
    left, expected = max(0, settings.budget.trials - trials), reuse.expected(settings, experiment)
    items = list[Item]()
    for task in pipeline.tasks(experiment):
        copies = math.ceil(expected[task.stage] * left / settings.budget.trials)
        if expected[task.stage] == 1 and left:
            items += _missing([task], store, runtime)
        elif copies and not pipeline.skipped(task, runtime):
            units = len(pipeline.units(task, runtime)) + pipeline.finish(task)
            items.append(Item(task, copies, copies * units))
    # Trials that share the winner's images, whose recipes random_real gets.
    recipes = expected["evaluate"] if expected.get("recover", 1) == 1 else settings.inner
    return [*items, *_confirmed(settings, best, store, recipes)]


def _confirmed(settings: Sweep, best: Experiment, store: Store, recipes: int) -> list[Item]:
    """Of the confirmation. The candidates of confirm.best, and random_real's recipes, are taken to be like
    the best one of now.
    """
    from edc_ray.claim import AGAIN_SEED, student  # Optuna, as above

    confirm, runtime = settings.confirm, settings.runtime
    seeds = [pipeline.CONFIRM_SEED + i for i in range(confirm.seeds)]
    final = [pipeline.with_seed(pipeline.refitted(best), seed) for seed in seeds]
    arms = [arm for each in final for arm in pipeline.arms(each).values()]
    arms += [student(each, number) for each in final for number in range(1, confirm.students)]
    items = _missing([task for arm in arms for task in pipeline.tasks(arm)], store, runtime)
    shared = {task.key for task in pipeline.tasks(best)}
    if confirm.best > 1:
        again = [pipeline.with_seed(best, AGAIN_SEED + i) for i in range(confirm.seeds)]
        tasks = [task for each in again for task in pipeline.tasks(each) if task.key not in shared]
        one = _missing(tasks, store, runtime)
        items += [Item(i.task, confirm.best * i.copies, confirm.best * i.units) for i in one]
    if recipes > 1 and seeds:
        real = pipeline.arms(best)["random_real"]
        for item in _missing([t for t in pipeline.tasks(real) if t.key not in shared], store, runtime):
            many = recipes if item.task.stage in ("relabel", "evaluate") else 1
            items.append(Item(item.task, many * item.copies, many * item.units))
    return items


# --- what that takes ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """A stage of an estimate; of the units without a rate nothing is in the sums."""

    units: float = 0.0
    unknown: float = 0.0  # units without a rate
    seconds: float = 0.0  # of workers
    gpu_seconds: float = 0.0
    bytes: float = 0.0
    memory: int = 0
    measured: int = 0  # units that the rate is of
    device: str = ""


def rows(items: Sequence[Item], rates: Rates, runtime: Runtime, device: str) -> dict[str, Row]:
    """By stage, in order."""
    found = dict[str, Row]()
    for stage in pipeline.STAGES:
        for item in [item for item in items if item.task.stage == stage]:
            row = found.setdefault(stage, Row())
            row.units += item.units
            if (rate := rates.of(item.task, runtime, device)) is None:
                row.unknown += item.units
                continue
            share = item.copies * planned(item.task, runtime) / rate.work
            row.seconds += share * rate.seconds
            row.gpu_seconds += share * rate.gpu_seconds
            row.bytes += share * rate.bytes
            row.memory, row.measured = max(row.memory, rate.memory), max(row.measured, rate.units)
            row.device = rate.device
    return found


def lines(settings: Sweep, experiment: Experiment, store: Store) -> list[str]:
    """The end of a plan: time, disk and memory of what is to do. Raises as `todo`."""
    runtime, items = settings.runtime, todo(settings, experiment, store)
    if not items:
        return ["estimate: nothing to do"]
    device = "" if runtime.gpus_per_worker or runtime.device == "cuda" else "cpu"
    found = rows(items, Rates(store), runtime, device)
    told = [
        "estimate, of the search and its confirmation:" if settings.search else "estimate, with baselines:"
    ]
    told.append(f"{'stage':<12}{'units':>7}  time")
    told += [f"{stage:<12}{round(row.units):>7}  {_time(row)}" for stage, row in found.items()]
    told.append(_together(found, runtime))
    told.append(_disk(items, found, store, runtime))
    peak, stage = max((row.memory, stage) for stage, row in found.items())
    known = f"{size(peak)} ({stage}, on {found[stage].device})" if peak else "not measured yet"
    return [*told, f"peak memory of a worker: {known}"]


def _time(row: Row) -> str:
    if row.unknown == row.units:
        return NO_RATE
    known = f"{duration(row.seconds)} of a worker (measured on {row.device}, units: {row.measured})"
    return known + (f"; without rate: {round(row.unknown)} units" if row.unknown else "")


def _together(found: Mapping[str, Row], runtime: Runtime) -> str:
    unknown = [stage for stage, row in found.items() if row.unknown]
    if len(unknown) == len(found) and not any(row.seconds for row in found.values()):
        return "together: unknown"
    seconds = math.fsum(row.seconds for row in found.values())
    without = f"; without {', '.join(unknown)}" if unknown else ""
    least = duration(seconds / runtime.workers)
    return f"together: {duration(seconds)} of a worker, so at least {least} with {runtime.workers}{without}"


def image_bytes(items: Sequence[Item]) -> float:
    """Of the condensed sets to be made, as they are kept; jpeg before its compression."""
    tasks = [(item.copies, item.task.experiment, item.task.classes) for item in items if _is(item, "recover")]
    return math.fsum(
        copies * classes * exp.init.ipc * 3 * exp.dataset.size_px**2 * (1 + (exp.recover.format == "float16"))
        for copies, exp, classes in tasks
    )


def label_bytes(items: Sequence[Item]) -> float:
    """Of the soft labels to be stored: half floats, and what says which view each is of."""
    return math.fsum(
        item.copies * planned(item.task, Runtime()) * (2 * item.task.classes + view_bytes(exp.relabel))
        for item in items
        if _is(item, "relabel")
        for exp in [item.task.experiment]
    )


def _is(item: Item, stage: str) -> bool:
    return item.task.stage == stage


def _disk(items: Sequence[Item], found: Mapping[str, Row], store: Store, runtime: Runtime) -> str:
    parts = [f"{size(image_bytes(items))} of images"]
    inline = "labels are made inline and not stored"
    parts.append(inline if runtime.labels == "inline" else f"{size(label_bytes(items))} of labels")
    others = {stage: row.bytes for stage, row in found.items() if stage not in ("recover", "relabel")}
    known, unknown = math.fsum(others.values()), [stage for stage in others if found[stage].unknown]
    parts.append(f"{size(known)} of other stages" + (f" but {', '.join(unknown)}" if unknown else ""))
    free = free_bytes(store)
    room = f"; {size(free)} are free there" if free is not None else ""
    return f"disk: {', '.join(parts)}{room}"


# --- on a cluster -------------------------------------------------------------------------------------------


def parse_cluster(text: str) -> tuple[int, str]:
    """(GPUs, kind) of 8xH200. Raises ConfigError."""
    if not (found := re.fullmatch(r"([1-9]\d*)x([A-Za-z][\w .-]*)", text)):
        raise ConfigError("--cluster", text, "must be GPUs and their kind, such as 8xH200")
    return int(found[1]), found[2]


def on_cluster(settings: Sweep, experiment: Experiment, store: Store, text: str) -> list[str]:
    """GPU-hours by stage, how many units run at once, and what limits it. Raises as `todo`; ConfigError."""
    (gpus, kind), runtime = parse_cluster(text), settings.runtime
    if not runtime.gpus_per_worker:
        unused = f"on {gpus} x {kind}: no GPU is used, as runtime.gpus_per_worker = 0"
        return [unused, *lines(settings, experiment, store)]
    slots, why = _slots(gpus, runtime)
    items = todo(settings, experiment, store)
    found = rows(items, rates := Rates(store), runtime, kind)
    told = [f"on {gpus} x {kind}: {slots} workers at once; {why}"]
    told.append(f"{'stage':<12}{'units':>7}{'at once':>9}{'GPU-hours':>11}  limit")
    for stage, row in found.items():
        ready, limit = _ready(stage, settings, experiment)
        limit = limit if ready <= slots else "the workers"
        told.append(f"{stage:<12}{round(row.units):>7}{min(ready, slots):>9}{_hours(row):>11}  {limit}")
    hours = math.fsum(row.gpu_seconds for row in found.values()) / 3600
    unknown = [stage for stage, row in found.items() if row.unknown]
    if len(unknown) < len(found):
        least = duration(hours * 3600 / gpus)
        told.append(f"together: {hours:.2g} GPU-hours that are known, so at least {least} on {gpus} GPUs")
    if unknown:
        there = {device for item in items for device in rates.devices(item.task, runtime)}
        others = f"; there are rates of {', '.join(sorted(there))}" if there else ""
        told.append(f"unknown: {', '.join(unknown)}: no rate measured on {kind} in this store{others}")
    labels = "made inline" if runtime.labels == "inline" else size(label_bytes(items))
    return [*told, f"images: {size(image_bytes(items))}, labels: {labels}"]


def _hours(row: Row) -> str:
    """GPU-hours; "> " where some units have no rate."""
    if row.unknown == row.units:
        return "unknown"
    return f"{'> ' * (row.unknown > 0)}{row.gpu_seconds / 3600:.2g}"


def _slots(gpus: int, runtime: Runtime) -> tuple[int, str]:
    """Workers at once, and what limits them."""
    share, allowed = runtime.gpus_per_worker, f"runtime.workers = {runtime.workers}"
    most = gpus * int(1 / share + 1e-9) if share <= 1 else int(gpus / share)
    each = f"{share:g} GPU each (runtime.gpus_per_worker)"
    if most > runtime.workers:
        return runtime.workers, f"{allowed} is the limit, of the {most} that there are GPUs for, {each}"
    return most, f"the GPUs are the limit, {each}; {allowed}"


def _ready(stage: str, settings: Sweep, experiment: Experiment) -> tuple[int, str]:
    """Units of a stage that can run at once if there are workers, and what else would limit them."""
    runtime = settings.runtime
    if stage == "relabel":
        return min(runtime.label_workers, runtime.workers), f"runtime.label_workers = {runtime.label_workers}"
    tasks = [task for task in pipeline.tasks(experiment) if task.stage == stage]
    units = sum(len(pipeline.units(task, runtime)) for task in tasks)
    if not settings.search:  # one artifact after another
        return max((len(pipeline.units(task, runtime)) for task in tasks), default=1), "units of an artifact"
    from edc_ray import reuse  # as above

    made = reuse.expected(settings, experiment).get(stage, 1)
    if made == 1:
        return units, "its units, which all trials share"
    kept = reuse.touching(settings.search, experiment)[stage] <= reuse.outer(settings.search, experiment)
    inner = settings.inner if kept else 1
    trials = min(made, math.ceil(settings.concurrent / inner))
    which = "syntheses" if inner > 1 else "trials"
    return trials * units, f"{trials} {which} at once (concurrent = {settings.concurrent})"
