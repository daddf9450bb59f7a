"""The statistical loss against the formulas of method.md 2.6, written out layer by layer."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edc_ray.config import Matching
from edc_ray.core import models
from edc_ray.core.matching import (
    CLASS_VARIANCES,
    MATCHERS,
    Layout,
    Target,
    loss,
    measure,
    residuals,
    straight_through,
    target,
)
from edc_ray.core.random import fork_rng
from edc_ray.core.stats import Moments, class_moments

CLASSES, PATCH, SIZE = 3, 4, 8
CFG = Matching()


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


@pytest.mark.parametrize("name", MATCHERS)
def test_zero_for_equal_statistics_and_only_for_them(name: str) -> None:
    norm, difference = MATCHERS[name], torch.zeros(3, 5)
    assert not norm(difference).any()
    for entry in range(5):
        changed = difference.clone()
        changed[1, entry] = -1e-3
        assert [value > 0 for value in norm(changed).tolist()] == [False, True, False]


@pytest.mark.parametrize("name", MATCHERS)
def test_the_gradient_is_finite_also_where_nothing_differs(name: str, rng: torch.Generator) -> None:
    for difference in (torch.zeros(2, 4), torch.randn((2, 4), generator=rng)):
        leaf = difference.clone().requires_grad_()
        MATCHERS[name](leaf).sum().backward()
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        assert bool(leaf.grad.any()) is bool(difference.any())


@pytest.mark.parametrize("name", MATCHERS)
def test_norms_grow_with_the_difference_and_take_groups_apart(name: str, rng: torch.Generator) -> None:
    norm, difference = MATCHERS[name], torch.randn((4, 6), generator=rng)
    torch.testing.assert_close(norm(difference), torch.cat([norm(row) for row in difference.split(1)]))
    torch.testing.assert_close(norm(2 * difference), (4 if name == "l2_squared" else 2) * norm(difference))
    torch.testing.assert_close(norm(difference), norm(-difference.flip(1)))


@pytest.mark.parametrize("name, want", [("l2", 5.0), ("l2_squared", 25.0), ("rms", 2.5)])
def test_norms_of_three_and_four(name: str, want: float) -> None:
    torch.testing.assert_close(MATCHERS[name](torch.tensor([[0.0, 3, -4, 0]])), torch.tensor([want]))


@pytest.mark.parametrize("name", MATCHERS)
def test_the_order_of_images_in_a_group_does_not_matter(name: str, rng: torch.Generator) -> None:
    model, cfg = network(), replace(CFG, loss=name)
    images, _, moments = real(model, rng)
    goal = target(model, moments, torch.zeros(2, 6, dtype=torch.long), cfg, False)
    mixed = torch.cat([part[torch.randperm(6, generator=rng)] for part in images.split(6)])
    layers = models.layers(model)
    a, b = (loss(measure(seen(model, z), layers, 2, PATCH), goal, cfg) for z in (images, mixed))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# --- measuring ----------------------------------------------------------------------------------------------


def test_a_vector_is_the_layers_segments_in_their_order(rng: torch.Generator) -> None:
    model = network()
    images, labels, moments = real(model, rng)
    want = segments(model, images)
    torch.testing.assert_close(measure(seen(model, images), models.layers(model), 1, PATCH), flat(want))
    layout = target(model, moments, labels[None], CFG, False).layout
    assert layout.widths == tuple(len(part) for part in want)
    assert layout.layers == (0, 0, 0, 0, 1, 1, 2, 2, 2, 2)


@pytest.mark.parametrize("groups", [2, 3, 12])
def test_groups_are_measured_as_batches_of_their_own(groups: int, rng: torch.Generator) -> None:
    model = network()
    images, _, _ = real(model, rng)
    layers = models.layers(model)
    alone = [measure(seen(model, part), layers, 1, PATCH) for part in images.chunk(groups)]
    together = measure(seen(model, images), layers, groups, PATCH)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


# --- targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", CLASS_VARIANCES)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("mix", [[0, 0], [1, 2], [2, 0, 2, 2]])
def test_targets_equal_the_formulas(variance: str, swap: bool, mix: list[int], rng: torch.Generator) -> None:
    """Two groups: the first has the labels `mix`, the second only class 1."""
    model = network()
    images, labels, moments = real(model, rng)
    cfg = Matching(class_form="pooled" if variance == "pooled" else "within_image")
    goal = target(model, moments, torch.tensor([mix, [1] * len(mix)]), cfg, swap)

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
    goal = target(model, moments, labels[None], CFG, False)
    torch.testing.assert_close(goal.whole, flat(segments(model, images)), rtol=1e-5, atol=1e-5)


def test_a_network_with_nothing_to_match_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to match"):
        target(
            nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), {}, torch.zeros(1, 2, dtype=torch.long), CFG, False
        )


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("first", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("variance", CLASS_VARIANCES)
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
    goal = target(model, moments, mixes, cfg, False)
    found = loss(measure(seen(model, ours), models.layers(model), 2, PATCH), goal, cfg)

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


@pytest.mark.parametrize("name", MATCHERS)
def test_class_weight_leads_from_the_global_to_the_class_residual(name: str, rng: torch.Generator) -> None:
    layout = Layout((2, 3, 1), (0, 0, 1))
    whole, by_class, now = (torch.randn((1, 6), generator=rng) for _ in range(3))
    goal = Target(layout, whole, by_class)

    def at(weight: float, statistics: Tensor) -> float:
        return float(loss(statistics, goal, Matching(loss=name, class_weight=weight)))

    assert at(0, whole) == 0 < at(1, whole) and at(1, by_class) == 0 < at(0, by_class)
    for weight in (0.25, 0.5, 0.75):
        assert at(weight, now) == pytest.approx((1 - weight) * at(0, now) + weight * at(1, now), rel=1e-5)


@pytest.mark.parametrize("name", MATCHERS)
def test_residuals_sum_the_norms_of_a_layers_segments(name: str, rng: torch.Generator) -> None:
    difference, norm = torch.randn((2, 6), generator=rng), MATCHERS[name]
    want = [norm(difference[:, :2]) + norm(difference[:, 2:5]), norm(difference[:, 5:])]
    found = residuals(difference, Layout((2, 3, 1), (0, 0, 1)), norm)
    torch.testing.assert_close(found, torch.stack(want, 1))


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
    goal = target(model, moments, labels[None], cfg, False)
    assert float(loss(measure(seen(model, images), models.layers(model), 1, PATCH), goal, cfg)) < 1e-4
    worse = loss(measure(seen(model, images * 1.1), models.layers(model), 1, PATCH), goal, cfg)
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
