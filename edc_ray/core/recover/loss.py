"""What a group of images is judged by: cross-entropy, matching and flatness, on one random crop."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from edc_ray.config import Flatness, Recover
from edc_ray.core import matching, views
from edc_ray.core.random import generator
from edc_ray.core.recover.problem import Problem

Crop = tuple[Int[Tensor, "m 4"], Bool[Tensor, " m"]]  # boxes and flips
AVERAGED = ("logits", "statistics")  # the kinds of flatness that look at averaged images


def crop_min(cfg: Recover, iteration: int) -> float:
    """The smallest area of a crop: constant, or by a half cosine from crop_min_start (CDA)."""
    if cfg.crop_min_start is None:
        return cfg.crop_min
    left = 0.5 * (1 + math.cos(math.pi * iteration / cfg.iterations))
    return cfg.crop_min + left * (cfg.crop_min_start - cfg.crop_min)


def random_crops(problem: Problem, iteration: int, size: int) -> Crop:
    """A crop and flip for all images of a group, or for each, drawn from (seeds, group, iteration)."""
    cfg, n = problem.cfg, problem.labels.shape[1]
    draws, repeats = (1, n) if cfg.crop == "batch" else (n, 1)
    boxes, flips = [], []
    for group in problem.groups:
        rng = generator("recover", *problem.seeds, group.index, iteration)
        boxes.append(views.random_boxes(draws, size, crop_min(cfg, iteration), rng))
        flips.append(torch.rand(draws, generator=rng) < (0.5 if cfg.flip else 0.0))
    box, flip = torch.cat(boxes).repeat_interleave(repeats, 0), torch.cat(flips).repeat_interleave(repeats)
    return _sent(box, problem.mean.device), _sent(flip, problem.mean.device)


def kept_layers(problem: Problem, k: int, iteration: int) -> Bool[Tensor, "g l"] | None:
    """The layers of observer k that count in this iteration: each convolution drops out with drop_rate."""
    rate, layers = problem.cfg.matching.drop_rate, problem.targets[k].layout.layers
    if not rate:
        return None
    draws = [
        torch.rand(len(layers), generator=generator("drop", *problem.seeds, group.index, iteration, k))
        for group in problem.groups
    ]
    stays = torch.tensor([layer.kind == "bn" for layer in layers], dtype=torch.bool)
    return _sent((torch.stack(draws) >= rate) | stays, problem.mean.device)


def _sent(drawn: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what it is still busy with."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


def measured(
    problem: Problem, k: int, images: Float[Tensor, "m c s s"], by_run: bool
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "rows d"] | None]:
    """Logits of observer k and, where something is matched, the statistics of groups and, by_run, of runs."""
    model, goal, cfg = problem.observers[k], problem.targets[k], problem.cfg.matching
    if not goal.layout.layers or not matching.needed(problem.cfg):
        return model(images), None
    runs, groups = goal.runs if by_run else None, len(problem.groups)
    return matching.measure(model, images, goal.layout.layers, groups, problem.patch, cfg.families, runs)


def group_losses(
    problem: Problem,
    k: int,
    images: Float[Tensor, "m c s s"],
    averaged: Float[Tensor, "m c s s"],
    running: Float[Tensor, "rows d"],
    visits: int,
    iteration: int,
    crop: Crop,
) -> tuple[Float[Tensor, " g"], Float[Tensor, "rows d"]]:
    """Each group's loss under observer k, and its running statistics after this visit."""
    cfg, goal, groups = problem.cfg, problem.targets[k], len(problem.groups)
    anchor = _anchor(problem, k, averaged, crop)  # first: after this the memory is full of the images' graph
    logits, now = measured(problem, k, views.resample(images, *crop), by_run=True)
    entropy = functional.cross_entropy(logits, problem.labels.flatten(), reduction="none")
    losses = entropy.unflatten(0, (groups, -1)).mean(1)
    if now is not None:
        running, value = matching.straight_through(running, now, cfg.matching, visits)
        keep = kept_layers(problem, k, iteration)
        losses = losses + cfg.matching.weight * matching.loss(value, goal, cfg.matching, keep)
    if anchor is not None and cfg.flatness.kind == "logits":
        losses = losses + cfg.flatness.weight * logit_flatness(logits, anchor, cfg.flatness, groups)
    elif anchor is not None and now is not None:
        apart = matching.distance(now[:groups], anchor, goal, cfg.matching)
        losses = losses + cfg.flatness.weight * apart
    return losses, running


@torch.no_grad()
def _anchor(problem: Problem, k: int, averaged: Tensor, crop: Crop) -> Tensor | None:
    """What the images are compared with: logits (L'_FR) or all statistics (L_FR) of the averaged images."""
    kind = problem.cfg.flatness.kind
    if kind not in AVERAGED:
        return None
    cropped = views.resample(averaged, *crop)
    return problem.observers[k](cropped) if kind == "logits" else measured(problem, k, cropped, False)[1]


def logit_flatness(
    logits: Float[Tensor, "m k"], anchor: Float[Tensor, "m k"], cfg: Flatness, groups: int
) -> Float[Tensor, " g"]:
    """Divergence of softmax(logits / T) and softmax(anchor / T), of each group (method.md 3.5).

    anchor: logits of the averaged images. Form paper (Eq. 6-7): KL(logits || anchor), mean over images.
    Form official (P5): KL(anchor || logits), mean over images and classes.
    """
    ours, theirs = ((x / cfg.temperature).log_softmax(1) for x in (logits, anchor))
    if cfg.form == "official":
        apart = (theirs.exp() * (theirs - ours)).mean(1)
    else:
        apart = (ours.exp() * (ours - theirs)).sum(1)
    return apart.unflatten(0, (groups, -1)).mean(1)
