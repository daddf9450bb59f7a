"""`edc-ray store`: what a store holds, whether that is whole, and the removal of what no sweep needs."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edc_ray import ladder, pipeline, space, specs
from edc_ray.artifacts import Damaged, Holding, Store, every_artifact, holding, remove
from edc_ray.claim import Claim
from edc_ray.config import ConfigError, Experiment, Sweep
from edc_ray.journal import folder_of
from edc_ray.pipeline import Task
from edc_ray.rates import size

if TYPE_CHECKING:
    from edc_ray.journal import Folder

Say = Callable[[str], None]


def ls(store: Store) -> list[str]:
    """A line a stage: artifacts, those without a manifest among them, units, bytes. Raises StoreError."""
    found = [holding(artifact) for artifact in every_artifact(store)]
    lines = [f"{'stage':<12}{'artifacts':>10}{'unfinished':>12}{'units':>8}{'size':>12}"]
    stages = [*pipeline.STAGES, *sorted({each.artifact.stage for each in found} - set(pipeline.STAGES))]
    for stage in stages:
        if of_stage := [each for each in found if each.artifact.stage == stage]:
            lines.append(_row(stage, of_stage))
    return [*lines, _row("together", found)]


def _row(name: str, found: Sequence[Holding]) -> str:
    unfinished = sum(not each.committed for each in found)
    units = sum(each.units for each in found)
    return f"{name:<12}{len(found):>10}{unfinished:>12}{units:>8}{_size(found):>12}"


def _size(found: Iterable[Holding]) -> str:
    return size(sum(each.bytes for each in found))


def verify(store: Store, say: Say) -> int:
    """Compare every file of a finished artifact with its checksum; returns how many are damaged."""
    files, damaged = 0, list[Damaged]()
    for artifact in every_artifact(store):
        try:
            files += len((artifact.manifest() or {"units": ()})["units"])
            found = artifact.verify()
        except Damaged as manifest:
            found = [manifest]
        for each in found:
            say(f"damaged: {each}")
        damaged += found
    say(f"{files} files of finished artifacts were read, {len(damaged)} are damaged")
    return len(damaged)


# --- what a sweep needs -------------------------------------------------------------------------------------


def of_sweep(sweep: Sweep, base: Experiment, store: Store, folder: "Folder") -> Iterator[Task]:
    """The artifacts of its trials, finished and planned, and of its confirmation."""
    yield from pipeline.tasks(base)
    try:
        study = space.read_study(folder)
    except ConfigError:  # no trial has begun
        return
    for trial in study.get_trials(deepcopy=False):
        yield from pipeline.tasks(space.apply(base, space.wanted(trial), sweep.search))
    if space.ranked(study):
        yield from Claim(base, sweep, store, study).everything()


def of_target(target: str, store: Store) -> Iterator[Task]:
    """What --keep names: the folder or URI of a sweep; or a file of a sweep, of a ladder, or a best.yaml.

    Raises:
        ConfigError: it is neither, or of another store.
    """
    if Path(target).suffix not in (".yaml", ".yml"):
        sweep, base, own, folder = specs.read_folder(target)
        if own.root != store.root:
            raise ConfigError("--keep", target, f"must be in the store {store.root}")
        yield from of_sweep(sweep, base, store, folder)
    elif specs.is_ladder(target):
        ready = ladder.prepare(target, [])
        for name in ready.rows:
            yield from (task for experiment in ready.arm(name) for task in pipeline.tasks(experiment))
    else:
        sweep, base = specs.load_file(target)
        base = specs.anchored(base)
        if sweep.search:
            yield from of_sweep(sweep, base, store, folder_of(store, f"sweeps/{sweep.name}"))
            return
        for arm in pipeline.arms(base).values():
            yield from pipeline.tasks(arm)
        if whole := pipeline.whole(base):
            yield from pipeline.tasks(whole, "squeeze")


# --- what is in nobody's way --------------------------------------------------------------------------------


def gc(store: Store, keep: Sequence[str], yes: bool, say: Say) -> None:
    """Remove the artifacts that neither kept nor running sweeps need; without `yes` only list them.

    While it looks and removes, no other sweep of this store can start. Studies, tables and files stay. What
    is removed by mistake is made again, with the same bits, when it is asked for.

    Raises:
        ConfigError: as `of_target`; or a ladder runs whose file is not kept.
    """
    found = [holding(artifact) for artifact in every_artifact(store)]  # first: what comes later stays
    needed = {str(task) for target in keep for task in of_target(target, store)}
    with ExitStack() as held:
        for name in _drivers(store):
            try:
                held.enter_context(store.alone(f"{name}/driver.lock"))
            except BlockingIOError:
                say(f"{name} is running: what it needs stays")
                needed |= _of_running(name, store, keep)
        rubbish = [each for each in found if each.artifact.folder not in needed]
        for each in rubbish:
            say(f"{each.artifact.folder}: {each.units} units, {size(each.bytes)}")
            if yes:
                remove(each.artifact)
    stays = [each for each in found if each not in rubbish]
    done = "were removed" if yes else "would be removed: --yes does it"
    say(f"{len(stays)} artifacts stay, {_size(stays)}; {len(rubbish)}, {_size(rubbish)}, {done}")


def _drivers(store: Store) -> list[str]:
    """The folders of all sweeps and ladders."""
    return [
        f"{kind}/{os.path.basename(info.path)}"
        for kind in ("sweeps", "ladders")
        for info in store.listed(kind)
        if not info.is_file
    ]


def _of_running(name: str, store: Store, keep: Sequence[str]) -> set[str]:
    kind, _, short = name.partition("/")
    if kind == "sweeps":
        sweep, base, _, folder = specs.read_folder(store.path(name))
        return {str(task) for task in of_sweep(sweep, base, store, folder)}
    files = [target for target in keep if Path(target).suffix in (".yaml", ".yml")]
    if short not in [specs.load_ladder(file)[0].name for file in files if specs.is_ladder(file)]:
        raise ConfigError("--keep", list(keep), f"must have the file of the ladder {short}, which is running")
    return set()
