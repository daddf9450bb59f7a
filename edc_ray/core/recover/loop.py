"""The iterations: Adam on the images, one observer after another (method.md 3.3)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from edc_ray.core import matching
from edc_ray.core.data import normalize
from edc_ray.core.recover.loss import AVERAGED, Crop, group_losses, measured, random_crops
from edc_ray.core.recover.problem import Problem

CHECK_EVERY = 32  # iterations between two looks at whether the losses are finite: each waits for the GPU


@dataclass(slots=True)
class State:
    """All that changes. `pack` makes a checkpoint of live tensors, to be stored at once; `begin` reads it."""

    iteration: int
    images: Float[Tensor, "m c s s"]  # normalised; the leaf that Adam moves
    adam: torch.optim.Adam
    averaged: Float[Tensor, "m c s s"]  # images averaged over the iterations, for flatness
    running: list[Tensor]  # per observer, the running statistics (rows, d)
    visits: list[int]  # of each observer
    turns: int  # iterations, those of the groups before included: whose turn it is
    failed: Int[Tensor, " g"]  # the first iteration in which a group's loss was not finite; -1 = none
    loss: Float[Tensor, ""]  # of the last iteration, the mean over the groups; not in a checkpoint

    def pack(self) -> dict[str, Tensor]:
        moments = self.adam.state.get(self.images, {})
        tensors = {
            "iteration": torch.tensor(self.iteration),
            "images": self.images.detach(),
            "averaged": self.averaged,
            "visits": torch.tensor(self.visits),
            "turns": torch.tensor(self.turns),
        }
        return (
            tensors
            | {f"running.{i}": value for i, value in enumerate(self.running)}
            | {f"adam.{name}": value for name, value in moments.items()}
        )


def begin(
    problem: Problem,
    images: UInt8[Tensor, "m c s s"],
    saved: dict[str, Tensor] | None = None,
    before: State | None = None,
) -> State:
    """The state before the first iteration, or the one that `State.pack` saved.

    before: the last state of the group whose running statistics this one takes over (B6).
    """
    device, goals, count = problem.mean.device, problem.targets, len(problem.groups)
    start = normalize(images.to(device), problem.mean.flatten().tolist(), problem.std.flatten().tolist())
    leaf = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([leaf], lr=problem.cfg.lr, betas=problem.cfg.betas, eps=1e-8)
    rows = [count + len(goal.by_class) if goal.runs else count for goal in goals]
    running = [goal.whole.new_zeros(n, goal.whole.shape[1]) for n, goal in zip(rows, goals, strict=True)]
    failed = torch.full((count,), -1, device=device)
    state = State(0, leaf, adam, start, running, [0] * len(goals), 0, failed, torch.zeros(()))
    if before is not None:
        state.running, state.visits, state.turns = before.running, list(before.visits), before.turns
    if saved is not None:
        _restore(state, saved)
    return state


def _restore(state: State, saved: dict[str, Tensor]) -> None:
    # Copies: Adam changes them in place.
    saved = {name: value.to(state.images.device, copy=True) for name, value in saved.items()}
    state.iteration, state.turns = int(saved["iteration"]), int(saved["turns"])
    state.visits = saved["visits"].tolist()
    state.images.data.copy_(saved["images"])
    state.averaged = saved["averaged"]
    state.running = [saved[f"running.{i}"] for i in range(len(state.running))]
    state.adam.state[state.images] = {
        name.removeprefix("adam."): value.cpu() if name == "adam.step" else value
        for name, value in saved.items()
        if name.startswith("adam.")
    }


def synthesize(problem: Problem, state: State) -> Iterator[State]:
    """Iterate to the end, yielding after every iteration (method.md 3.3).

    Raises:
        FloatingPointError: a loss became non-finite, at most CHECK_EVERY iterations ago; names the group and
            the iteration in which it happened.
    """
    cfg = problem.cfg
    low, high = (0 - problem.mean) / problem.std, (1 - problem.mean) / problem.std
    while state.iteration < cfg.iterations:
        t = state.iteration
        state.adam.param_groups[0]["lr"] = cfg.lr * 0.5 * (1 + math.cos(math.pi * t / cfg.iterations))
        crop = random_crops(problem, t, state.images.shape[-1])
        images: Tensor = state.images
        if cfg.flatness.kind == "sam":
            images = _ascend(problem, state, crop)
        state.images.grad = _descend(problem, state, images, crop)
        if cfg.flatness.kind in AVERAGED:  # behind the loss, as the official code
            state.averaged = torch.lerp(state.images.detach(), state.averaged, cfg.flatness.beta)
        if problem.verifier_updates and t % verifier_every(images.shape[-1]) == 0:
            _verify(problem, state)
        state.adam.step()
        with torch.no_grad():
            state.images.clamp_(low, high)
        state.iteration, state.turns = t + 1, state.turns + 1
        if state.iteration % CHECK_EVERY == 0 or state.iteration == cfg.iterations:
            check(problem, state)
        yield state


def check(problem: Problem, state: State) -> None:
    """Raises FloatingPointError where a loss was not finite; names the group and the iteration."""
    for group, iteration in zip(problem.groups, state.failed.tolist(), strict=True):
        if iteration >= 0:
            where = f"group {group.index} is not finite at iteration {iteration}"
            raise FloatingPointError(f"the loss of {where}")


def finished(problem: Problem, state: State) -> Float[Tensor, "m c s s"]:
    """The images in [0, 1], on the CPU.

    Raises:
        FloatingPointError: the last gradient was not finite.
    """
    if not bool(state.images.isfinite().all()):
        raise FloatingPointError(f"the images are not finite after iteration {state.iteration}")
    return (state.images.detach() * problem.std + problem.mean).clamp(0, 1).cpu()


def _slope(
    problem: Problem, state: State, images: Tensor, crop: Crop
) -> tuple[Float[Tensor, "m c s s"], dict[int, Float[Tensor, "rows d"]]]:
    """The gradient of this iteration's loss, and the running statistics of the observers that it visits.

    visit all: the mean over the observers, one backward after another, so that one graph is in memory.
    """
    count, slope, running = len(problem.observers), torch.zeros_like(images), {}
    visited = range(count) if problem.cfg.visit == "all" else [state.turns % count]
    state.loss = torch.zeros((), device=images.device)
    for k in visited:
        losses, running[k] = group_losses(
            problem, k, images, state.averaged, state.running[k], state.visits[k] + 1, state.iteration, crop
        )
        new = (state.failed < 0) & ~losses.detach().isfinite()
        state.failed = torch.where(new, state.iteration, state.failed)
        loss = losses.sum() * (problem.weights[k] / len(visited))
        state.loss += loss.detach() / len(losses)
        slope += torch.autograd.grad(loss, images)[0]
    return slope, running


def _descend(problem: Problem, state: State, images: Tensor, crop: Crop) -> Float[Tensor, "m c s s"]:
    """The gradient at `images`; the visits count."""
    slope, running = _slope(problem, state, images, crop)
    for k, value in running.items():
        state.running[k] = value
        state.visits[k] += 1
    return slope


def _ascend(problem: Problem, state: State, crop: Crop) -> Float[Tensor, "m c s s"]:
    """SAM: the images moved uphill by rho, an L2 norm per image in [0, 1] pixels; a new leaf."""
    slope = _slope(problem, state, state.images, crop)[0] / problem.std  # d loss / d pixel
    norm = slope.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    step = problem.cfg.flatness.rho * slope / norm / problem.std  # back to normalised pixels
    return (state.images.detach() + step).requires_grad_(True)


def verifier_every(size_px: int) -> int:
    """Iterations between two looks of the official verifier, which is the first observer (B7)."""
    return 20 if size_px >= 224 else 100


def _verify(problem: Problem, state: State) -> None:
    """B7: its running statistics also see the images as they are, without a crop."""
    with torch.no_grad():
        _, now = measured(problem, 0, state.images, by_run=True)
        if now is not None:
            state.visits[0] += 1
            state.running[0], _ = matching.straight_through(
                state.running[0], now, problem.cfg.matching, state.visits[0]
            )
