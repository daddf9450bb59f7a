"""Moments against loops over images, channels and cells."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn

from edc_ray.core import stats
from edc_ray.core.random import fork_rng
from edc_ray.core.stats import (
    Moments,
    add,
    class_moments,
    enlarged,
    group_moments,
    merged,
    observe,
    pooled,
    shares,
    whole,
    within_image,
)

CLASSES, PATCH = 3, 4
# patch, height, width
SIZES = [(4, 8, 8), (4, 6, 6), (3, 7, 5), (1, 3, 2), (4, 1, 1), (2, 4, 3), (16, 1, 1), (16, 7, 18)]


def sample(n: int = 12, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    """Images whose means and spreads differ, and labels: every class n / 3 times."""
    rng = torch.Generator().manual_seed(1)
    z = torch.randn((n, 2, height, width), generator=rng) * (1 + torch.arange(n)[:, None, None, None] / n)
    return z + torch.randn((n, 2, 1, 1), generator=rng), torch.arange(n) % CLASSES


def slow_resize(z: Tensor, height: int, width: int) -> Tensor:
    """(c, h, w) made larger: each pixel's centre between its four neighbours, the edge repeated."""
    result = torch.empty(len(z), height, width, dtype=z.dtype)

    def between(at: int, new: int, old: int) -> tuple[int, int, float]:
        place = max(0.0, (at + 0.5) * old / new - 0.5)
        low = int(place)
        return low, min(low + 1, old - 1), place - low

    for y in range(height):
        top, bottom, down = between(y, height, z.shape[1])
        for x in range(width):
            left, right, across = between(x, width, z.shape[2])
            above = (1 - across) * z[:, top, left] + across * z[:, top, right]
            below = (1 - across) * z[:, bottom, left] + across * z[:, bottom, right]
            result[:, y, x] = (1 - down) * above + down * below
    return result


def slow_cells(z: Tensor, patch: int) -> list[Tensor]:
    """The cells of one image (c, h, w), row by row; each (c, patch, patch)."""
    up = [math.ceil(side / patch) * patch for side in z.shape[1:]]
    z = z if up == list(z.shape[1:]) else slow_resize(z, *up)
    return [
        z[:, top : top + patch, left : left + patch]
        for top in range(0, up[0], patch)
        for left in range(0, up[1], patch)
    ]


def slow_row(parts: list[Tensor]) -> Tensor:
    means = [float(part.mean()) for part in parts]
    variances = [float(((part - mean) ** 2).mean()) for part, mean in zip(parts, means, strict=True)]
    return torch.tensor([means, [mean**2 for mean in means], variances], dtype=torch.float64)


def cells(z: Tensor, patch: int) -> Tensor:
    """Non-overlapping cells of the map, resized up to a multiple of their side: (n, c, u, v, i, j)."""
    return enlarged(z, patch).unfold(2, patch, patch).unfold(3, patch, patch)


def channel_moments(z: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return group_moments(z, groups, None)[0]


def patch_moments(z: Tensor, groups: int, patch: int) -> tuple[Tensor, Tensor]:
    return group_moments(z, groups, patch, channels=False)[0]


def joined(z: Tensor, kind: str) -> Tensor:
    """All values that one statistic is made of: (d, values)."""
    if kind == "channel":
        return z.double().transpose(0, 1).flatten(1)
    return cells(z.double(), PATCH).permute(2, 3, 0, 1, 4, 5).flatten(2).flatten(0, 1)


def close(a: object, b: object) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def fields(m: Moments) -> tuple[Tensor, ...]:
    return tuple(m.tensors().values())


# --- one pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch, height, width", SIZES)
def test_class_moments_equal_a_loop(patch: int, height: int, width: int) -> None:
    z, _ = sample(4, height, width)
    labels = torch.tensor([2, 0, 0, 2])  # class 1 has no image
    channel = torch.zeros(CLASSES, 3, 2, dtype=torch.float64)
    patches = torch.zeros(CLASSES, 3, len(slow_cells(z[0], patch)), dtype=torch.float64)
    for image, label in zip(z.double(), labels.tolist(), strict=True):
        channel[label] += slow_row(list(image))
        patches[label] += slow_row(slow_cells(image, patch))
    want = torch.tensor([2.0, 0.0, 2.0], dtype=torch.float64), channel, patches
    close(fields(class_moments(z.double(), labels, CLASSES, patch)), want)
    found = fields(class_moments(z, labels, CLASSES, patch))  # float32 pixels, summed in float64
    assert all(part.dtype == torch.float64 for part in found)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("patch, height, width", SIZES)
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_groups_equal_separate_calls(patch: int, height: int, width: int, groups: int) -> None:
    z, _ = sample(6, height, width)
    z = z.double()
    parts = z.chunk(groups)
    close(
        channel_moments(z, groups),
        tuple(map(torch.cat, zip(*(channel_moments(p, 1) for p in parts), strict=True))),
    )
    alone = [patch_moments(part, 1, patch) for part in parts]
    close(patch_moments(z, groups, patch), tuple(map(torch.cat, zip(*alone, strict=True))))


def plain_moments(z: Tensor, groups: int, patch: int) -> tuple[Tensor, ...]:
    """The slow, obvious twin of `group_moments`: channels, then cells."""
    images = z.unflatten(0, (groups, -1))
    parts = cells(z, patch).unflatten(0, (groups, -1))
    pairs = (images, (1, 3, 4)), (parts, (1, 2, 5, 6))
    return tuple(
        part.flatten(1) for x, dims in pairs for part in reversed(torch.var_mean(x, dims, correction=0))
    )


@pytest.mark.parametrize("patch, height, width", SIZES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_group_moments_and_their_gradients_equal_the_plain_ones(
    patch: int, height: int, width: int, groups: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "gpu":  # what is called there, on the CPU
        monkeypatch.setattr(stats, "_by_axis", stats._by_kernel)
    z = sample(6, height, width)[0].double().requires_grad_()

    def fast(z: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for pair in group_moments(z, groups, patch) for part in pair)

    close(fast(z), plain_moments(z, groups, patch))
    slopes = [torch.randn_like(part) for part in fast(z)]
    own, twin = (torch.autograd.grad(f, z, slopes)[0] for f in (fast(z), plain_moments(z, groups, patch)))
    close(own, twin)


@pytest.mark.parametrize("patch", sorted({patch for patch, *_ in SIZES}))
@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_second_derivatives_of_group_moments_equal_differences(patch: int, groups: int) -> None:
    def fast(z: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for pair in group_moments(z, groups, patch) for part in pair)

    z = sample(2 * groups, 2, 3)[0].double().requires_grad_()
    assert torch.autograd.gradgradcheck(fast, z, fast_mode=groups > 1)  # fast: along random directions


@pytest.mark.parametrize("images", [0.5, 1.5, 9])
def test_runs_that_fit_the_cache_make_no_difference(images: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part of an image, an image, two of three groups."""
    z, _ = sample()
    whole_run = group_moments(z, 3, PATCH)
    monkeypatch.setattr(stats, "CACHED", int(images * z[0].numel()))
    torch.testing.assert_close(group_moments(z, 3, PATCH), whole_run)


def test_group_moments_pool_all_images_and_pixels() -> None:
    z, _ = sample()
    z = z.double()
    for kind, found in (("channel", channel_moments(z, 1)), ("patch", patch_moments(z, 1, PATCH))):
        values = joined(z, kind)
        close(found, (values.mean(1)[None], values.var(1, correction=0)[None]))


def test_no_digit_is_lost_to_a_large_offset() -> None:
    z, labels = sample()
    z = z + 1000
    for kind in ("channel", "patch"):
        moments = class_moments(z, labels, CLASSES, PATCH)
        _, variance = pooled(moments, shares(moments), kind)
        torch.testing.assert_close(variance[0], joined(z, kind).var(1, correction=0), rtol=1e-7, atol=0)


def test_merged_sets_equal_their_union() -> None:
    """Sets of images that lie anywhere in the batch, one of them alone."""
    z, _ = sample(7)
    z, owner = z.double(), torch.tensor([1, 0, 1, 3, 2, 1, 3])
    for kind, each in (("channel", channel_moments(z, 7)), ("patch", patch_moments(z, 7, PATCH))):
        mean, var = merged(*each, owner, 4)
        for row in range(4):
            values = joined(z[owner == row], kind)
            close((mean[row], var[row]), (values.mean(1), values.var(1, correction=0)))


# --- merging ------------------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(st.integers(1, 11), max_size=5, unique=True).map(sorted))
def test_merged_shards_equal_one_pass(cuts: list[int]) -> None:
    z, labels = sample()
    pairs = zip(z.tensor_split(cuts), labels.tensor_split(cuts), strict=True)
    shards = [class_moments(part, of, CLASSES, PATCH) for part, of in pairs]
    total = sum(shards[1:], shards[0])
    close(fields(total), fields(class_moments(z, labels, CLASSES, PATCH)))


def test_merging_is_associative_and_leaves_its_parts() -> None:
    z, labels = sample()
    pairs = zip(z.split(4), labels.split(4), strict=True)
    a, b, c = (class_moments(part, of, CLASSES, PATCH) for part, of in pairs)
    before = a.channel.clone()
    close(fields((a + b) + c), fields(a + (b + c)))
    assert torch.equal(a.channel, before)


def test_observed_layers_are_merged_by_name() -> None:
    """One forward gives the moments of every hooked layer's input."""
    with fork_rng("observed"):
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)).eval()
    z, labels = sample()
    one, two = (observe(model, z[part], labels[part], CLASSES, PATCH) for part in (slice(7), slice(7, 12)))
    total = add(add({}, one), two)
    assert list(total) == ["0", "1", "2"] and list(one) == list(total)
    inputs = (z, model[0](z), model[1](model[0](z)))
    for name, seen in zip(total, inputs, strict=True):
        want = class_moments(seen.detach(), labels, CLASSES, None if name == "1" else PATCH)
        assert (total[name].patch is None) == (name == "1")  # a BatchNorm is not matched in cells
        torch.testing.assert_close(fields(total[name]), fields(want), rtol=1e-5, atol=1e-5)


# --- what the sums give -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("mix", [[0], [1, 2], [0, 0, 2], [0, 1, 1, 2]])
def test_pooled_is_the_variance_over_the_pixels_of_images_with_these_labels(
    kind: str, mix: list[int]
) -> None:
    z, labels = sample()
    weights = torch.tensor([[mix.count(c) / len(mix) for c in range(CLASSES)]])
    found = pooled(class_moments(z, labels, CLASSES, PATCH), weights.double(), kind)
    values = joined(torch.cat([z[labels == c] for c in mix]), kind)
    torch.testing.assert_close(
        found, (values.mean(1)[None], values.var(1, correction=0)[None]), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_shares_give_the_statistics_of_the_whole_data(kind: str) -> None:
    z = sample()[0].double()
    labels = torch.tensor([0] * 7 + [2] * 5)  # unequal, and a class without images
    moments = class_moments(z, labels, CLASSES, PATCH)
    close(shares(moments), torch.tensor([[7 / 12, 0, 5 / 12]], dtype=torch.float64))
    values = joined(z, kind)
    close(pooled(moments, shares(moments), kind), (values.mean(1)[None], values.var(1, correction=0)[None]))


@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("size", [1, 4, 5, 12, 99])
def test_the_average_over_batches_weighs_them_by_their_images(kind: str, size: int) -> None:
    """Official: the mean of the batches' variances leaves out how their means differ. Also in shards."""
    z, labels = sample()
    z = z.double()
    batches = [joined(batch, kind) for batch in z.split(size)]
    want = tuple(
        sum(len(batch) / 12 * value for batch, value in zip(z.split(size), values, strict=True))
        for values in ([b.mean(1) for b in batches], [b.var(1, correction=0) for b in batches])
    )
    found = class_moments(z, labels, CLASSES, PATCH, size)
    close(tuple(part[0] for part in whole(found, kind)), want)
    if 12 % size == 0 and size < 12:  # a shard of whole batches
        parts = [slice(size), slice(size, 12)]
        one, two = (class_moments(z[part], labels[part], CLASSES, PATCH, size) for part in parts)
        close(whole(one + two, kind), whole(found, kind))
        plain = class_moments(z, labels, CLASSES, PATCH)
        assert (whole(found, kind)[1] < whole(plain, kind)[1]).all()
        close(whole(plain, kind), pooled(plain, shares(plain), kind))


@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_within_and_between_images_make_the_pooled_variance(kind: str) -> None:
    z, labels = sample()
    z = z.double()
    moments = class_moments(z, labels, CLASSES, PATCH)
    each = torch.eye(CLASSES, dtype=torch.float64)
    mean, total = pooled(moments, each, kind)
    inside_mean, inside = within_image(moments, each, kind)
    close(inside_mean, mean)
    assert (inside < total).all()
    for c in range(CLASSES):
        singles = torch.stack([joined(image[None], kind) for image in z[labels == c]])
        close(inside[c], singles.var(2, correction=0).mean(0))
        close(total[c] - inside[c], singles.mean(2).var(0, correction=0))


def test_a_constant_image_has_no_negative_variance() -> None:
    moments = class_moments(torch.full((3, 2, 4, 4), 0.1), torch.zeros(3, dtype=torch.long), CLASSES, PATCH)
    for kind in ("channel", "patch"):
        _, variance = pooled(moments, torch.tensor([[1.0, 0, 0]]), kind)
        assert (variance >= 0).all() and (variance < 1e-12).all()
