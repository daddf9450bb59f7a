"""Stages that judge the condensed images: relabel, evaluate.

A stage's function is a generator: it yields `Step`s where it can be interrupted and one `Output` at the end.
It reads its inputs through `job.inputs` and touches nothing else.
"""

import math
from collections.abc import Iterator

from edc_ray.core import fit, models, relabel, train, views
from edc_ray.core.random import seed_of
from edc_ray.pipeline.pages import read_page, table_of
from edc_ray.pipeline.types import Job, Output, Step, finite

VIEW_BYTES = 25  # of one image in a stored view, beside its logits


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
            logits = finite(student.predict(real.judge), f"the student at step {step}")
            reading.pop(0)
            reports.append((round(1000 * step / total), fit.top1(logits, real.judge_labels)))
        yield Step(step, total, student.pack, tuple(reports))
        if step == stop:
            break
    if stop < total:
        return
    logits = student.predict(real.judge)  # again: a resumed unit may have no step left to make
    soft = "relabel" in dict(job.task.inputs)
    label_bytes = cfg.epochs * len(images) * (2 * len(real.classes) + VIEW_BYTES) if soft else 0
    meta = {"reports": reports, "accuracy": reports[-1][1], "split": real.judged, "judged": len(real.judge)}
    yield Output({"logits": logits.half()}, meta=meta | {"label_bytes": label_bytes, "steps": total})


def _pages(job: Job, step: int, stop: int) -> Iterator[relabel.Page]:
    """The pages of training steps `step` to `stop`: read where they are stored, else labelled here.

    Those of a student with hard labels have views, but no logits.
    """
    cfg = job.experiment.relabel
    steps = relabel.page_steps(cfg)
    for page in range(step // steps, math.ceil(stop / steps)):
        if "relabel" not in dict(job.task.inputs):
            images, (seed,) = job.inputs.start_images(job.task)[0], job.experiment.evaluate.seeds
            drawn = relabel.page_views(cfg, len(images), images.shape[-1], seed, page)
            yield relabel.Page(page * steps, drawn, ())
            continue
        stored = job.inputs.label_table(job.task, f"page-{page:05d}")
        yield _label(job, page) if stored is None else read_page(stored)
