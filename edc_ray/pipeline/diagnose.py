"""DIAGNOSTICS: looks at how a set is made and at what students learn from it; the stage `diagnose`.

A row's function is a generator like that of a stage. It leaves a table of `COLUMNS`: a unit is a group of the
synthesis, or a student.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edc_ray.core import matching, recover, stats, train
from edc_ray.core.diagnostics import features, gradients, hessian, landscape, variance
from edc_ray.core.losses import student_loss
from edc_ray.core.random import generator
from edc_ray.pipeline.condense import problem_of
from edc_ray.pipeline.judge import pages, student_of
from edc_ray.pipeline.observe import moments_of
from edc_ray.pipeline.types import Job, Output, Run, Step, Task, Tensors

# quantity: what the value is, in the words of a figure's axis. series: of what. x, y: where. error: standard
# error inside the unit, where the value is a mean over draws.
COLUMNS = {
    "quantity": pa.string(), "series": pa.string(),
    "x": pa.float64(), "y": pa.float64(), "value": pa.float64(), "error": pa.float64(),
}  # fmt: skip
Row = tuple[str, str, float, float, float, float]
NORM, LOSS, COSINE, APART = "Hessian norm", "loss", "cosine", "feature distance"
MOVED, VARIES, GAP = "distance to the class", "class variance", "loss gap"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A row. like: the stage that it does anew, whose fields and inputs it reads."""

    like: str
    units: Callable[[Task], list[str]]
    run: Run


def _groups(task: Task) -> list[str]:
    cfg = task.experiment
    found = recover.cut(cfg.recover, task.classes, cfg.init.ipc)
    return [f"group-{group.index:05d}" for group in found[: cfg.diagnose.groups]]


def _student(task: Task) -> list[str]:
    return ["student"]


def points(total: int, count: int) -> list[int]:
    """`count` of 1 ... total, evenly spaced; the last is total."""
    return sorted({max(1, round(total * (i + 1) / count)) for i in range(count)})


class _Rows:
    """What was found so far; part of every checkpoint."""

    def __init__(self, saved: Tensors | None) -> None:
        kept = json.loads(bytes(saved["rows"].tolist())) if saved else []
        self.found: list[Row] = [tuple(row) for row in kept]

    def add(
        self, quantity: str, series: str, value: Any, error: float = 0.0, x: float = 0.0, y: float = 0.0
    ) -> None:
        self.found.append((quantity, series, float(x), float(y), float(value), float(error)))

    def pack(self) -> Tensors:
        return {"rows": torch.tensor(list(json.dumps(self.found).encode()), dtype=torch.uint8)}

    def output(self) -> Output:
        columns = zip(*self.found, strict=True)
        arrays = [pa.array(values, kind) for values, kind in zip(columns, COLUMNS.values(), strict=True)]
        return Output(table=pa.table(arrays, names=list(COLUMNS)))


# --- along the synthesis ------------------------------------------------------------------------------------

Look = Callable[[recover.State, _Rows], None]
Prepare = Callable[[Job, recover.Problem], Look]


def _synthesis(prepare: Prepare, job: Job) -> Iterator[Step | Output]:
    """The iterations of one group, as `recover` makes them, with a look before the first and at each point.

    The group is alone: where the running statistics are not reset (B6), it does not take them over.
    """
    exp, rows = job.experiment, _Rows(job.saved)
    groups = recover.cut(exp.recover, job.task.classes, exp.init.ipc)
    group = groups[int(job.unit.removeprefix("group-"))]
    problem = problem_of(job, [group])
    start = job.inputs.all("init", job.task)["images"][group.images.start : group.images.stop]
    state, look = recover.begin(problem, start, job.saved), prepare(job, problem)
    if job.saved is None:
        look(state, rows)
    wanted = points(exp.recover.iterations, exp.diagnose.points)
    for _ in recover.synthesize(problem, state):
        if state.iteration in wanted:
            look(state, rows)
        yield Step(state.iteration, exp.recover.iterations, lambda: state.pack() | rows.pack())
    yield rows.output()


def _losses(problem: recover.Problem, images: Tensor) -> tuple[Tensor, Tensor]:
    """(the matching loss, the cross-entropy) of the images as they are: no crop, no average over iterations;
    the mean over the observers by their weights.
    """
    cfg, matched, entropy = problem.cfg.matching, [], []
    for k, weight in enumerate(problem.weights):
        logits, now = recover.measured(problem, k, images, by_run=True)
        entropy.append(weight * functional.cross_entropy(logits, problem.labels.flatten()))
        if now is not None:
            matched.append(weight * matching.loss(now, problem.targets[k], cfg).sum())
    nothing = images.new_zeros(())
    return sum(matched, nothing) / len(problem.weights), sum(entropy, nothing) / len(problem.weights)


def _objective(problem: recover.Problem, images: Tensor) -> Tensor:
    matched, entropy = _losses(problem, images)
    return entropy + problem.cfg.matching.weight * matched


def _probed(job: Job, loss: hessian.Loss, images: Tensor) -> tuple[float, float]:
    """Of the Hessian in the normalised pixels of the group, (norm, error); the same vectors each time."""
    cfg = job.experiment.diagnose
    vectors = hessian.probes([images], cfg.probes, generator("diagnose", cfg.seed, job.unit))
    return hessian.frobenius(hessian.squared_products(loss, [images], vectors))


def _image_sharpness(job: Job, problem: recover.Problem) -> Look:
    def look(state: recover.State, rows: _Rows) -> None:
        for series, loss in (
            ("matching loss", lambda at: _losses(problem, at[0])[0]),
            ("matching and cross-entropy", lambda at: _objective(problem, at[0])),
        ):
            rows.add(NORM, series, *_probed(job, loss, state.images), x=state.iteration)

    return look


def _progress(job: Job, problem: recover.Problem) -> Look:
    """The losses, and how far the images are from their classes in the features of each observer."""
    real, together = job.inputs.real(job.task), job.inputs.runtime.forward_images
    labels = problem.labels.flatten()
    members = torch.isin(real.fit_labels, labels)
    near, near_labels = real.fit.subset(members.nonzero()[:, 0].cpu()), real.fit_labels[members]
    seen = [features.features(model, near, together) for model in problem.observers]

    @torch.no_grad()
    def look(state: recover.State, rows: _Rows) -> None:
        matched, entropy = _losses(problem, state.images)
        rows.add(LOSS, "matching loss", matched, x=state.iteration)
        rows.add(LOSS, "cross-entropy", entropy, x=state.iteration)
        apart = []
        for model, theirs in zip(problem.observers, seen, strict=True):
            ours = features.features(model, state.images.detach(), together)
            apart.append(features.class_distances(ours, labels, theirs, near_labels).mean())
        rows.add(APART, "to the class", torch.stack(apart).mean(), x=state.iteration)

    return look


def _transport(job: Job, problem: recover.Problem) -> Look:
    """From the images of a class to random real ones: in pixels, and in the features of each observer; 1 =
    the mean squared distance of these real images to their mean.
    """
    real, together, cfg = (
        job.inputs.real(job.task),
        job.inputs.runtime.forward_images,
        job.experiment.diagnose,
    )
    labels, nets = problem.labels.flatten(), [nn.Identity(), *problem.observers]
    theirs = dict[int, list[Tensor]]()
    for label, ours in zip(*(part.tolist() for part in labels.unique(return_counts=True)), strict=True):
        ids = (real.fit_labels == label).nonzero()[:, 0].cpu()
        drawn = ids[torch.randperm(len(ids), generator=generator("diagnose", cfg.seed, label))]
        most = max(min(cfg.images, len(ids)), ours) // ours * ours  # as many for each of ours
        theirs[label] = [features.features(net, real.fit.subset(drawn[:most]), together) for net in nets]

    def look(state: recover.State, rows: _Rows) -> None:
        found = []
        for net, column in zip(nets, zip(*theirs.values(), strict=True), strict=True):
            ours = features.features(net, state.images.detach(), together)
            ratios = [
                features.transport(ours[labels == label], seen) / float(seen.var(0, correction=0).sum())
                for label, seen in zip(theirs, column, strict=True)
            ]
            found.append(sum(ratios) / len(ratios))
        rows.add(MOVED, "pixels", found[0], x=state.iteration)
        rows.add(MOVED, "features", sum(found[1:]) / len(found[1:]), x=state.iteration)

    return look


def _class_variance(job: Job, problem: recover.Problem) -> Look:
    """Of the inputs of the matched layers, the mean over classes, layers and observers."""
    every, names = moments_of(job.inputs.all("statistics", job.task)), job.experiment.recover.observers
    named = names or tuple(job.inputs.observers(job.task))
    labels = problem.labels.flatten()

    def look(state: recover.State, rows: _Rows) -> None:
        found = []
        for name, model, goal in zip(named, problem.observers, problem.targets, strict=True):
            layers = [layer.name for layer in goal.layout.layers]
            if not layers:
                continue
            real = {layer: every[f"{name}/{layer}"] for layer in layers}
            images = state.images.detach()
            ours = stats.observe(model, images, labels, job.task.classes, problem.patch)
            pair = variance.class_variance(ours, real, layers, labels.unique())
            found.append(torch.stack([each.mean() for each in pair]))
        ratio, share = torch.stack(found).mean(0)
        rows.add(VARIES, "of that of real images", ratio, x=state.iteration)
        rows.add(VARIES, "channels with more than real images", share, x=state.iteration)

    return look


def _smoothing(job: Job, problem: recover.Problem) -> Look:
    """Between the images and their average over the iterations, with what bounds it."""

    def loss(at: list[Tensor]) -> Tensor:
        return _objective(problem, at[0])

    def look(state: recover.State, rows: _Rows) -> None:
        norm, _ = _probed(job, loss, state.images)
        gap, bound = hessian.second_order(loss, [state.images], [state.averaged], norm)
        rows.add(GAP, "images to averaged images", gap, x=state.iteration)
        rows.add(GAP, "its bound", bound, x=state.iteration)

    return look


# --- along the training of a student ------------------------------------------------------------------------


def _training(job: Job, student: train.Student, rows: _Rows, wanted: Sequence[int]) -> Iterator[bool | Step]:
    """Trains as `evaluate` does; yields True at the wanted steps, and a Step after each."""
    if job.saved is None and 0 in wanted:
        yield True
    for step in student.advance(pages(job, student.step, student.total), student.total):
        if step in wanted:
            yield True
        yield Step(step, student.total, lambda: student.pack() | rows.pack())


def _weights(student: train.Student) -> Tensors:
    """What is judged: the averaged weights and buffers; before the first step, the initial ones."""
    live = {name: value.detach() for name, value in student.model.state_dict().items()}
    return live | (student.averages.value(student.step) if student.step else {})


def _by_kind(student: train.Student) -> tuple[Tensors, Tensors]:
    """(weights, buffers) of `_weights`."""
    every, names = _weights(student), [name for name, _ in student.model.named_parameters()]
    return {name: every[name] for name in names}, {n: v for n, v in every.items() if n not in names}


def _student_losses(job: Job, student: train.Student) -> dict[str, Callable[[Tensors], Tensor]]:
    """The student's own loss on its first views of the condensed images, and the cross-entropy of real
    training images; in eval mode, as functions of weights and buffers.
    """
    exp, real = job.experiment, job.inputs.real(job.task)
    count, rng = exp.diagnose.images, generator("diagnose", exp.diagnose.seed, "images")
    parts = student.batches(next(iter(pages(job, 0, 1))))
    parts = parts[: -(-count // exp.relabel.batch_size)]
    pixels, target = torch.cat([part[0] for part in parts]), torch.cat([part[2] for part in parts])
    labelled = [part[1] for part in parts if part[1] is not None]
    soft = torch.cat(labelled) if labelled else None  # None: hard labels
    rows = torch.randperm(len(real.fit), generator=rng)[:count]
    seen, labels = real.fit[rows], real.fit_labels[rows.to(real.fit_labels.device)]
    model = student.model

    def own(tensors: Tensors) -> Tensor:
        return student_loss(exp.evaluate, functional_call(model, tensors, (pixels,)), soft, target)

    def on_real(tensors: Tensors) -> Tensor:
        return functional.cross_entropy(functional_call(model, tensors, (seen,)), labels)

    return {"its own loss, condensed": own, "cross-entropy, real": on_real}


def _student_sharpness(job: Job) -> Iterator[Step | Output]:
    """Of the Hessian in all weights of the student."""
    cfg, student, rows = job.experiment.diagnose, student_of(job), _Rows(job.saved)
    losses = _student_losses(job, student)
    for item in _training(job, student, rows, points(student.total, cfg.points)):
        if isinstance(item, Step):
            yield item
            continue
        weights, buffers = _by_kind(student)
        names, at = list(weights), list(weights.values())
        share = student.step / student.total
        student.model.eval()
        for series, loss in losses.items():

            def of(moved: list[Tensor], loss: Callable[[Tensors], Tensor] = loss) -> Tensor:
                return loss(dict(zip(names, moved, strict=True)) | buffers)  # noqa: B023

            vectors = hessian.probes(at, cfg.probes, generator("diagnose", cfg.seed, job.unit))
            norm, error = hessian.frobenius(hessian.squared_products(of, at, vectors))
            rows.add(NORM, series, norm, error, x=share)
            with torch.no_grad():
                rows.add(LOSS, series, loss(weights | buffers), x=share)
        student.model.train()
    yield rows.output()


def _gradients(job: Job) -> Iterator[Step | Output]:
    """At the student's initial and trained weights: batches of real and of condensed images against the
    gradient of all real training images, and condensed ones against that of all condensed images.
    """
    student, rows = student_of(job), _Rows(job.saved)
    for item in _training(job, student, rows, (0, student.total)):
        if isinstance(item, Step):
            yield item
            continue
        student.model.eval()
        _cosines(job, student, "trained" if student.step else "initial", rows)
        student.model.train()
    yield rows.output()


def _cosines(job: Job, student: train.Student, state: str, rows: _Rows) -> None:
    cfg, real = job.experiment.diagnose, job.inputs.real(job.task)
    images, labels = job.inputs.start_images(job.task)
    about = student.model, _weights(student)
    together = job.inputs.runtime.forward_images
    of_real = partial(gradients.gradient, *about, real.fit, real.fit_labels, together=together)
    of_set = partial(gradients.gradient, *about, images, labels, together=together)
    goal, own = of_real(torch.arange(len(real.fit))), of_set(torch.arange(len(images)))
    for series, of, count, goals in (
        ("real to all real", of_real, len(real.fit), [("", goal)]),
        ("condensed to all real", of_set, len(images), [("", goal), ("condensed to all condensed", own)]),
    ):
        for size in sorted({min(size, count) for size in cfg.batch_sizes}):
            rng, draws = generator("diagnose", cfg.seed, series, size), 2 if size == count else cfg.draws
            found = gradients.batch_cosines(of, count, size, draws, [each for _, each in goals], rng)
            errors = found.std(0) / draws**0.5
            for i, (name, _) in enumerate(goals):
                about_row = f"{name or series}, {state}"
                rows.add(COSINE, about_row, found[:, i].mean(), errors[i], x=size)


def _landscape(job: Job) -> Iterator[Step | Output]:
    """Slices through the trained student: a line along the first direction, and the plane of both."""
    cfg, student, rows = job.experiment.diagnose, student_of(job), _Rows(job.saved)
    losses = _student_losses(job, student)
    for item in _training(job, student, rows, (student.total,)):
        if isinstance(item, Step):
            yield item
            continue
        weights, buffers = _by_kind(student)
        student.model.eval()
        ways = [
            landscape.direction(weights, generator("diagnose", cfg.seed, "direction", i)) for i in range(2)
        ]
        line = cfg.radius * torch.arange(-cfg.steps, cfg.steps + 1) / cfg.steps  # 0 is in it
        plane = torch.cartesian_prod(line, line)
        for series, loss in losses.items():

            def of(moved: Tensors, loss: Callable[[Tensors], Tensor] = loss) -> Tensor:
                return loss(moved | buffers)  # noqa: B023

            found = landscape.values(of, weights, ways, plane)
            for place, value in zip(plane.tolist(), found.tolist(), strict=True):
                rows.add(LOSS, series, value, x=place[0], y=place[1])
        student.model.train()
    yield rows.output()


DIAGNOSTICS: dict[str, Diagnostic] = {
    "synthesis_sharpness": Diagnostic("recover", _groups, partial(_synthesis, _image_sharpness)),
    "student_sharpness": Diagnostic("evaluate", _student, _student_sharpness),
    "gradients": Diagnostic("evaluate", _student, _gradients),
    "initialisation": Diagnostic("recover", _groups, partial(_synthesis, _progress)),
    "landscape": Diagnostic("evaluate", _student, _landscape),
    "transport": Diagnostic("recover", _groups, partial(_synthesis, _transport)),
    "class_variance": Diagnostic("recover", _groups, partial(_synthesis, _class_variance)),
    "smoothing": Diagnostic("recover", _groups, partial(_synthesis, _smoothing)),
}
