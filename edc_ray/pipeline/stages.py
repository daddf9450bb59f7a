"""The stages of EDC: which units each has and what a unit does. One row of STAGES is one stage.

A stage's function is a generator: it yields `Step`s where it can be interrupted and one `Output` at the end.
It reads its inputs through `job.inputs` and touches nothing else.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from edc_ray.config import Runtime
from edc_ray.core import data, init, models, recover, relabel, stats, train, views
from edc_ray.core.random import generator, seed_of
from edc_ray.pipeline.pages import read_page, table_of
from edc_ray.pipeline.types import Job, Output, Stage, Step, Task, Tensors

FORWARD_IMAGES = 256  # images in one forward of the statistics pass; part of the numbers' last bits
CLASSES_PER_UNIT = 100  # of init, whose classes are independent
VIEW_BYTES = 25  # of one image in a stored view, beside its logits


# --- ingest -------------------------------------------------------------------------------------------------


def run_ingest(job: Job) -> Iterator[Step | Output]:
    images = data.read(job.experiment.dataset)
    tensors = {name: getattr(images, name) for name in ("train", "train_labels", "test", "test_labels")}
    yield Output(tensors, meta={"mean": images.mean, "std": images.std, "classes": images.classes})


# --- squeeze ------------------------------------------------------------------------------------------------


def run_squeeze(job: Job) -> Iterator[Step | Output]:
    real, cfg, name, seed = job.inputs.real(job.task), job.experiment.squeeze, job.unit, job.experiment.seed
    model = models.build(name, len(real.classes), real.size, seed_of("squeeze", seed, name)).to(
        real.fit.device
    )
    for epoch, pack in train.fit_observer(cfg, model, real.fit, real.fit_labels, (seed, name), job.saved):
        yield Step(epoch, cfg.epochs, pack)
    logits = _finite(train.predict(model.eval(), real.judge), name)
    meta = {"accuracy": train.top1(logits, real.judge_labels), "split": real.judged}
    yield Output({f"model.{k}": v for k, v in model.state_dict().items()} | {"logits": logits}, meta=meta)


def _finite(logits: Tensor, who: str) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(f"the logits of {who} are not finite")
    return logits


def finish_squeeze(job: Job) -> Iterator[Step | Output]:
    """The ensemble: mean logits, as the labellers use them."""
    real, names = job.inputs.real(job.task), job.experiment.squeeze.observers
    units = [job.inputs.unit(job.task.stage, job.task.key, name) for name in names]
    logits = torch.stack([tensors["logits"] for tensors, _ in units]).mean(0)
    labels = real.judge_labels.cpu()
    accuracy = {name: meta["accuracy"] for name, (_, meta) in zip(names, units, strict=True)}
    meta = {
        "accuracy": accuracy,
        "ensemble": train.top1(logits, labels),
        "split": real.judged,
        "judged": len(labels),
    }
    yield Output({"logits": logits}, meta=meta | {"chance": 1 / len(real.classes)})


# --- statistics ---------------------------------------------------------------------------------------------


def run_statistics(job: Job) -> Iterator[Step | Output]:
    """One shard of the real images through all observers: one read and one augmentation for all."""
    cfg, real = job.experiment.statistics, job.inputs.real(job.task)
    observers = job.inputs.observers(job.task)
    shard = int(job.unit.removeprefix("shard-"))
    picked = slice(shard * cfg.shard_images, (shard + 1) * cfg.shard_images)
    images, labels = real.fit[picked], real.fit_labels[picked]
    pixels = views.augment(images, cfg.augment, generator("statistics", job.experiment.seed, shard))
    sums: dict[str, stats.Moments] = {}
    chunks = list(zip(pixels.split(FORWARD_IMAGES), labels.split(FORWARD_IMAGES), strict=True))
    for done, (chunk, chunk_labels) in enumerate(chunks):
        for name, model in observers.items():
            with torch.no_grad(), models.capture(model) as inputs:
                model(chunk)
            for layer in models.layers(model):
                moments = stats.class_moments(inputs[layer.name], chunk_labels, len(real.classes), cfg.patch)
                where = f"{name}/{layer.name}"
                sums[where] = sums[where] + moments if where in sums else moments
        yield Step(done + 1, len(chunks))
    yield Output(_flat(sums), meta={"images": len(images)})


def finish_statistics(job: Job) -> Iterator[Step | Output]:
    """The sum of the shards, folded in their order so that the bits do not depend on who came first."""
    total: dict[str, stats.Moments] = {}
    for unit in job.inputs.unit_names(job.task):
        part = moments_of(job.inputs.unit(job.task.stage, job.task.key, unit)[0])
        total = {where: total[where] + m for where, m in part.items()} if total else part
    yield Output(_flat(total))


def _flat(sums: dict[str, stats.Moments]) -> Tensors:
    return {f"{where}:{f}": getattr(m, f) for where, m in sums.items() for f in ("count", "channel", "patch")}


def moments_of(tensors: Tensors) -> dict[str, stats.Moments]:
    """'observer/layer' -> Moments, from a unit of statistics."""
    places = dict.fromkeys(name.rsplit(":", 1)[0] for name in tensors)
    return {
        at: stats.Moments(*(tensors[f"{at}:{f}"] for f in ("count", "channel", "patch"))) for at in places
    }


# --- init and recover ---------------------------------------------------------------------------------------


def run_init(job: Job) -> Iterator[Step | Output]:
    real, exp = job.inputs.real(job.task), job.experiment
    first = int(job.unit.removeprefix("classes-"))
    classes = range(first, min(first + CLASSES_PER_UNIT, len(real.classes)))
    seeds = (exp.seed, exp.init.seed)
    yield Output(
        {"images": init.initial_images(exp.init.kind, *real.fit_bytes, classes, exp.init.ipc, seeds)}
    )


def run_recover(job: Job) -> Iterator[Step | Output]:
    exp, real = job.experiment, job.inputs.real(job.task)
    first, last = (int(part) for part in job.unit.removeprefix("groups-").split("-"))
    groups = recover.cut(len(real.classes), exp.recover.classes_per_group)[first : last + 1]
    start = job.inputs.all("init", job.task)["images"]
    start = start[groups[0].classes.start * exp.init.ipc : groups[-1].classes.stop * exp.init.ipc]
    if exp.recover.iterations == 0:
        yield Output({"images": start})
        return
    observers = job.inputs.observers(job.task)
    moments = moments_of(job.inputs.all("statistics", job.task))
    per_observer = [
        {layer.name: moments[f"{name}/{layer.name}"] for layer in models.layers(model)}
        for name, model in observers.items()
    ]
    problem = recover.problem(
        exp, groups, list(observers.values()), per_observer, (real.mean, real.std), real.fit.device
    )
    state = recover.begin(problem, start, job.saved)
    for now in recover.synthesize(problem, state):
        yield Step(now.iteration, exp.recover.iterations, now.pack)
    yield Output({"images": recover.finished(problem, state)})


def join_images(job: Job) -> Iterator[Step | Output]:
    """The units' images in class-major order, with their labels."""
    units = [
        job.inputs.unit(job.task.stage, job.task.key, name)[0] for name in job.inputs.unit_names(job.task)
    ]
    images = torch.cat([tensors["images"] for tensors in units])
    ipc = job.experiment.init.ipc
    labels = torch.arange(len(images) // ipc).repeat_interleave(ipc)
    yield Output({"images": images, "labels": labels}, meta={"images": len(images), "bytes": images.nbytes})


# --- relabel and evaluate -----------------------------------------------------------------------------------


def run_relabel(job: Job) -> Iterator[Step | Output]:
    page = int(job.unit.removeprefix("page-"))
    yield Output(table=table_of(_label(job, page)))


def _label(job: Job, page: int) -> relabel.Page:
    exp = job.experiment
    observers = job.inputs.observers(job.task)
    chosen = [observers[name] for name in exp.relabel.observers or exp.squeeze.observers]
    (seed,) = exp.evaluate.seeds
    return relabel.label_page(exp.relabel, chosen, job.inputs.start_images(job.task)[0], seed, page)


def run_evaluate(job: Job) -> Iterator[Step | Output]:
    """One student with one seed; inline or stored labels give it the same numbers."""
    exp, cfg, real = job.experiment, job.experiment.evaluate, job.inputs.real(job.task)
    images, labels = job.inputs.start_images(job.task)
    (seed,) = cfg.seeds
    per_epoch = views.steps_per_epoch(exp.relabel, len(images))
    model = models.build(cfg.student, len(real.classes), real.size, seed_of("student", seed)).to(
        images.device
    )
    student = train.Student(cfg, model, images, labels, per_epoch, seed, job.saved)
    total, stop = train.total_steps(cfg, per_epoch), train.stop_step(cfg, per_epoch, job.until)
    reading = [step for step in train.report_steps(cfg, per_epoch) if step > student.step]
    reports = list(job.saved_reports)
    for step in student.advance(_pages(job, student.step, stop), stop):
        if step == reading[0]:
            logits = _finite(student.predict(real.judge), f"the student at step {step}")
            reading.pop(0)
            reports.append((round(1000 * step / total), train.top1(logits, real.judge_labels)))
        yield Step(step, total, student.pack, tuple(reports))
        if step == stop:
            break
    if stop < total:
        return
    logits = student.predict(real.judge)  # again: a resumed unit may have no step left to make
    label_bytes = cfg.epochs * len(images) * (2 * len(real.classes) + VIEW_BYTES)
    meta = {"reports": reports, "accuracy": reports[-1][1], "split": real.judged, "judged": len(real.judge)}
    yield Output({"logits": logits.half()}, meta=meta | {"label_bytes": label_bytes, "steps": total})


def _pages(job: Job, step: int, stop: int) -> Iterator[relabel.Page]:
    """The pages of training steps `step` to `stop`: read where they are stored, else labelled here."""
    steps = relabel.page_steps(job.experiment.relabel)
    for page in range(step // steps, math.ceil(stop / steps)):
        stored = job.inputs.label_table(job.task, f"page-{page:05d}")
        yield _label(job, page) if stored is None else read_page(stored)


# --- the table ----------------------------------------------------------------------------------------------


def _observer_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    return list(task.experiment.squeeze.observers)


def _shard_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    return [f"shard-{i:05d}" for i in range(math.ceil(task.fit / task.experiment.statistics.shard_images))]


def _class_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    return [f"classes-{first:05d}" for first in range(0, task.classes, CLASSES_PER_UNIT)]


def _group_units(task: Task, runtime: Runtime, until: float) -> list[str]:
    """Runs of equally large groups that go through one forward."""
    runs: list[list[recover.Group]] = []
    for group in recover.cut(task.classes, task.experiment.recover.classes_per_group):
        if (
            runs
            and len(runs[-1]) < runtime.groups_per_forward
            and len(runs[-1][0].classes) == len(group.classes)
        ):
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


STAGES: dict[str, Stage] = {
    "ingest": Stage(1, ("dataset",), (), lambda task, runtime, until: ["all"], run_ingest),
    "squeeze": Stage(
        1, ("split", "squeeze", "seed", "precision"), ("ingest",),
        _observer_units, run_squeeze, finish_squeeze,
    ),
    "statistics": Stage(
        1, ("split", "statistics", "seed", "precision"), ("ingest", "squeeze"),
        _shard_units, run_statistics, finish_statistics,
    ),
    "init": Stage(1, ("split", "init", "seed"), ("ingest",), _class_units, run_init, join_images),
    "recover": Stage(
        1, ("recover", "quirks", "seed", "precision"), ("squeeze", "statistics", "init"),
        _group_units, run_recover, join_images,
    ),
    "relabel": Stage(
        1, ("relabel", "evaluate.seeds", "precision"), ("squeeze", "recover"), _page_units, run_relabel
    ),
    "evaluate": Stage(
        1, ("evaluate", "precision"), ("ingest", "recover", "relabel"),
        lambda task, runtime, until: ["student"], run_evaluate,
    ),
}  # fmt: skip
