"""Optimisation of the condensed images, group by group (method.md 3.2-3.5).

A group is the images that share batch statistics. Many groups go through one forward with moments per group;
no group depends on another, so the cut of the groups over processes changes no image, and the number of
groups in one forward changes them by float rounding only.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.config import Experiment, Flatness, Recover
from edc_ray.core import matching, models, views
from edc_ray.core.data import denormalize, normalize
from edc_ray.core.random import generator
from edc_ray.core.stats import Moments


@dataclass(frozen=True, slots=True)
class Group:
    """The unit of synthesis: all images of a run of classes."""

    index: int
    classes: range


@dataclass(frozen=True, slots=True)
class Problem:
    """What one forward optimises: equally large groups, and all that they are matched against."""

    cfg: Recover
    seeds: tuple[int, int]  # Experiment.seed, Init.seed
    patch: int
    groups: tuple[Group, ...]
    labels: Int[Tensor, "g n"]
    observers: Sequence[nn.Module]
    targets: Sequence[matching.Target]
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]


@dataclass(slots=True)
class State:
    """All that changes. `pack` makes a checkpoint of live tensors, to be stored at once; `begin` reads it."""

    iteration: int
    images: Float[Tensor, "m c s s"]  # normalised; the leaf that Adam moves
    adam: torch.optim.Adam
    running: list[Tensor]  # per observer, the running statistics (g, d)
    averaged: Float[Tensor, "m c s s"]  # images averaged over the iterations, for flatness "logits"

    def pack(self) -> dict[str, Tensor]:
        moments = self.adam.state.get(self.images, {})
        tensors = {
            "iteration": torch.tensor(self.iteration),
            "images": self.images.detach(),
            "averaged": self.averaged,
        }
        return (
            tensors
            | {f"running.{i}": value for i, value in enumerate(self.running)}
            | {f"adam.{name}": value for name, value in moments.items()}
        )


def cut(classes: int, per_group: int) -> list[Group]:
    """Runs of `per_group` classes in order; the last may be shorter."""
    starts = range(0, classes, per_group)
    return [Group(i, range(start, min(start + per_group, classes))) for i, start in enumerate(starts)]


def problem(
    experiment: Experiment,
    groups: Sequence[Group],
    observers: Sequence[nn.Module],
    moments: Sequence[dict[str, Moments]],
    pixels: tuple[Sequence[float], Sequence[float]],
    device: torch.device,
) -> Problem:
    """The problem of these groups. moments: by observer and layer name. pixels: the dataset's mean, std."""
    labels = torch.tensor(
        [[c for c in group.classes for _ in range(experiment.init.ipc)] for group in groups]
    )
    cfg, swap = experiment.recover, experiment.quirks.swap_class_patch
    targets = [
        matching.target(model, m, labels, cfg.matching, swap)
        for model, m in zip(observers, moments, strict=True)
    ]
    moved = [matching.Target(t.layout, t.whole.to(device), t.by_class.to(device)) for t in targets]
    mean, std = (torch.tensor(value, device=device)[:, None, None] for value in pixels)
    nets = [model.to(device).eval().requires_grad_(False) for model in observers]
    seeds = (experiment.seed, experiment.init.seed)
    patch = experiment.statistics.patch
    return Problem(cfg, seeds, patch, tuple(groups), labels.to(device), nets, moved, mean, std)


def begin(
    problem: Problem, images: UInt8[Tensor, "m c s s"], saved: dict[str, Tensor] | None = None
) -> State:
    """The state before the first iteration, or the one that `State.pack` saved."""
    device = problem.mean.device
    start = normalize(images.to(device), problem.mean.flatten().tolist(), problem.std.flatten().tolist())
    leaf = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([leaf], lr=problem.cfg.lr, betas=problem.cfg.betas, eps=1e-8)
    state = State(0, leaf, adam, [torch.zeros_like(t.by_class) for t in problem.targets], start)
    if saved is not None:
        # Copies: Adam changes them in place.
        saved = {name: value.to(device, copy=True) for name, value in saved.items()}
        state.iteration = int(saved["iteration"])
        leaf.data.copy_(saved["images"])
        state.averaged = saved["averaged"]
        state.running = [saved[f"running.{i}"] for i in range(len(problem.observers))]
        adam.state[leaf] = {
            name.removeprefix("adam."): value.cpu() if name == "adam.step" else value
            for name, value in saved.items()
            if name.startswith("adam.")
        }
    return state


def synthesize(problem: Problem, state: State) -> Iterator[State]:
    """Iterate to the end, yielding after every iteration (method.md 3.3).

    Raises:
        FloatingPointError: the loss became non-finite; names the group and the iteration.
    """
    cfg, count = problem.cfg, len(problem.observers)
    low, high = (0 - problem.mean) / problem.std, (1 - problem.mean) / problem.std
    while state.iteration < cfg.iterations:
        t = state.iteration
        k, visits = t % count, t // count + 1
        state.adam.param_groups[0]["lr"] = cfg.lr * 0.5 * (1 + math.cos(math.pi * t / cfg.iterations))
        crop = _shared_crop(problem, t, state.images.shape[-1])
        if cfg.flatness.kind == "logits":
            state.averaged = torch.lerp(state.images.detach(), state.averaged, cfg.flatness.beta)
        images: Tensor = state.images
        if cfg.flatness.kind == "sam":
            images = _ascend(problem, state, k, visits, crop)
        losses, running = _losses(problem, state, images, k, visits, crop)
        _check_finite(losses, problem, t)
        state.images.grad = torch.autograd.grad(losses.sum(), images)[0]
        state.running[k] = running
        state.adam.step()
        with torch.no_grad():
            state.images.clamp_(low, high)
        state.iteration += 1
        yield state


def finished(problem: Problem, state: State) -> UInt8[Tensor, "m c s s"]:
    """The stored images: bytes, rounded.

    Raises:
        FloatingPointError: the last gradient was not finite.
    """
    if not bool(state.images.isfinite().all()):
        raise FloatingPointError(f"the images are not finite after iteration {state.iteration}")
    mean, std = problem.mean.flatten().tolist(), problem.std.flatten().tolist()
    return denormalize(state.images.detach(), mean, std).cpu()


def _shared_crop(
    problem: Problem, iteration: int, size: int
) -> tuple[Int[Tensor, "m 4"], Bool[Tensor, " m"]]:
    """One crop and flip for all images of a group, drawn from (seeds, group, iteration)."""
    boxes, flips = [], []
    for group in problem.groups:
        rng = generator("recover", *problem.seeds, group.index, iteration)
        boxes.append(views.random_boxes(1, size, problem.cfg.crop_min, rng))
        flips.append(torch.rand(1, generator=rng) < (0.5 if problem.cfg.flip else 0.0))
    n, device = problem.labels.shape[1], problem.mean.device
    return torch.cat(boxes).repeat_interleave(n, 0).to(device), torch.cat(flips).repeat_interleave(n).to(
        device
    )


def _losses(
    problem: Problem, state: State, images: Tensor, k: int, visits: int, crop: tuple[Tensor, Tensor]
) -> tuple[Float[Tensor, " g"], Float[Tensor, "g d"]]:
    """Each group's loss under observer k, and the running statistics after this visit."""
    cfg, model, groups = problem.cfg, problem.observers[k], len(problem.groups)
    with models.capture(model) as inputs:
        logits = model(views.resample(images, *crop))
    now = matching.measure(inputs, models.layers(model), groups, problem.patch)
    running, value = matching.straight_through(state.running[k], now, cfg.matching, visits)
    entropy = functional.cross_entropy(logits, problem.labels.flatten(), reduction="none")
    losses = entropy.unflatten(0, (groups, -1)).mean(1)
    losses = losses + cfg.matching.weight * matching.loss(value, problem.targets[k], cfg.matching)
    if cfg.flatness.kind == "logits":
        with torch.no_grad():
            anchor = model(views.resample(state.averaged, *crop))
        losses = losses + cfg.flatness.weight * logit_flatness(logits, anchor, cfg.flatness, groups)
    return losses, running


def logit_flatness(
    logits: Float[Tensor, "m k"], anchor: Float[Tensor, "m k"], cfg: Flatness, groups: int
) -> Float[Tensor, " g"]:
    """KL(softmax(logits / T) || softmax(anchor / T)), mean over each group's images (method.md 3.5, Eq. 6-7).

    anchor: logits of the averaged images. The official code has the other direction and another mean.
    """
    ours, theirs = ((x / cfg.temperature).log_softmax(1) for x in (logits, anchor))
    return (ours.exp() * (ours - theirs)).sum(1).unflatten(0, (groups, -1)).mean(1)


def _ascend(problem: Problem, state: State, k: int, visits: int, crop: tuple[Tensor, Tensor]) -> Tensor:
    """SAM: the images moved uphill by rho, an L2 norm per image in [0, 1] pixels; a new leaf."""
    losses, _ = _losses(problem, state, state.images, k, visits, crop)
    _check_finite(losses, problem, state.iteration)
    slope = torch.autograd.grad(losses.sum(), state.images)[0] / problem.std  # d loss / d pixel
    norm = slope.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    step = problem.cfg.flatness.rho * slope / norm / problem.std  # back to normalised pixels
    return (state.images.detach() + step).requires_grad_(True)


def _check_finite(losses: Tensor, problem: Problem, iteration: int) -> None:
    bad = [
        group.index for group, ok in zip(problem.groups, losses.isfinite().tolist(), strict=True) if not ok
    ]
    if bad:
        raise FloatingPointError(f"the loss of group {bad[0]} is not finite at iteration {iteration}")
