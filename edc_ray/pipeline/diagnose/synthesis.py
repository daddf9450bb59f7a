"""Along the synthesis of one group."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.core import fit, matching, recover, stats
from edc_ray.core.diagnostics import features, hessian, variance
from edc_ray.core.random import generator
from edc_ray.pipeline.condense import problem_of
from edc_ray.pipeline.diagnose.table import LOSS, NORM, Rows, points
from edc_ray.pipeline.observe import moments_of
from edc_ray.pipeline.types import Job, Output, Step

Look = Callable[[recover.State, Rows], None]
Prepare = Callable[[Job, recover.Problem], Look]
APART, MOVED = "feature distance", "distance to the class"
VARIES, GAP = "class variance", "loss gap"


def run(prepare: Prepare, job: Job) -> Iterator[Step | Output]:
    """The iterations of one group, as `recover` makes them, with a look before the first and at each point.

    The group is alone: where the running statistics are not reset (B6), it does not take them over.
    """
    exp, rows = job.experiment, Rows(job.saved)
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


def _loss(problem: recover.Problem, k: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """(matching loss, cross-entropy) of the images as they are: no crop, no average over iterations.

    The part of observer k: over all of them, the sum is the mean by their weights.
    """
    share = problem.weights[k] / len(problem.weights)
    logits, now = recover.measured(problem, k, images, by_run=True)
    entropy = share * functional.cross_entropy(logits, problem.labels.flatten())
    if now is None:
        return images.new_zeros(()), entropy
    return share * matching.loss(now, problem.targets[k], problem.cfg.matching).sum(), entropy


def _parts(problem: recover.Problem, with_entropy: bool = True) -> list[hessian.Loss]:
    """Of the objective, or of the matching loss alone, one for each observer: their graphs one by one."""

    def part(k: int, at: list[Tensor]) -> Tensor:
        matched, entropy = _loss(problem, k, at[0])
        return entropy + problem.cfg.matching.weight * matched if with_entropy else matched

    return [partial(part, k) for k in range(len(problem.observers))]


def _norm(job: Job, losses: list[hessian.Loss], images: Tensor) -> tuple[float, float]:
    """Of the Hessian in the normalised pixels of the group, (norm, error); the same vectors each time."""
    exp = job.experiment
    rng = generator("diagnose", exp.diagnose.seed, exp.init.seed, job.unit)
    vectors = list(hessian.probes([images], exp.diagnose.probes, rng))
    return hessian.frobenius(hessian.squared_products(losses, [images], vectors))


def sharpness(job: Job, problem: recover.Problem) -> Look:
    series = {"matching and cross-entropy": _parts(problem)}
    if problem.cfg.matching.weight > 0:
        series = {"matching loss": _parts(problem, with_entropy=False)} | series

    def look(state: recover.State, rows: Rows) -> None:
        for name, losses in series.items():
            rows.add(NORM, name, *_norm(job, losses, state.images), x=state.iteration)

    return look


def progress(job: Job, problem: recover.Problem) -> Look:
    """The losses, and how far the images are from their classes in the features of each observer."""
    real, together = job.inputs.real(job.task), job.inputs.runtime.forward_images
    labels = problem.labels.flatten()
    members = torch.isin(real.fit_labels, labels)
    near, near_labels = real.fit.subset(members.nonzero()[:, 0].cpu()), real.fit_labels[members]
    seen = [fit.features(model, near, together) for model in problem.observers]

    @torch.no_grad()
    def look(state: recover.State, rows: Rows) -> None:
        apart, losses = [], []
        for k, (model, theirs) in enumerate(zip(problem.observers, seen, strict=True)):
            losses.append(torch.stack(_loss(problem, k, state.images)))
            ours = fit.features(model, state.images.detach(), together)
            apart.append(features.class_distances(ours, labels, theirs, near_labels).mean())
        matched, entropy = torch.stack(losses).sum(0)
        rows.add(LOSS, "matching loss", matched, x=state.iteration)
        rows.add(LOSS, "cross-entropy", entropy, x=state.iteration)
        rows.add(APART, "to the class", torch.stack(apart).mean(), x=state.iteration)

    return look


def transport(job: Job, problem: recover.Problem) -> Look:
    """From the images of a class to random real ones: in pixels, and in the features of each observer; 1 =
    the mean squared distance of these real images to their mean.
    """
    real, together = job.inputs.real(job.task), job.inputs.runtime.forward_images
    cfg, labels = job.experiment.diagnose, problem.labels.flatten()
    nets = [nn.Identity(), *problem.observers]
    theirs = dict[int, list[Tensor]]()
    for label, ours in zip(*(part.tolist() for part in labels.unique(return_counts=True)), strict=True):
        ids = (real.fit_labels == label).nonzero()[:, 0].cpu()
        drawn = ids[torch.randperm(len(ids), generator=generator("diagnose", cfg.seed, label))]
        most = max(min(cfg.images, len(ids)), ours) // ours * ours  # as many for each of ours
        theirs[label] = [fit.features(net, real.fit.subset(drawn[:most]), together) for net in nets]

    def look(state: recover.State, rows: Rows) -> None:
        found = []
        for net, column in zip(nets, zip(*theirs.values(), strict=True), strict=True):
            ours = fit.features(net, state.images.detach(), together)
            ratios = [
                features.transport(ours[labels == label], seen) / float(seen.var(0, correction=0).sum())
                for label, seen in zip(theirs, column, strict=True)
            ]
            found.append(sum(ratios) / len(ratios))
        rows.add(MOVED, "pixels", found[0], x=state.iteration)
        rows.add(MOVED, "features", sum(found[1:]) / len(found[1:]), x=state.iteration)

    return look


def class_variance(job: Job, problem: recover.Problem) -> Look:
    """Of the inputs of the matched layers, the mean over classes, layers and observers."""
    every, names = moments_of(job.inputs.all("statistics", job.task)), job.experiment.recover.observers
    named = names or tuple(job.inputs.observers(job.task))
    labels = problem.labels.flatten()

    def look(state: recover.State, rows: Rows) -> None:
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


def smoothing(job: Job, problem: recover.Problem) -> Look:
    """Between the images and their average over the iterations, with what bounds it."""
    losses = _parts(problem)

    def look(state: recover.State, rows: Rows) -> None:
        norm, _ = _norm(job, losses, state.images)
        gap, bound = hessian.second_order(losses, [state.images], [state.averaged], norm)
        rows.add(GAP, "images to averaged images", gap, x=state.iteration)
        rows.add(GAP, "its bound", bound, x=state.iteration)

    return look
