"""STAGES: the stages of EDC, which units each has, what it reads and which functions run it."""

import functools
import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import fields

from edc_ray.config import Apply, Diagnose, Experiment, Runtime
from edc_ray.core import data, init, matching, models, recover, relabel, train, views
from edc_ray.pipeline.applications import APPLICATIONS, run_sparse, sparse_reads
from edc_ray.pipeline.condense import CLASSES_PER_UNIT, join_images, run_init, run_recover
from edc_ray.pipeline.diagnose import DIAGNOSTICS
from edc_ray.pipeline.judge import evaluate_inputs, evaluate_reads, run_evaluate, run_relabel
from edc_ray.pipeline.observe import (
    finish_ingest,
    finish_squeeze,
    finish_statistics,
    run_ingest,
    run_squeeze,
    run_statistics,
)
from edc_ray.pipeline.types import Stage, Task, always, unit_of


def _image_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    """Shards of a dataset that does not fit in memory; "all" of one that does."""
    parts = zip(("train", "test"), task.shards, strict=True)
    return [f"{part}-{i:05d}" for part, shards in parts for i in range(shards)] or ["all"]


def _observer_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    return [unit_of(name) for name in task.experiment.squeeze.observers]


def _shard_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    return [f"shard-{i:05d}" for i in range(math.ceil(task.fit / task.experiment.statistics.shard_images))]


def _class_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    return [f"classes-{first:05d}" for first in range(0, task.classes, CLASSES_PER_UNIT)]


def _group_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    """Runs of equally large groups that go through one forward; all groups where one takes over from another.

    Without iterations there are no groups.
    """
    cfg = task.experiment.recover
    if cfg.iterations == 0:
        return _class_units(task, runtime, until)
    groups = recover.cut(cfg, task.classes, task.experiment.init.ipc)
    runs = [groups[:1]]
    for group in groups[1:]:
        alike = len(runs[-1][0].images) == len(group.images)
        if not cfg.matching.reset or (alike and len(runs[-1]) < runtime.groups_per_forward):
            runs[-1].append(group)
        else:
            runs.append([group])
    return [f"groups-{run[0].index:05d}-{run[-1].index:05d}" for run in runs]


def _page_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    """The pages that the student reads up to the share `until` of its training."""
    cfg = task.experiment.relabel
    per_epoch = views.steps_per_epoch(cfg, task.classes * task.experiment.init.ipc)
    steps = train.stop_step(task.experiment.evaluate, per_epoch, until)
    return [f"page-{page:05d}" for page in range(math.ceil(steps / relabel.page_steps(cfg)))]


# --- what a stage reads, where that depends on the experiment -----------------------------------------------

_RECOVER_QUIRKS = ("quirks.swap_class_patch", "quirks.double_conv_targets", "quirks.verifier_updates")


def _squeeze_reads(experiment: Experiment) -> tuple[str, ...]:
    """Without epochs, nothing of the training."""
    if experiment.squeeze.epochs == 0:
        return "split", "squeeze.observers", "squeeze.epochs", "precision"
    return "split", "squeeze", "seed", "precision"


def _init_reads(experiment: Experiment) -> tuple[str, ...]:
    precision = ("precision",) if experiment.init.kind in init.SCORED else ()
    return "split", "init", "quirks.alphabetical_init", "seed", *precision


def _init_inputs(experiment: Experiment) -> tuple[str, ...]:
    return ("ingest", "squeeze") if experiment.init.kind in init.SCORED else ("ingest",)


def _recover_reads(experiment: Experiment) -> tuple[str, ...]:
    """Without iterations, only how images are stored."""
    if experiment.recover.iterations == 0:
        return "recover.iterations", "recover.format", "recover.jpeg_quality"
    return "recover", *_RECOVER_QUIRKS, "seed", "precision"


def _recover_inputs(experiment: Experiment) -> tuple[str, ...]:
    return ("init",) if experiment.recover.iterations == 0 else ("squeeze", "statistics", "init")


_fingerprint = functools.lru_cache(maxsize=64)(data.fingerprint)  # the disk is asked once a process


def _dataset_files(experiment: Experiment) -> str:
    return _fingerprint(experiment.dataset)


_start_fingerprint = functools.lru_cache(maxsize=64)(data.start_fingerprint)


def _start_files(experiment: Experiment) -> str | None:
    return _start_fingerprint(experiment.init.path) if experiment.init.kind in init.FROM_FOLDER else None


def _observer_files(experiment: Experiment) -> str | None:
    """Of the weights that training starts from, and of networks of the user's own."""
    cfg = experiment.squeeze
    weights = None if cfg.weights is None else models.fingerprint(cfg.weights, cfg.observers)
    found = [each for each in (weights, models.plugins.fingerprint(cfg.observers)) if each is not None]
    return " ".join(found) or None


def _matcher_files(experiment: Experiment) -> str | None:
    own = matching.reference(experiment.recover.matching.loss)
    return models.plugins.fingerprint([own]) if own and matching.needed(experiment.recover) else None


def _student_files(experiment: Experiment) -> str | None:
    return models.plugins.fingerprint([experiment.evaluate.student])


def _looked_at(experiment: Experiment) -> Stage:
    """The stage that a diagnostic does anew."""
    return STAGES[DIAGNOSTICS[experiment.diagnose.what].like]


def _diagnose_reads(experiment: Experiment) -> tuple[str, ...]:
    own = (f"diagnose.{field.name}" for field in fields(Diagnose))
    return *own, *_looked_at(experiment).reads(experiment)


def _apply_reads(experiment: Experiment) -> tuple[str, ...]:
    """Each field by itself: a default that changes gives another name."""
    own = (f"apply.{field.name}" for field in fields(Apply))
    return *own, *APPLICATIONS[experiment.apply.name].reads(experiment)


def _apply_files(experiment: Experiment) -> str | None:
    return models.plugins.fingerprint(APPLICATIONS[experiment.apply.name].builds(experiment))


STAGES: dict[str, Stage] = {
    "ingest": Stage(
        2, always("dataset"), always(), _image_units, run_ingest, finish_ingest, files=_dataset_files
    ),
    "squeeze": Stage(
        1, _squeeze_reads, always("ingest"), _observer_units, run_squeeze, finish_squeeze,
        files=_observer_files,
    ),
    "statistics": Stage(
        5, always("split", "statistics", "seed", "precision"), always("ingest", "squeeze"),
        _shard_units, run_statistics, finish_statistics,
    ),
    "init": Stage(
        3, _init_reads, _init_inputs, _class_units, run_init, join_images, files=_start_files
    ),
    "recover": Stage(
        3, _recover_reads, _recover_inputs, _group_units, run_recover, join_images, files=_matcher_files
    ),
    "relabel": Stage(
        2, always("relabel", "evaluate.seeds", "precision"), always("squeeze", "recover"),
        _page_units, run_relabel,
    ),
    "evaluate": Stage(
        2, evaluate_reads, evaluate_inputs, lambda task, runtime, until: ["student"], run_evaluate,
        files=_student_files,
    ),
}  # fmt: skip
# What is done with a finished set. No stage above reads these, and only who asks for one (`upto`) gets it.
ENDS: dict[str, Stage] = {
    "sparse": Stage(
        2, sparse_reads, always("ingest"), lambda task, runtime, until: ["network"], run_sparse,
        files=lambda experiment: models.plugins.fingerprint([experiment.apply.network]),
    ),
    "diagnose": Stage(
        2, _diagnose_reads, lambda experiment: _looked_at(experiment).inputs(experiment),
        lambda task, runtime, until: DIAGNOSTICS[task.experiment.diagnose.what].units(task),
        lambda job: DIAGNOSTICS[job.experiment.diagnose.what].run(job),
        files=lambda experiment: _looked_at(experiment).files(experiment),
    ),
    "apply": Stage(
        2, _apply_reads, lambda experiment: APPLICATIONS[experiment.apply.name].inputs(experiment),
        lambda task, runtime, until: list(APPLICATIONS[task.experiment.apply.name].units(task)),
        lambda job: APPLICATIONS[job.experiment.apply.name].run(job), files=_apply_files,
    ),
}  # fmt: skip
ROWS: Mapping[str, Stage] = ChainMap(ENDS, STAGES)  # all of them, those of STAGES first
