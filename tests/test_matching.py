"""The statistical loss against the formulas of method.md 2.6, written out layer by layer."""

from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from edc_ray.config import Matching
from edc_ray.core import models
from edc_ray.core.matching import (
    FAMILIES,
    MATCHERS,
    Layout,
    Target,
    layout,
    loss,
    matched,
    measure,
    residuals,
    runs,
    straight_through,
    target,
)
from edc_ray.core.random import fork_rng
from edc_ray.core.stats import Moments, class_moments
from edc_ray.testing import MATCHER_CHECKS

CLASSES, PATCH, SIZE = 3, 4, 8
CFG = Matching()
VARIANCES = ("pooled", "within_image")


def network() -> nn.Sequential:
    """Hooked layers: convolution "0", BatchNorm "1", convolution "3"."""
    with fork_rng("network"):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 5, 1),
            nn.Flatten(),
            nn.Linear(5 * SIZE**2, CLASSES),
        )
        buffers = dict(model.named_buffers())
        buffers["1.running_mean"].normal_()
        buffers["1.running_var"].uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


def seen(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with models.capture(model) as inputs:
        model(images)
    return inputs


def real(model: nn.Module, rng: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Moments]]:
    """(images, labels, moments) of data whose classes differ."""
    labels = torch.arange(12) % CLASSES
    images = torch.randn((12, 3, SIZE, SIZE), generator=rng) * (1 + labels[:, None, None, None])
    inputs = seen(model, images)
    return images, labels, {name: class_moments(z, labels, CLASSES, PATCH) for name, z in inputs.items()}


def segments(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Mean and variance of every channel, then of every cell where a convolution reads; by hand."""
    found = []
    for name, z in seen(model, images).items():
        found += [z.mean((0, 2, 3)), ((z - z.mean((0, 2, 3), keepdim=True)) ** 2).mean((0, 2, 3))]
        if name != "1":
            parts = [
                z[:, :, top : top + PATCH, left : left + PATCH]
                for top in range(0, SIZE, PATCH)
                for left in range(0, SIZE, PATCH)
            ]
            found += [
                torch.stack([p.mean() for p in parts]),
                torch.stack([p.var(correction=0) for p in parts]),
            ]
    return found


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)[None]


def mean_of(rows: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts).mean(0) for parts in zip(*rows, strict=True)]


# --- norms --------------------------------------------------------------------------------------------------


def normed(name: str, difference: Tensor) -> Tensor:
    """Of one segment, as wide as the rows."""
    whole = MATCHERS[name](difference[:, None], torch.tensor([float(difference.shape[1])]))
    padded = torch.cat([difference, torch.zeros(len(difference), 3)], 1)[:, None]
    other = MATCHERS[name](padded, torch.tensor([float(difference.shape[1])]))
    torch.testing.assert_close(whole, other)  # what a narrow segment is filled up with does not count
    return whole[:, 0]


@pytest.mark.parametrize("promise", MATCHER_CHECKS)
@pytest.mark.parametrize("name", MATCHERS)
def test_a_row_keeps_to_the_contract(name: str, promise: str) -> None:
    MATCHER_CHECKS[promise](MATCHERS[name])


@pytest.mark.parametrize("name", MATCHERS)
def test_norms_grow_in_proportion_and_know_no_sign(name: str, rng: torch.Generator) -> None:
    norm, difference = partial(normed, name), torch.randn((4, 6), generator=rng)
    torch.testing.assert_close(norm(2 * difference), (4 if name == "l2_squared" else 2) * norm(difference))
    torch.testing.assert_close(norm(difference), norm(-difference.flip(1)))


@pytest.mark.parametrize("name, want", [("l2", 5.0), ("l2_squared", 25.0), ("rms", 2.5)])
def test_norms_of_three_and_four(name: str, want: float) -> None:
    torch.testing.assert_close(normed(name, torch.tensor([[0.0, 3, -4, 0]])), torch.tensor([want]))


@pytest.mark.parametrize("name", MATCHERS)
def test_the_order_of_images_in_a_group_does_not_matter(name: str, rng: torch.Generator) -> None:
    model, cfg = network(), replace(CFG, loss=name)
    images, _, moments = real(model, rng)
    goal = target(model, moments, torch.zeros(2, 6, dtype=torch.long), cfg)
    mixed = torch.cat([part[torch.randperm(6, generator=rng)] for part in images.split(6)])
    layers = models.layers(model)
    a, b = (loss(measure(model, z, layers, 2, PATCH)[1], goal, cfg) for z in (images, mixed))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# --- measuring ----------------------------------------------------------------------------------------------


def test_a_vector_is_the_layers_segments_in_their_order(rng: torch.Generator) -> None:
    model = network()
    images, labels, moments = real(model, rng)
    want = segments(model, images)
    torch.testing.assert_close(measure(model, images, models.layers(model), 1, PATCH)[1], flat(want))
    at = target(model, moments, labels[None], CFG).layout
    assert at.width.tolist() == [len(part) for part in want]
    assert at.owner.nonzero()[:, 1].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [layer.name for layer in at.layers] == ["0", "1", "3"]


@pytest.mark.parametrize("groups", [2, 3, 12])
def test_groups_are_measured_as_batches_of_their_own(groups: int, rng: torch.Generator) -> None:
    model = network()
    images, _, _ = real(model, rng)
    layers = models.layers(model)
    alone = [measure(model, part, layers, 1, PATCH)[1] for part in images.chunk(groups)]
    together = measure(model, images, layers, groups, PATCH)[1]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


# --- targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("mix", [[0, 0], [1, 2], [2, 0, 2, 2]])
def test_targets_equal_the_formulas(variance: str, swap: bool, mix: list[int], rng: torch.Generator) -> None:
    """Two groups: the first has the labels `mix`, the second only class 1."""
    model = network()
    images, labels, moments = real(model, rng)
    cfg = Matching(class_form="pooled" if variance == "pooled" else "within_image")
    goal = target(model, moments, torch.tensor([mix, [1] * len(mix)]), cfg, swap_patch=swap)

    whole = segments(model, images)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    whole[4:6] = [norm.running_mean, norm.running_var]
    torch.testing.assert_close(goal.whole, flat(whole), rtol=1e-5, atol=1e-5)

    for row, of in zip(goal.by_class, (mix, [1] * len(mix)), strict=True):
        if variance == "pooled":
            want = segments(model, torch.cat([images[labels == c] for c in of]))
        else:
            per_class = [mean_of([segments(model, image[None]) for image in images[labels == c]]) for c in of]
            want = mean_of(per_class)
        if swap:
            want[2], want[3], want[8], want[9] = want[3], want[2], want[9], want[8]
        torch.testing.assert_close(row[None], flat(want), rtol=1e-5, atol=1e-5)


def test_a_norm_without_running_statistics_is_matched_to_the_data(rng: torch.Generator) -> None:
    model = network()
    model[1] = nn.BatchNorm2d(4, track_running_stats=False)
    images, labels, moments = real(model, rng)
    goal = target(model, moments, labels[None], CFG)
    torch.testing.assert_close(goal.whole, flat(segments(model, images)), rtol=1e-5, atol=1e-5)


def test_class_targets_hold_what_lies_between_images(rng: torch.Generator) -> None:
    """P2: the official variance of a class is the mean one inside an image; ours is of all its pixels."""
    model = network()
    _, _, moments = real(model, rng)
    ours, official = (
        target(model, moments, torch.tensor([[1, 1]]), replace(CFG, class_form=form)).by_class[0, 3:6]
        for form in ("pooled", "within_image")
    )  # the variances of the pixels
    assert (official < ours).all()


def test_the_quirks_of_the_official_targets(rng: torch.Generator) -> None:
    """B2: class targets of patch mean and variance change places. B4: convolutions' global targets, twice."""
    model = network()
    _, labels, moments = real(model, rng)
    fixed = target(model, moments, labels[None], CFG)
    swapped = target(model, moments, labels[None], CFG, swap_patch=True)
    doubled = target(model, moments, labels[None], CFG, double_conv=True)
    widths = [int(width) for width in fixed.layout.width]
    parts = {
        name: (goal.whole.split(widths, 1), goal.by_class.split(widths, 1))
        for name, goal in (("fixed", fixed), ("swapped", swapped), ("doubled", doubled))
    }
    order = [0, 1, 3, 2, 4, 5, 6, 7, 9, 8]  # segments 2, 3 and 8, 9 are patch means and variances
    want = [parts["fixed"][1][i] for i in order]
    torch.testing.assert_close(list(parts["swapped"][1]), want, rtol=0, atol=0)
    torch.testing.assert_close(swapped.whole, fixed.whole, rtol=0, atol=0)
    want = [part * (1 if i in (4, 5) else 2) for i, part in enumerate(parts["fixed"][0])]
    torch.testing.assert_close(list(parts["doubled"][0]), want, rtol=0, atol=0)
    torch.testing.assert_close(doubled.by_class, fixed.by_class, rtol=0, atol=0)


def test_local_targets_are_the_moments_of_each_groups_own_real_images(rng: torch.Generator) -> None:
    model = network()
    images, labels, moments = real(model, rng)
    drawn, none = [images[:5], images[3:]], torch.zeros(12, dtype=torch.long)
    local = [
        {name: class_moments(z, none[: len(z)], 1, PATCH) for name, z in seen(model, part).items()}
        for part in drawn
    ]
    cfg = replace(CFG, class_form="local")
    goal = target(model, moments, torch.tensor([[0, 1], [2, 2]]), cfg, local=local)
    want = torch.cat([flat(segments(model, part)) for part in drawn])
    torch.testing.assert_close(goal.by_class, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(goal.whole, target(model, moments, labels[None], CFG).whole, rtol=0, atol=0)


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weight, first", [(0.0, 10.0), (0.3, 1.0), (0.3, 10.0), (1.0, 0.0)])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_whole_loss_equals_the_formula(
    class_weight: float, first: float, variance: str, rng: torch.Generator
) -> None:
    model = network()
    images, labels, moments = real(model, rng)
    cfg = Matching(
        class_weight=class_weight,
        first_multiplier=first,
        class_form="pooled" if variance == "pooled" else "within_image",
    )
    ours, mixes = torch.randn((8, 3, SIZE, SIZE), generator=rng), torch.tensor([[0, 1, 1, 1], [2, 2, 0, 2]])
    goal = target(model, moments, mixes, cfg)
    found = loss(measure(model, ours, models.layers(model), 2, PATCH)[1], goal, cfg)

    whole = segments(model, images)
    whole[4:6] = [buffer for name, buffer in model.named_buffers() if "running" in name]
    for value, part, mix in zip(found, ours.split(4), mixes.tolist(), strict=True):
        if variance == "pooled":
            by_class = segments(model, torch.cat([images[labels == c] for c in mix]))
        else:
            rows = [mean_of([segments(model, i[None]) for i in images[labels == c]]) for c in mix]
            by_class = mean_of(rows)
        want = 0.0
        for i, now in enumerate(segments(model, part)):
            far, near = float((now - whole[i]).norm()), float((now - by_class[i]).norm())
            want += (first if i < 4 else 1) * ((1 - class_weight) * far + class_weight * near)
        assert float(value) == pytest.approx(want, rel=1e-5)


def three_segments() -> Layout:
    """Two of one layer and one of another."""
    layers = [models.Layer("a", "conv", 2), models.Layer("b", "bn", 1)]
    return layout(layers, [(0, 2), (0, 3), (1, 1)])


@pytest.mark.parametrize("name", MATCHERS)
def test_class_weight_leads_from_the_global_to_the_class_residual(name: str, rng: torch.Generator) -> None:
    whole, by_class, now = (torch.randn((1, 6), generator=rng) for _ in range(3))
    goal = Target(three_segments(), torch.tensor([3.0, 1.0]), whole, by_class)

    def at(weight: float, statistics: Tensor) -> float:
        return float(loss(statistics, goal, Matching(loss=name, class_weight=weight)))

    assert at(0, whole) == 0 < at(1, whole) and at(1, by_class) == 0 < at(0, by_class)
    for weight in (0.25, 0.5, 0.75):
        assert at(weight, now) == pytest.approx((1 - weight) * at(0, now) + weight * at(1, now), rel=1e-5)


@pytest.mark.parametrize("name", MATCHERS)
def test_residuals_sum_the_norms_of_a_layers_segments(name: str, rng: torch.Generator) -> None:
    difference, norm = torch.randn((2, 6), generator=rng), partial(normed, name)
    want = [norm(difference[:, :2]) + norm(difference[:, 2:5]), norm(difference[:, 5:])]
    found = residuals(difference, three_segments(), MATCHERS[name])
    torch.testing.assert_close(found, torch.stack(want, 1))


FAMILY_OF = ("channel",) * 2 + ("patch",) * 2 + ("bn",) * 2 + ("channel",) * 2 + ("patch",) * 2  # of segments


@pytest.mark.parametrize(
    "families", [some for n in (1, 2) for some in combinations(FAMILIES, n)], ids="-".join
)
def test_families_leave_the_other_segments_out(families: tuple[str, ...], rng: torch.Generator) -> None:
    """The first layer that is matched is multiplied."""
    model, ours = network(), torch.randn((4, 3, SIZE, SIZE), generator=rng)
    _, labels, moments = real(model, rng)
    cfg = Matching(class_weight=0.25, families=families)  # type: ignore[arg-type]
    whole = target(model, moments, labels[None], CFG)
    goal = target(model, moments, labels[None], cfg)
    found = loss(measure(model, ours, matched(model, families), 1, PATCH, families)[1], goal, cfg)
    widths = [int(width) for width in whole.layout.width]
    layers = whole.layout.owner.nonzero()[:, 1].tolist()
    far, near = whole.whole.split(widths, 1), whole.by_class.split(widths, 1)
    rows = zip(segments(model, ours), far, near, FAMILY_OF, layers, strict=True)
    want = [
        (layer, 0.75 * float((now - one[0]).norm()) + 0.25 * float((now - other[0]).norm()))
        for now, one, other, family, layer in rows
        if family in families
    ]
    first = want[0][0]
    total = sum((10 if layer == first else 1) * value for layer, value in want)
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_an_observer_without_matched_layers_has_an_empty_target() -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, CLASSES))
    cfg = replace(CFG, families=("bn",))
    goal = target(convolution, {}, torch.zeros(2, 3, dtype=torch.long), cfg)
    assert goal.whole.shape == (1, 0) and goal.by_class.shape == (2, 0) and not goal.layout.layers


@pytest.mark.parametrize("name", MATCHERS)
def test_per_class_has_one_term_for_each_class_of_a_group(name: str, rng: torch.Generator) -> None:
    """P1: paper Eq. 5 sums p(c) ||stat of c in the group - stat of c||; official: one term for the mix.

    Groups are not class-balanced, and classes are cut in parts.
    """
    model = network()
    images, labels, moments = real(model, rng)
    cfg = Matching(class_form="per_class", class_weight=0.7, loss=name, first_multiplier=3)
    ours, mixes = torch.randn((8, 3, SIZE, SIZE), generator=rng), [[0, 1, 1, 1], [2, 1, 0, 2]]
    goal = target(model, moments, torch.tensor(mixes), cfg)
    assert goal.runs is not None and torch.equal(goal.runs.owner, runs(torch.tensor(mixes)).owner)
    now = measure(model, ours, matched(model, FAMILIES), 2, PATCH, FAMILIES, goal.runs)[1]
    found = loss(now, goal, cfg)

    far = goal.whole.split([int(width) for width in goal.layout.width], 1)
    for value, part, mix in zip(found, ours.split(4), mixes, strict=True):
        rows = [(0.3, part, [each[0] for each in far])]
        for c in set(mix):
            mine = part[[i for i, label in enumerate(mix) if label == c]]
            rows.append((0.7 * mix.count(c) / 4, mine, segments(model, images[labels == c])))
        want = sum(
            weight * (3 if i < 4 else 1) * float(normed(name, flat([one - other])))
            for weight, mine, goals in rows
            for i, (one, other) in enumerate(zip(segments(model, mine), goals, strict=True))
        )
        assert float(value) == pytest.approx(want, rel=1e-4)
    mixed = loss(now[:2], target(model, moments, torch.tensor(mixes), replace(cfg, class_form="pooled")), cfg)
    assert not torch.allclose(found, mixed, rtol=1e-2)


def test_of_one_class_both_forms_are_the_same(rng: torch.Generator) -> None:
    model = network()
    _, _, moments = real(model, rng)
    ours, mixes = torch.randn((4, 3, SIZE, SIZE), generator=rng), torch.tensor([[1, 1], [2, 2]])
    found = []
    for form in ("per_class", "pooled"):
        cfg = replace(CFG, class_form=form)
        goal = target(model, moments, mixes, cfg)
        now = measure(model, ours, matched(model, FAMILIES), 2, PATCH, FAMILIES, goal.runs)[1]
        found.append(loss(now, goal, cfg))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["pooled", "per_class"])
def test_a_layer_that_is_not_kept_counts_nothing_in_that_group(form: str, rng: torch.Generator) -> None:
    """Also the first one, whose multiplier is 10."""
    model = network()
    _, _, moments = real(model, rng)
    cfg = replace(CFG, class_form=form)  # type: ignore[arg-type]
    mixes = torch.tensor([[0, 1], [2, 1]])
    goal = target(model, moments, mixes, cfg)
    leaf = torch.randn((4, 3, SIZE, SIZE), generator=rng).requires_grad_()
    now = measure(model, leaf, matched(model, FAMILIES), 2, PATCH, FAMILIES, goal.runs)[1]
    every = torch.eye(3, dtype=torch.bool)
    alone = torch.stack([loss(now, goal, cfg, torch.stack([row, row])) for row in every])
    keep = torch.tensor([[False, True, True], [True, True, False]])
    found = loss(now, goal, cfg, keep)
    torch.testing.assert_close(found, torch.stack([alone[1:, 0].sum(), alone[:2, 1].sum()]))
    torch.testing.assert_close(alone.sum(0), loss(now, goal, cfg))
    (slope,) = torch.autograd.grad(loss(now, goal, cfg, torch.zeros(2, 3, dtype=torch.bool)).sum(), leaf)
    assert not slope.any()


def test_a_run_that_is_not_finite_spoils_its_own_group_only() -> None:
    model = network()
    _, _, moments = real(model, torch.Generator().manual_seed(0))
    cfg = replace(CFG, class_form="per_class")
    goal = target(model, moments, torch.tensor([[0, 1], [2, 1]]), cfg)
    now = torch.ones(2 + 4, goal.whole.shape[1])
    now[3] = torch.nan
    assert loss(now, goal, cfg).isfinite().tolist() == [False, True]


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("class_weight", [0.0, 0.5, 1.0])
def test_the_real_images_match_themselves(name: str, class_weight: float, rng: torch.Generator) -> None:
    """All data in one group, and running statistics that are those of the data: nothing is left."""
    model, cfg = network(), Matching(loss=name, class_weight=class_weight)
    images, labels, moments = real(model, rng)
    z, buffers = seen(model, images)["1"], dict(model.named_buffers())
    buffers["1.running_mean"].copy_(z.mean((0, 2, 3)))
    buffers["1.running_var"].copy_(z.var((0, 2, 3), correction=0))
    after = seen(model, images)["3"]  # behind the BatchNorm
    moments["3"] = class_moments(after, labels, CLASSES, PATCH)
    goal = target(model, moments, labels[None], cfg)
    assert float(loss(measure(model, images, models.layers(model), 1, PATCH)[1], goal, cfg)) < 1e-4
    worse = loss(measure(model, images * 1.1, models.layers(model), 1, PATCH)[1], goal, cfg)
    assert float(worse) > 1e-2


# --- running statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("correct", [True, False])
def test_the_value_is_the_average_of_the_visits(momentum: float, correct: bool, rng: torch.Generator) -> None:
    """Closed form: (1 - m) sum_i m^(n-i) s_i; with the correction, a weighted mean of the visits alone."""
    cfg = Matching(momentum=momentum, bias_correction=correct)
    visits = torch.randn((6, 2, 3), generator=rng)
    average = torch.zeros(2, 3)
    for n in range(1, 7):
        before = average.clone()
        average, value = straight_through(before, visits[n - 1], cfg, n)
        weights = torch.tensor([(1 - momentum) * momentum ** (n - i) for i in range(1, n + 1)])
        if correct:
            weights = weights / weights.sum()
        torch.testing.assert_close(value, (weights[:, None, None] * visits[:n]).sum(0))
    if momentum == 0.8 and not correct:  # B5: what is left after n visits of a constant is 1 - m^n
        _, value = straight_through(torch.zeros(1, 1), torch.ones(1, 1), cfg, 1)
        assert float(value) == pytest.approx(0.2)


def test_the_value_is_the_average_to_the_bit(rng: torch.Generator) -> None:
    now = torch.randn((3, 50), generator=rng) * 100
    average, value = straight_through(torch.zeros(3, 50), now, Matching(bias_correction=False), 1)
    assert torch.equal(value, average)


@pytest.mark.parametrize("correct", [True, False])
def test_the_gradient_does_not_know_the_momentum(correct: bool, rng: torch.Generator) -> None:
    average, weight = torch.randn((2, 3), generator=rng), torch.randn((2, 3), generator=rng)
    for momentum in (0.0, 0.5, 0.99):
        now = torch.ones(2, 3, requires_grad=True)
        cfg = Matching(momentum=momentum, bias_correction=correct)
        kept, value = straight_through(average, now, cfg, 4)
        (value * weight).sum().backward()
        torch.testing.assert_close(now.grad, weight, rtol=0, atol=0)
        assert not kept.requires_grad
