"""Recovery against Adam written by hand, one group at a time, and itself interrupted."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.config import Experiment, Flatness, Init, Matching, Recover, Statistics
from edc_ray.core import matching, models
from edc_ray.core.data import normalize
from edc_ray.core.random import fork_rng
from edc_ray.core.recover import (
    Problem,
    State,
    begin,
    check,
    cut,
    finished,
    logit_flatness,
    problem,
    synthesize,
)
from edc_ray.core.stats import Moments, class_moments
from tests.test_matching import segments

Kind = Literal["none", "logits", "statistics", "sam"]
KINDS: tuple[Kind, ...] = ("none", "logits", "statistics", "sam")
SOME = [pytest.param(kind, marks=pytest.mark.slow) if kind in ("none", "logits") else kind for kind in KINDS]
CLASSES, IPC, SIZE, PATCH = 4, 3, 8, 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
LOW, HIGH = ((torch.tensor([end] * 3) - torch.tensor(MEAN)) / torch.tensor(STD) for end in (0.0, 1.0))


def experiment(kind: Kind = "none", still: bool = False, **recover: object) -> Experiment:
    """still: without crops and flips, so that the observer sees the images themselves."""
    settings: dict[str, object] = {"iterations": 6, "classes_per_group": 2, "lr": 0.1}
    if still:
        settings |= {"crop_min": 1.0, "flip": False}
    flatness = Flatness(kind=kind, weight=500.0, beta=0.6, temperature=1.5, rho=0.5)
    return Experiment(
        statistics=Statistics(patch=PATCH),
        init=Init(ipc=IPC),
        recover=replace(Recover(flatness=flatness), **(settings | recover)),  # type: ignore[arg-type]
    )


def networks() -> list[nn.Module]:
    """Two observers, one with BatchNorm, that know their running statistics."""

    def network(width: int, norm: nn.Module) -> nn.Module:
        conv = nn.Conv2d(3, width, 3, padding=1)
        return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(width * SIZE**2, CLASSES)).eval()

    with fork_rng("networks"):
        found = [network(4, nn.BatchNorm2d(4)), network(6, nn.GroupNorm(6, 6))]
        for name, buffer in found[0].named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return found


def real_moments(observers: Sequence[nn.Module]) -> list[dict[str, Moments]]:
    rng = torch.Generator().manual_seed(5)
    labels = torch.arange(20) % CLASSES
    images = torch.randn((20, 3, SIZE, SIZE), generator=rng) + labels[:, None, None, None] / 4
    found = []
    for model in observers:
        with torch.no_grad(), models.capture(model) as inputs:
            model(images)
        found.append({name: class_moments(z, labels, CLASSES, PATCH) for name, z in inputs.items()})
    return found


def make(exp: Experiment, picked: slice = slice(None), observers: Sequence[nn.Module] = ()) -> Problem:
    observers = observers or networks()
    groups = cut(exp.recover, CLASSES, IPC)[picked]
    return problem(exp, groups, observers, real_moments(observers), (MEAN, STD), torch.device("cpu"))


def start(groups: slice = slice(None), per_group: int = 2 * IPC) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    images = torch.randint(256, (CLASSES * IPC, 3, SIZE, SIZE), generator=rng).to(torch.uint8)
    return torch.cat(images.split(per_group)[groups])


def run(p: Problem, state: State, steps: int = 1000) -> State:
    """`state` after so many more steps, or at the end."""
    for _ in islice(synthesize(p, state), steps):
        pass
    return state


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


# --- groups -------------------------------------------------------------------------------------------------


def test_groups_are_runs_of_classes_or_of_images() -> None:
    """method.md 3.2: a run of images may cut a class in halves."""
    classes, images = Recover(classes_per_group=2), Recover(group_images=4)
    assert [(g.index, g.images) for g in cut(classes, 5, 3)] == [
        (0, range(6)),
        (1, range(6, 12)),
        (2, range(12, 15)),
    ]
    assert [g.images for g in cut(Recover(classes_per_group=10), 3, 2)] == [range(6)]
    found = cut(images, 3, 3)
    assert [g.images for g in found] == [range(4), range(4, 8), range(8, 9)]
    assert [g.labels for g in found] == [[0, 0, 0, 1], [1, 1, 2, 2], [2]]


def test_labels_are_class_major() -> None:
    assert make(experiment()).labels.tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]]
    assert make(experiment(), slice(1, 2)).labels.tolist() == [[2, 2, 2, 3, 3, 3]]


@pytest.mark.parametrize(
    "kind, per_group",
    [
        ("none", 2),
        ("sam", 1),
        *(pytest.param(kind, 1, marks=pytest.mark.slow) for kind in KINDS if kind != "sam"),
    ],
)
def test_groups_in_one_forward_equal_one_by_one(kind: Kind, per_group: int) -> None:
    exp, size = experiment(kind, classes_per_group=per_group), per_group * IPC
    together = run(make(exp), begin(make(exp), start())).images.detach()
    for i, images in enumerate(together.split(size)):
        picked = slice(i, i + 1)
        alone = run(make(exp, picked), begin(make(exp, picked), start(picked, size))).images.detach()
        torch.testing.assert_close(images, alone, rtol=1e-4, atol=1e-4)  # Adam divides by tiny slopes


@pytest.mark.parametrize("kind", SOME)
def test_a_group_has_the_same_bits_whoever_runs_beside_it(kind: Kind) -> None:
    """Two problems that take turns step by step, against the second one alone."""
    problems = [make(experiment(kind), slice(i, i + 1)) for i in range(2)]
    states = [begin(p, start(slice(i, i + 1))) for i, p in enumerate(problems)]
    turns = zip(*(synthesize(p, s) for p, s in zip(problems, states, strict=True)), strict=True)
    *_, (_, beside) = turns
    alone = make(experiment(kind), slice(1, 2))
    assert torch.equal(beside.images, run(alone, begin(alone, start(slice(1, 2)))).images)


# --- the loop -----------------------------------------------------------------------------------------------


@cache
def uninterrupted(kind: Kind) -> tuple[Problem, State]:
    p = make(experiment(kind))
    return p, run(p, begin(p, start()))


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize(
    "stop", [pytest.param(0, marks=pytest.mark.slow), 3, pytest.param(6, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_gives_the_same_bits(kind: Kind, stop: int) -> None:
    p, want = uninterrupted(kind)
    saved = copied(run(p, begin(p, start()), stop).pack()) if stop else begin(p, start()).pack()
    before = copied(saved)
    for _ in range(2):  # twice from one checkpoint: it is only read
        again = run(make(experiment(kind)), begin(p, start(), saved))
        torch.testing.assert_close(again.pack(), want.pack(), rtol=0, atol=0)
        assert torch.equal(finished(p, again), finished(p, want))
        torch.testing.assert_close(saved, before, rtol=0, atol=0)


def test_without_iterations_every_level_stays() -> None:
    p = make(experiment(iterations=0))
    levels = torch.arange(2 * 3 * 64 * CLASSES * IPC // 2).view(-1, 3, SIZE, SIZE) % 256
    images = levels.to(torch.uint8)
    assert len(images.unique()) == 256
    assert torch.equal((finished(p, run(p, begin(p, images))) * 255).round().to(torch.uint8), images)


def test_images_stay_in_the_unit_range_and_reach_its_ends() -> None:
    p = make(experiment(lr=3.0))
    low, high = (end[:, None, None] for end in (LOW, HIGH))
    for state in synthesize(p, begin(p, start())):
        images = state.images.detach()
        assert (images >= low - 1e-6).all() and (images <= high + 1e-6).all()
    assert (images <= low + 1e-6).any() and (images >= high - 1e-6).any()


@pytest.mark.parametrize("kind, forwards", [("none", 1), ("logits", 2), ("statistics", 2), ("sam", 2)])
def test_observers_take_turns(kind: Kind, forwards: int) -> None:
    visits: list[int] = []
    observers = networks()
    for k, model in enumerate(observers):
        model.register_forward_pre_hook(lambda *_, k=k: visits.append(k))
    p = make(experiment(kind, iterations=5), observers=observers)
    visits.clear()  # the pass over the real images
    run(p, begin(p, start()))
    assert visits == [k for k in (0, 1, 0, 1, 0) for _ in range(forwards)]


def test_the_learning_rate_follows_the_cosine() -> None:
    p = make(experiment(iterations=8))
    found = [state.adam.param_groups[0]["lr"] for state in synthesize(p, begin(p, start()))]
    assert found == pytest.approx([0.1 * 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)])


def adam(x: Tensor, slopes: list[Tensor], lr: float, betas: tuple[float, float]) -> Tensor:
    """Adam's step after these gradients; written out."""
    n = len(slopes)
    first, second = (
        sum((1 - b) * b ** (n - i) * g**power for i, g in enumerate(slopes, 1)) / (1 - b**n)
        for b, power in zip(betas, (1, 2), strict=True)
    )
    return x - lr * first / (torch.as_tensor(second).sqrt() + 1e-8)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_first_steps_equal_adam_by_hand(weight: float) -> None:
    """Four steps: cross-entropy + weight * matching of the running average, per group; Adam; clamp."""
    cfg = Matching(weight=weight, momentum=0.5)
    p = make(experiment(matching=cfg, iterations=4, betas=(0.3, 0.8), still=True))
    state, low, high = begin(p, start()), LOW[:, None, None], HIGH[:, None, None]
    x, slopes, seen = normalize(start(), MEAN, STD), [], [[], []]  # type: ignore[var-annotated]
    for t, now in enumerate(synthesize(p, state)):
        k, leaf = t % 2, x.clone().requires_grad_()
        model, goal = p.observers[k], p.targets[k]
        logits, current = matching.measure(model, leaf, models.layers(model), 2, PATCH)
        entropy = -logits.softmax(1)[torch.arange(len(leaf)), p.labels.flatten()].log().mean()
        seen[k].append(current.detach())
        value = seen[k][0] if len(seen[k]) == 1 else (seen[k][0] + 2 * seen[k][1]) / 3  # m = 0.5, corrected
        distance = matching.loss(value + current - current.detach(), goal, cfg)
        (2 * entropy + weight * distance.sum()).backward()  # entropy: mean over both groups
        assert leaf.grad is not None and now.images.grad is not None
        torch.testing.assert_close(now.images.grad, leaf.grad, rtol=1e-4, atol=1e-6)
        slopes.append(now.images.grad.clone())  # its own: Adam divides by tiny ones
        x = adam(x, slopes, 0.1 * 0.5 * (1 + math.cos(math.pi * t / 4)), (0.3, 0.8)).clamp(low, high)
        torch.testing.assert_close(now.images.detach(), x, rtol=1e-4, atol=1e-5)
        x = now.images.detach().clone()


def test_the_loss_goes_down() -> None:
    """More iterations come closer to the targets and the labels."""

    def final(iterations: int) -> tuple[float, float]:
        p = make(experiment(iterations=iterations, still=True))
        images = run(p, begin(p, start())).images.detach()
        logits, now = matching.measure(p.observers[0], images, models.layers(p.observers[0]), 2, PATCH)
        distance = matching.loss(now, p.targets[0], p.cfg.matching).sum()
        return float(functional.cross_entropy(logits, p.labels.flatten())), float(distance)

    (entropy, distance), (later_entropy, later_distance) = final(0), final(40)
    assert later_entropy < 0.9 * entropy and later_distance < distance / 2


# --- views --------------------------------------------------------------------------------------------------


def first_input(exp: Experiment, picked: slice) -> tuple[Tensor, ...]:
    """What the observer sees of groups of equal images, in the first iteration."""
    seen: list[Tensor] = []
    observers = networks()
    p = make(exp, picked, observers)
    observers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    images = start()[:1].expand(p.labels.numel(), -1, -1, -1)
    run(p, begin(p, images), 1)
    return seen[0].split(2 * IPC)


def test_a_group_shares_one_crop_of_its_own() -> None:
    exp = experiment(crop_min=0.3)
    one, two = first_input(exp, slice(None))
    for images in (one, two):
        torch.testing.assert_close(images, images[:1].expand_as(images), rtol=0, atol=1e-6)
    assert not torch.allclose(one, two, atol=0.1)
    torch.testing.assert_close(first_input(exp, slice(1, 2))[0], two)  # whichever groups are beside it
    for other in (replace(exp, seed=1), replace(exp, init=Init(ipc=IPC, seed=1))):
        assert not torch.allclose(first_input(other, slice(1, 2))[0], two, atol=0.1)


def test_crops_and_flips_change_with_the_iteration() -> None:
    exp = experiment(crop_min=1.0, iterations=16, lr=0.0)
    seen: list[Tensor] = []
    observers = networks()
    p = make(exp, slice(0, 1), observers)
    for model in observers:
        model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    images = start(slice(0, 1))
    run(p, begin(p, images))
    plain = normalize(images, MEAN, STD)
    flipped = [torch.allclose(z, plain.flip(3), atol=1e-6) for z in seen]
    assert 2 < sum(flipped) < 14
    assert all(turned or torch.allclose(z, plain, atol=1e-6) for z, turned in zip(seen, flipped, strict=True))


# --- flatness -----------------------------------------------------------------------------------------------


def test_sam_climbs_by_rho_along_the_pixel_gradient_of_each_image() -> None:
    seen: list[Tensor] = []
    observers = networks()
    p = make(experiment("sam", still=True), observers=observers)
    observers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    climbed = run(p, begin(p, start()), 1)
    below, above = seen
    plain = make(experiment(still=True))
    slope = run(plain, begin(plain, start()), 1).images.grad
    assert slope is not None and climbed.images.grad is not None
    std = torch.tensor(STD)[:, None, None]
    step = (above - below) * std  # in [0, 1] pixels
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((len(step),), 0.5), rtol=1e-4, atol=0)
    direction = slope / std
    want = 0.5 * direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(step, want, rtol=1e-3, atol=1e-5)
    # The step that follows is the gradient up there, taken from down here.
    assert not torch.allclose(climbed.images.grad, slope, rtol=1e-3)
    moved = adam(normalize(start(), MEAN, STD), [climbed.images.grad], 0.1, (0.5, 0.9))
    want = moved.clamp(LOW[:, None, None], HIGH[:, None, None])
    torch.testing.assert_close(climbed.images.detach(), want, rtol=1e-4, atol=1e-5)


def test_sam_without_a_radius_is_no_sam() -> None:
    flat = make(experiment("sam", flatness=Flatness(kind="sam", rho=0.0)))
    plain = make(experiment())
    assert torch.equal(run(flat, begin(flat, start())).images, run(plain, begin(plain, start())).images)


def test_logit_flatness_is_the_divergence_from_the_averaged_images(rng: torch.Generator) -> None:
    ours, theirs = torch.randn((6, 5), generator=rng) * 3, torch.randn((6, 5), generator=rng) * 3
    found = logit_flatness(ours, theirs, Flatness(temperature=2.0), 2)
    p, q = (ours / 2).softmax(1), (theirs / 2).softmax(1)
    by_hand = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(found, torch.stack([by_hand[:3].mean(), by_hand[3:].mean()]))
    assert not torch.allclose(found, logit_flatness(theirs, ours, Flatness(temperature=2.0), 2))
    torch.testing.assert_close(logit_flatness(ours, ours, Flatness(), 2), torch.zeros(2))


def test_the_official_flatness_is_another_divergence(rng: torch.Generator) -> None:
    """P5: paper Eq. 7 is KL(current || averaged), mean over images; official: reversed, also over classes."""
    ours, theirs = torch.randn((6, 5), generator=rng) * 3, torch.randn((6, 5), generator=rng) * 3
    official = logit_flatness(ours, theirs, Flatness(form="official", temperature=2.0), 2)
    paper = logit_flatness(ours, theirs, Flatness(form="paper", temperature=2.0), 2)
    p, q = (ours / 2).softmax(1), (theirs / 2).softmax(1)
    by_hand = (q * (q / p).log()).flatten().split(15)
    torch.testing.assert_close(official, torch.stack([half.mean() for half in by_hand]))
    assert not torch.allclose(5 * official, paper, rtol=1e-3)
    cfg = experiment("logits").recover.flatness
    one, other = (make(experiment("logits", flatness=each)) for each in (cfg, replace(cfg, form="official")))
    assert not torch.allclose(
        run(one, begin(one, start())).images, run(other, begin(other, start())).images, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["logits", "statistics"])
def test_flatness_starts_at_nothing(kind: Kind) -> None:
    flat, plain = make(experiment(kind, still=True)), make(experiment(still=True))
    first, other = (run(p, begin(p, start()), 1).images for p in (flat, plain))
    assert first.grad is not None and other.grad is not None
    torch.testing.assert_close(first.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(
        run(flat, begin(flat, start())).images, run(plain, begin(plain, start())).images
    )


@pytest.mark.parametrize("kind", ["logits", "statistics"])
def test_flatness_adds_the_weighted_distance_to_the_loss(kind: Kind) -> None:
    """The gradient of the third step, against the same step without flatness and the distance by hand.

    Of statistics (L_FR): unsquared norms of the differences, the first layer's ten times.
    """
    flat, plain = make(experiment(kind, still=True)), make(experiment(still=True))
    state = run(flat, begin(flat, start()), 2)
    saved = copied(state.pack())
    leaf = saved["images"].clone().requires_grad_()
    averaged = saved["averaged"]
    model = flat.observers[0]
    if kind == "logits":
        apart = logit_flatness(model(leaf), model(averaged), flat.cfg.flatness, 2).sum()
    else:
        parts = [segments(model, images) for images in (leaf[:6], averaged[:6], leaf[6:], averaged[6:])]
        apart = sum(
            (10 if i < 4 else 1) * ((a - b).norm() + (c - d).norm())
            for i, (a, b, c, d) in enumerate(zip(*parts, strict=True))
        )
    (slope,) = torch.autograd.grad(500.0 * apart, leaf)
    with_it, without = (run(p, begin(p, start(), saved), 1) for p in (flat, plain))
    assert with_it.images.grad is not None and without.images.grad is not None
    largest = float(with_it.images.grad.abs().max())
    torch.testing.assert_close(with_it.images.grad, without.images.grad + slope, rtol=0, atol=1e-4 * largest)
    torch.testing.assert_close(with_it.averaged, 0.6 * averaged + 0.4 * saved["images"])
    assert slope.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["logits", "statistics"])
def test_averaged_images_follow_the_iterates(kind: Kind) -> None:
    p = make(experiment(kind))
    state = begin(p, start())
    want, before = state.images.detach().clone(), state.images.detach().clone()
    for now in synthesize(p, state):
        want = 0.6 * want + 0.4 * before  # once an iteration, before its step
        torch.testing.assert_close(now.averaged, want)
        before = now.images.detach().clone()


# --- errors and inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_is_an_error_with_group_and_iteration(kind: Kind) -> None:
    p = make(experiment(kind, classes_per_group=1), slice(1, 4))
    steps = synthesize(p, state := begin(p, start(slice(1, 4), IPC)))
    next(steps), next(steps)
    with torch.no_grad():
        state.images[IPC : 2 * IPC] = math.nan  # the second of groups 1, 2, 3
    with pytest.raises(FloatingPointError, match="group 2 is not finite at iteration 2"):
        list(steps)  # it is noticed a few iterations later
    with pytest.raises(FloatingPointError, match="group 2 is not finite at iteration 2"):
        check(p, state)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_left_as_they_are(kind: Kind) -> None:
    observers, images = networks(), start()
    moments, weights = real_moments(observers), [copied(model.state_dict()) for model in observers]
    sums, before, state = moments[0]["0"].channel.clone(), images.clone(), torch.get_rng_state()
    groups = cut(experiment(kind).recover, CLASSES, IPC)
    p = problem(experiment(kind), groups, observers, moments, (MEAN, STD), torch.device("cpu"))
    run(p, begin(p, images))
    assert torch.equal(images, before) and torch.equal(moments[0]["0"].channel, sums)
    torch.testing.assert_close([dict(m.state_dict()) for m in observers], weights, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for model in observers for parameter in model.parameters())
