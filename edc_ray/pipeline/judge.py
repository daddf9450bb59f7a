"""Stages that judge the condensed images: relabel, evaluate.

A stage's function is a generator: it yields `Step`s where it can be interrupted and one `Output` at the end.
It reads its inputs through `job.inputs` and touches nothing else.
"""

import math
from collections.abc import Iterator
from dataclasses import fields

from torch import Tensor, nn

from edc_ray.config import Experiment, Relabel
from edc_ray.core import fit, models, relabel, train
from edc_ray.core.random import seed_of
from edc_ray.pipeline.pages import read_page, table_of, view_bytes
from edc_ray.pipeline.types import Job, Output, Report, Step, Tensors, finite

LABELLING = ("observers", "observer_weights", "teacher_bn")  # fields of Relabel that no view depends on
_VIEWS = tuple(f"relabel.{field.name}" for field in fields(Relabel) if field.name not in LABELLING)


def hard(experiment: Experiment) -> bool:
    """Whether students read no soft labels; then they draw the views themselves."""
    return experiment.evaluate.loss == "hard"


def evaluate_reads(experiment: Experiment) -> tuple[str, ...]:
    views = _VIEWS if hard(experiment) else ()
    return "evaluate", *views, "quirks.alrs_weights_only", "precision"


def evaluate_inputs(experiment: Experiment) -> tuple[str, ...]:
    return ("ingest", "recover") if hard(experiment) else ("ingest", "recover", "relabel")


# --- relabel and evaluate -----------------------------------------------------------------------------------


def run_relabel(job: Job) -> Iterator[Step | Output]:
    page = int(job.unit.removeprefix("page-"))
    yield Output(table=table_of(_labelled(job, job.inputs.start_images(job.task)[0], page)))


def student_of(job: Job, model: nn.Module | None = None) -> train.Student:
    """Of the condensed images, where its checkpoint left it. model: in place of `evaluate.student`."""
    exp, real = job.experiment, job.inputs.real(job.task)
    images, labels = job.inputs.start_images(job.task)
    if model is None:
        seed = seed_of("student", *exp.evaluate.seeds)
        model = models.build(exp.evaluate.student, len(real.classes), real.size, seed)
    return train.Student(exp, model.to(images.device), images, labels, (real.mean, real.std), job.saved)


def label(job: Job, images: Tensor, page: int) -> relabel.Page:
    """A page of views of these images, labelled by the observers; without labels where students read none."""
    exp, (seed,) = job.experiment, job.experiment.evaluate.seeds
    if hard(exp):
        drawn = relabel.page_views(exp.relabel, len(images), images.shape[-1], seed, page)
        return relabel.Page(page * relabel.page_steps(exp.relabel), drawn, ())
    return _labelled(job, images, page)


def _labelled(job: Job, images: Tensor, page: int) -> relabel.Page:
    exp, real, (seed,) = job.experiment, job.inputs.real(job.task), job.experiment.evaluate.seeds
    observers = job.inputs.observers(job.task)
    chosen = [observers[name] for name in exp.relabel.observers or exp.squeeze.observers]
    together = job.inputs.runtime.forward_images
    made = relabel.label_page(exp.relabel, chosen, images, (real.mean, real.std), seed, page, together)
    job.work["label_views"] += sum(len(view.ids) for view in made.views)
    return made


def run_evaluate(job: Job) -> Iterator[Step | Output]:
    """One student with one seed; inline or stored labels give it the same numbers."""
    cfg, student, judge = job.experiment.evaluate, student_of(job), job.inputs.judge(job.task)
    together = job.inputs.runtime.forward_images
    total, stop = student.total, train.stop_step(cfg, student.per_epoch, job.until)
    reading = [step for step in train.report_steps(cfg, student.per_epoch) if step > student.step]
    reports, kept, logits = list(job.saved_reports), _kept(job), None
    for step in student.advance(pages(job, student.step, stop), stop):
        if step == reading[0]:
            reading.pop(0)
            logits = finite(student.predict(judge.images, together), f"the student at step {step}")
            accuracy = fit.top1(logits, judge.labels)
            if cfg.select == "best_val":  # what counts if the training ended here
                best = reports[-1][1] if reports else -1.0
                if accuracy > best:
                    kept["best.logits"] = logits
                accuracy = max(accuracy, best)
            reports.append((round(1000 * step / total), accuracy))
        yield Step(step, total, lambda: student.pack() | kept, tuple(reports))
        if step == stop:
            break
    if stop < total:
        return
    if logits is None:  # resumed behind the last step
        logits = student.predict(judge.images, together)
    logits = kept.get("best.logits", logits)
    yield Output({"logits": logits.half()}, meta=_facts(job, reports, len(student.images)) | {"steps": total})


def _kept(job: Job) -> Tensors:
    """Of `select: best_val`, the logits of the best report so far."""
    return {name: value for name, value in (job.saved or {}).items() if name == "best.logits"}


def _facts(job: Job, reports: list[Report], images: int) -> dict[str, object]:
    """The accuracy is the one that `select` says. A maximum over looks at test is told, never used (B25)."""
    cfg, real, judge = job.experiment.evaluate, job.inputs.real(job.task), job.inputs.judge(job.task)
    image_bytes = 2 * len(real.classes) + view_bytes(job.experiment.relabel)
    label_bytes = cfg.epochs * images * image_bytes if "relabel" in dict(job.task.inputs) else 0
    facts = {
        "reports": reports,
        "accuracy": reports[-1][1],
        "split": judge.split,
        "judged": len(judge.images),
    }
    if cfg.report_epochs is not None and judge.split == "test":
        facts["maximum_over_reports_on_test"] = max(value for _, value in reports)
    return facts | {"label_bytes": label_bytes}


def pages(job: Job, step: int, stop: int) -> Iterator[relabel.Page]:
    """The pages of training steps `step` to `stop`: read where they are stored, else labelled here.

    Those of a student with hard labels have views, but no logits.
    """
    steps = relabel.page_steps(job.experiment.relabel)
    numbers = range(step // steps, math.ceil(stop / steps))
    images = job.inputs.start_images(job.task)[0]
    if "relabel" not in dict(job.task.inputs):
        yield from (label(job, images, page) for page in numbers)
        return
    tables = job.inputs.label_tables(job.task, [f"page-{page:05d}" for page in numbers])
    for page, stored in zip(numbers, tables, strict=True):
        yield label(job, images, page) if stored is None else read_page(stored)
