"""Names, dependencies and completion of artifacts: what there is to do, without doing it."""

import functools
import logging
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from operator import attrgetter
from typing import Any

from edc_ray import config
from edc_ray.artifacts import Artifact, Damaged, Missing, Receipt, Store
from edc_ray.config import Experiment, Runtime
from edc_ray.core import data, recover
from edc_ray.pipeline.observe import at_chance
from edc_ray.pipeline.stages import ROWS
from edc_ray.pipeline.types import Report, Task

log = logging.getLogger(__name__)
JUDGED = ("squeeze", "evaluate", "apply")  # the stages that read the val or test split
READS = "test_reads.jsonl"  # of the store: a line for each artifact that was judged on test


# --- names --------------------------------------------------------------------------------------------------


def key(stage: str, experiment: Experiment, inputs: dict[str, str], files: str | None) -> str:
    """Digest of the stage, its version, the config it reads and the keys of its inputs (architecture.md 4).

    files: of the stage's row; through this key they are in those of all later stages.
    """
    row = ROWS[stage]
    named: dict[str, Any] = {"stage": stage, "version": row.version}
    named["reads"] = _read(row.reads(experiment), experiment)
    named["inputs"] = {name: inputs[name] for name in row.inputs(experiment)}
    if files is not None:
        named["files"] = files
    return config.digest(named)


def _read(wanted: Iterable[str], experiment: Experiment) -> dict[str, Any]:
    """Path -> plain data, without the fields that have no effect."""
    found: dict[str, Any] = {}
    for path in wanted:
        section, _, name = path.rpartition(".")
        fields = _plain(attrgetter(section)(experiment) if section else experiment)
        found |= {path: fields[name]} if name in fields else {}
    return found


# The fields of a section are asked for one by one, by several stages.
_plain = functools.lru_cache(maxsize=64)(config.hashed)


def tasks(experiment: Experiment, upto: str = "evaluate") -> list[Task]:
    """Every artifact of an experiment, inputs before their readers; one relabel and one evaluate per seed.

    Raises:
        ConfigError: the dataset is not there.
    """
    read = {path for stage in needed(experiment, upto) for path in ROWS[stage].reads(experiment)}
    seeded = not read.isdisjoint({"evaluate", "evaluate.seeds"})
    seeds = experiment.evaluate.seeds if seeded else experiment.evaluate.seeds[:1]
    chains = [_chain(experiment, seed, upto) for seed in seeds]
    return list({(task.stage, task.key): task for chain in chains for task in chain}.values())


@functools.lru_cache(maxsize=64)
def looked(dataset: config.Dataset) -> tuple[tuple[int, ...], tuple[int, int], tuple[str, ...], int]:
    """Training images per class, shards, the names of the classes, and how many test images there are.

    A sweep checks every value of every knob, hence the memory; and the disk is asked once a process.
    """
    found = data.listing(dataset)
    return found.counts(), data.shards(dataset, found), found.classes, len(found.test.labels)


def kept(counts: Sequence[int], val: float) -> list[int]:
    """Of `counts` training images per class those that are not held out."""
    left = {count: count - data.held_out(count, val) for count in set(counts)}
    return [left[count] for count in counts]


def _chain(experiment: Experiment, seed: int, upto: str) -> list[Task]:
    counts, shards, *_ = looked(experiment.dataset)
    fit = sum(kept(counts, experiment.split.val))
    one = replace(experiment, evaluate=replace(experiment.evaluate, seeds=(seed,)))
    chain: dict[str, Task] = {}
    for stage in needed(one, upto):
        keys = {name: chain[name].key for name in ROWS[stage].inputs(one)}
        inputs = dict(pair for name in keys for pair in (*chain[name].inputs, (name, keys[name])))
        name = key(stage, one, keys, ROWS[stage].files(one))
        chain[stage] = Task(stage, one, name, tuple(inputs.items()), len(counts), fit, shards)
    return list(chain.values())


def needed(experiment: Experiment, upto: str = "evaluate") -> list[str]:
    """The stages that the experiment has, up to this one, in the order of ROWS."""
    wanted = {upto}
    for name in reversed(list(ROWS)):
        if name in wanted:
            wanted |= set(ROWS[name].inputs(experiment))
    return [name for name in ROWS if name in wanted]


def parents(task: Task, among: Iterable[Task]) -> list[Task]:
    """The tasks that must be there before this one: its direct inputs."""
    wanted = {(name, dict(task.inputs)[name]) for name in ROWS[task.stage].inputs(task.experiment)}
    return list({(t.stage, t.key): t for t in among if (t.stage, t.key) in wanted}.values())


# --- completion ---------------------------------------------------------------------------------------------


def units(task: Task, runtime: Runtime, until: float = 1.0) -> list[str]:
    """Unit names in order, without the fold "all". until: the share of the training that wants labels."""
    return ROWS[task.stage].units(task, runtime, until)


def finish(task: Task) -> bool:
    """Whether the stage folds its units into "all" at the end."""
    row = ROWS[task.stage]
    return row.finish is not None and "all" not in row.units(task, Runtime(), 1.0)


def skipped(task: Task, runtime: Runtime) -> bool:
    """Labels made inline are part of the student's name, but never stored."""
    return task.stage == "relabel" and runtime.labels == "inline"


def _artifact(task: Task, store: Store) -> Artifact:
    return store.artifact(task.stage, task.key)


def is_hit(task: Task, store: Store, runtime: Runtime, until: float = 1.0) -> bool:
    """Committed; labels also have every page that is wanted."""
    manifest = _artifact(task, store).manifest()
    if manifest is None:
        return False
    return task.stage != "relabel" or set(units(task, runtime, until)) <= set(manifest["units"])


def missing(task: Task, store: Store, runtime: Runtime, until: float = 1.0) -> list[str]:
    """Units that have no finished file yet; "all" is not among them."""
    done = _artifact(task, store).units()
    return [unit for unit in units(task, runtime, until) if unit not in done]


def finished(task: Task, unit: str, store: Store) -> bool:
    """Does the unit have a file?"""
    return _artifact(task, store).has(unit)


def commit(task: Task, store: Store, runtime: Runtime, made: Iterable[Receipt] = ()) -> dict[str, Any]:
    """Write the manifest, which makes the artifact exist. Losing a race is success: the winner's returns.

    made: receipts of units that need not be read again.
    """
    artifact = _artifact(task, store)
    names = sorted(artifact.units()) if task.stage == "relabel" else units(task, runtime)
    names += ["all"] if finish(task) else []
    told = {receipt.unit: receipt for receipt in made}
    told |= artifact.receipts([name for name in names if name not in told])
    receipts = {name: told[name] for name in names}
    exp, row = task.experiment, ROWS[task.stage]
    manifest = {
        "stage": task.stage,
        "version": row.version,
        "key": task.key,
        "inputs": dict(task.inputs),
        "reads": _read(row.reads(exp), exp),
        "experiment": config.dump(exp),  # the one that made it; others may share it
        "units": {
            n: {"file": r.file, "sha256": r.sha256, "bytes": r.bytes, "meta": r.meta}
            for n, r in receipts.items()
        },
        "seconds": sum(r.meta["seconds"] for r in receipts.values()),
        "core_seconds": sum(r.meta["core_seconds"] for r in receipts.values()),
        "made": {"at": _now()} | _versions(),
        "runtime": config.dump(runtime),
    }
    if task.stage in JUDGED and exp.split.val == 0:
        note_test_read(task, store)
    return artifact.commit(manifest)


def note_test_read(task: Task, store: Store, why: str = "") -> None:
    """Put on record, once, that test was read for an artifact."""
    if all(line.get("key") != task.key for line in store.read_lines(READS)):
        read = {"at": _now(), "why": why or f"{task.stage} of {task}", "key": task.key}
        store.append_line(READS, read | {"dataset": task.experiment.dataset.name})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.cache  # 12 ms, once a process instead of once an artifact
def _versions() -> dict[str, str]:
    """Of what makes the numbers; where they were made is in each unit's meta."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in ("torch", "numpy")
    }


def manifest(task: Task, store: Store) -> dict[str, Any]:
    """The manifest of a finished artifact."""
    found = _artifact(task, store).manifest()
    assert found is not None, f"{task} is not finished"
    return found


def facts(task: Task, store: Store) -> dict[str, Any]:
    """What the fold, or the only unit, of a finished artifact says about it."""
    found = manifest(task, store)["units"]
    return dict(found["all" if "all" in found else next(iter(found))]["meta"])


def core_seconds(task: Task, store: Store) -> float:
    """Core-seconds of the artifact's units; 0 where it was never finished or never stored."""
    found = _artifact(task, store).manifest()
    return float(found["core_seconds"]) if found else 0.0


def reports(task: Task, store: Store) -> tuple[Report, ...]:
    """The accuracy curve of a finished evaluation."""
    return tuple((int(at), float(value)) for at, value in facts(task, store)["reports"])


def discard(error: BaseException | None, store: Store) -> str | None:
    """If the error says that a file is damaged or gone: its artifact's key, after removing what is left.

    Looks again first, so that an error that comes late does not remove what was made anew meanwhile.
    """
    if not isinstance(error, Damaged | Missing):
        return None
    artifact = store.artifact(error.stage, error.key)
    try:
        artifact.receipt(error.unit)
    except (Damaged, Missing):
        log.warning("%s; it is removed and made again", error)
        artifact.remove(error.unit)
    return error.key


# --- the plan -----------------------------------------------------------------------------------------------


def _recover_note(experiment: Experiment, classes: int) -> str:
    cfg, notes = experiment.recover, []
    if cfg.iterations == 0:
        return "the initial images as they are"
    if len(recover.cut(cfg, classes, experiment.init.ipc)) == 1:
        field = "group_images" if cfg.group_images else "classes_per_group"
        notes.append(f"one group: nothing to shard (recover.{field})")
    elif not cfg.matching.reset:
        notes.append("groups follow on each other: nothing to shard (recover.matching.reset)")
    if cfg.flatness.kind == "sam":
        notes.append("SAM: two forwards and backwards an iteration")
    return "; ".join(notes)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One artifact of a plan."""

    task: Task
    hit: bool
    units: int
    missing: int
    note: str = ""


def plan(experiment: Experiment, store: Store, runtime: Runtime) -> list[PlanRow]:
    """The stage graph with what is there and what is to do; runs nothing and writes nothing."""
    rows = []
    for task in tasks(experiment):
        hit = is_hit(task, store, runtime)
        names = units(task, runtime)
        left = 0 if hit else len(missing(task, store, runtime))
        note = ""
        if skipped(task, runtime):
            hit, left, note = False, 0, "inline: made by the student's worker"
        elif task.stage == "recover" and not hit:
            note = _recover_note(experiment, task.classes)
        elif task.stage == "squeeze" and hit:
            note = "; ".join(at_chance(facts(task, store)))
        elif task.stage == "squeeze" and experiment.squeeze.weights in config.LIBRARIES:
            note = f"downloads weights of {experiment.squeeze.weights} that are not in its cache"
        rows.append(PlanRow(task, hit, len(names), left, note))
    return rows
