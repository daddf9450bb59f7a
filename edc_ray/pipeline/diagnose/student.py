"""Along the training of one student."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edc_ray.core import train
from edc_ray.core.diagnostics import gradients, hessian, landscape
from edc_ray.core.losses import student_loss
from edc_ray.core.random import generator
from edc_ray.pipeline.diagnose.table import LOSS, NORM, RELATIVE, Rows, points
from edc_ray.pipeline.judge import pages, student_of
from edc_ray.pipeline.types import Job, Output, Step

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]  # of a network with these weights
COSINE = "cosine"


def _generator(job: Job, *about: str | int) -> torch.Generator:
    """Of this student's draws: others for another one, so that an interval over students has them in it."""
    return generator("diagnose", job.experiment.diagnose.seed, *job.experiment.evaluate.seeds, *about)


def _training(
    job: Job, student: train.Student, rows: Rows, wanted: Sequence[int]
) -> Iterator[nn.Module | Step]:
    """Trains as `evaluate` does; yields what would be judged at the wanted steps, and a Step after each.

    Judged are the averaged weights; before the first step, the initial ones. In eval mode, frozen.
    """
    if job.saved is None and 0 in wanted:
        yield copy.deepcopy(student.model).eval().requires_grad_(False)
    for step in student.advance(pages(job, student.step, student.total), student.total):
        if step in wanted:
            yield student.averaged()
        yield Step(step, student.total, lambda: student.pack() | rows.pack())


def _losses(job: Job, student: train.Student) -> dict[str, Loss]:
    """The student's own loss on its first views of the images, and the cross-entropy of real training ones.

    Its own loss: the mean over the batches, as many as have diagnose.images views, of the first page.
    """
    exp, real = job.experiment, job.inputs.real(job.task)
    count, batches, views = exp.diagnose.images, list[tuple[Tensor, Tensor | None, Tensor]](), 0
    for batch in student.batches(next(iter(pages(job, 0, 1)))):
        if views < count:
            batches.append(batch)
            views += len(batch[0])
    rows = torch.randperm(len(real.fit), generator=_generator(job, "images"))[:count]
    seen, labels = real.fit[rows], real.fit_labels[rows.to(real.fit_labels.device)]

    def own(model: nn.Module, weights: Mapping[str, Tensor]) -> Tensor:
        each = [
            student_loss(exp.evaluate, functional_call(model, dict(weights), (pixels,)), soft, target)
            for pixels, soft, target in batches
        ]
        return torch.stack(each).mean()

    def on_real(model: nn.Module, weights: Mapping[str, Tensor]) -> Tensor:
        return functional.cross_entropy(functional_call(model, dict(weights), (seen,)), labels)

    return {"its own loss, its set": own, "cross-entropy, real": on_real}


def sharpness(job: Job) -> Iterator[Step | Output]:
    """Of the Hessian in all weights of the student; also over the loss, as a lower one is flatter anyway."""
    cfg, student, rows = job.experiment.diagnose, student_of(job), Rows(job.saved)
    losses = _losses(job, student)
    for item in _training(job, student, rows, points(student.total, cfg.points)):
        if isinstance(item, Step):
            yield item
            continue
        weights, share = dict(item.named_parameters()), student.step / student.total
        at = list(weights.values())
        vectors = list(hessian.probes(at, cfg.probes, _generator(job, "probes")))
        for series, loss in losses.items():

            def of(moved: list[Tensor], loss: Loss = loss) -> Tensor:
                return loss(item, dict(zip(weights, moved, strict=True)))  # noqa: B023

            norm, error = hessian.frobenius(hessian.squared_products([of], at, vectors))
            value = float(loss(item, weights))
            rows.add(NORM, series, norm, error, x=share)
            rows.add(LOSS, series, value, x=share)
            rows.add(RELATIVE, series, norm / value, error / value, x=share)
    yield rows.output()


def cosines(job: Job) -> Iterator[Step | Output]:
    """Of the gradients of random batches with those of all images, at initial and at trained weights."""
    student, rows = student_of(job), Rows(job.saved)
    for item in _training(job, student, rows, (0, student.total)):
        if isinstance(item, Step):
            yield item
        else:
            _cosines(job, item, "trained" if student.step else "initial", rows)
    yield rows.output()


def _cosines(job: Job, model: nn.Module, state: str, rows: Rows) -> None:
    """Batches of the set, of the real training images, and of as many real ones of each class as can be."""
    cfg, real = job.experiment.diagnose, job.inputs.real(job.task)
    images, labels = job.inputs.start_images(job.task)
    gradient = partial(
        gradients.gradient, model, model.state_dict(), together=job.inputs.runtime.forward_images
    )
    of_real = partial(gradient, real.fit, real.fit_labels)
    of_set = partial(gradient, images, labels)
    rng = _generator(job, "global")
    goal = of_real(torch.randperm(len(real.fit), generator=rng)[: cfg.global_images])
    own = of_set(torch.arange(len(images)))
    for source, of, classes, goals in (
        ("real", of_real, None, [goal]),
        ("class-balanced real", of_real, real.fit_labels, [goal]),
        ("condensed", of_set, None, [goal, own]),
    ):
        count = len(images) if of is of_set else len(real.fit)
        for size in sorted({min(size, count) for size in cfg.batch_sizes}):
            rng, draws = _generator(job, source, size), 2 if size == count else cfg.draws
            batches = [gradients.draw(count, size, rng, classes) for _ in range(draws)]
            found = gradients.batch_cosines(of, batches, goals)
            for i, to in enumerate(("all real", "all condensed")[: len(goals)]):
                mean, error = found[:, i].mean(), found[:, i].std() / draws**0.5
                rows.add(COSINE, f"{source} to {to}, {state}", mean, error, x=size)


def slices(job: Job) -> Iterator[Step | Output]:
    """Slices through the trained student: a line along the first direction, and the plane of both."""
    cfg, student, rows = job.experiment.diagnose, student_of(job), Rows(job.saved)
    losses = _losses(job, student)
    for item in _training(job, student, rows, (student.total,)):
        if isinstance(item, Step):
            yield item
            continue
        weights = dict(item.named_parameters())
        ways = [landscape.direction(weights, _generator(job, "direction", i)) for i in range(2)]
        line = cfg.radius * torch.arange(-cfg.steps, cfg.steps + 1) / cfg.steps  # 0 is in it
        plane = torch.cartesian_prod(line, line)
        for series, loss in losses.items():
            found = landscape.values(partial(loss, item), weights, ways, plane)
            for place, value in zip(plane.tolist(), found.tolist(), strict=True):
                rows.add(LOSS, series, value, x=place[0], y=place[1])
    yield rows.output()
