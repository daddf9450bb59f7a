"""Moments of layer inputs: per image, summed per class, exact and mergeable (method.md 2 and 10.2).

Per image and channel: the mean and the (biased) variance over its own pixels. Summed over the images of a
class with the squares of the means, they give every form of class statistic, for any mix of labels.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.core import models

CACHED = 1 << 17  # values of a temporary on a CPU
SMALL = 64  # pixels of a map of which many are handled at once
Pair = tuple[Tensor, Tensor]  # mean and variance, each (rows, d)


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the images of each class, float64. `a + b` merges two sets of images.

    count: images per class. channel, patch: sums of (mean, mean squared, variance) per channel or cell;
    a BatchNorm has no cells.
    channel_batches, patch_batches: sums over batches of images * (mean, variance), for the official average
    over batches (method.md 2.3).
    """

    count: Float[Tensor, " k"]
    channel: Float[Tensor, "k 3 c"]
    patch: Float[Tensor, "k 3 p"] | None = None
    channel_batches: Float[Tensor, "2 c"] | None = None
    patch_batches: Float[Tensor, "2 p"] | None = None

    def __add__(self, other: "Moments") -> "Moments":
        sums = {name: value + getattr(other, name) for name, value in self.tensors().items()}
        return Moments(**sums)

    def tensors(self) -> dict[str, Tensor]:
        """The sums that there are, by the name of their field."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def enlarged(z: Float[Tensor, "n c h w"], patch: int) -> Float[Tensor, "n c h2 w2"]:
    """Resized up to multiples of `patch` (method.md 2.2), bilinear; as it is, where it is one.

    As matrix products, which are faster than `interpolate` and, backwards, deterministic on every device.
    """
    sides = tuple(z.shape[-2:])
    new = tuple(math.ceil(side / patch) * patch for side in sides)
    if new == sides:
        return z
    rows, columns = (_taps(*pair, z.dtype, z.device) for pair in zip(sides, new, strict=True))
    if z[0, 0].numel() <= SMALL:
        return (z.flatten(2) @ torch.kron(rows, columns)).unflatten(2, new)
    return ((z @ columns).transpose(-1, -2) @ rows).transpose(-1, -2)


@lru_cache(64)
def _taps(side: int, new: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "side new"]:
    """How much of each old position is in each new one."""
    eye = torch.eye(side, dtype=dtype, device=device)
    return functional.interpolate(eye[None], new, mode="linear", align_corners=False)[0]


def group_moments(
    z: Float[Tensor, "n c h w"], groups: int, patch: int | None, channels: bool = True
) -> list[Pair]:
    """Mean and biased variance in each of `groups` equal runs of images (method.md 2.2).

    channels: of each channel over images and pixels. patch: then also of each patch x patch cell over images,
    channels and pixels; other sizes are first resized up to a multiple. One backward for both, affine in z
    and twice differentiable; nothing but z is kept for it, which the network keeps anyway.
    """
    if patch is not None and z.shape[-2:] == (1, 1):
        patch = 1  # larger, it is the same number everywhere
    if patch is not None and (larger := enlarged(z, patch)) is not z:
        own = group_moments(z, groups, None) if channels else []
        return own + group_moments(larger, groups, patch, channels=False)
    found = _Moments.apply(z, groups, patch, channels)
    return list(zip(found[::2], found[1::2], strict=True))


def _by_kernel(z: Float[Tensor, "g m c h w"], patch: int | None, channels: bool) -> list[Pair]:
    """Means and variances, of the channels, then of the cells: one kernel each.

    For a GPU; on a CPU torch has not vectorised it over several axes.
    """
    variances = list[Pair]()
    if channels:
        variances.append(torch.var_mean(z, (1, 3, 4), correction=0))
    if patch is not None:
        cells = z.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
        variances.append(torch.var_mean(cells, (1, 2, 4, 6), correction=0))
    return [(mean.flatten(1), var.flatten(1)) for var, mean in variances]


def _by_axis(z: Float[Tensor, "g m c h w"], patch: int | None, channels: bool) -> list[Pair]:
    """As `_by_kernel`."""
    pairs = list[Pair]()
    if channels:
        pairs.append(_by_distance(z, _channel_sums, lambda mean: mean[:, None, :, None, None]))
    if patch is not None:
        sums = partial(_cell_sums, patch=patch)
        pairs.append(_by_distance(z, sums, lambda mean: _spread(mean, patch)[:, None, None]))
    return [(mean.flatten(1), var.flatten(1)) for mean, var in pairs]


def _by_distance(
    z: Float[Tensor, "g m c h w"], sums: Callable[[Tensor], Tensor], centre: Callable[[Tensor], Tensor]
) -> Pair:
    """The mean, then the mean squared distance to it. centre: the mean, shaped to be taken from z."""
    first = sums(z)
    values = z.numel() // first.numel()
    mean = first / values
    square = [sums(part.square_()) for part in _distances(z, centre(mean))]
    return mean, _joined(square, len(z)) / values


def _distances(z: Float[Tensor, "g m c h w"], centre: Tensor) -> Iterator[Tensor]:
    """z - centre, on a CPU in parts that fit its cache: one or more groups, or a part of one."""
    images = z.shape[1]
    run = len(z) * images if z.is_cuda else max(1, CACHED // max(1, z[0, 0].numel()))
    if run >= images:
        yield from (a - b for a, b in zip(*(x.split(run // images) for x in (z, centre)), strict=True))
        return
    for group, its in zip(z.split(1), centre.split(1), strict=True):
        yield from (part - its for part in group.split(run, 1))


def _joined(parts: list[Tensor], groups: int) -> Tensor:
    """Sums of groups, from those of `_distances`."""
    if len(parts) > groups:
        return torch.cat(parts).unflatten(0, (groups, -1)).sum(1)
    return torch.cat(parts)


def _channel_sums(z: Float[Tensor, "g m c h w"]) -> Float[Tensor, "g c"]:
    """Where maps are small, the images first: then the innermost loop is long."""
    return z.sum(1).sum((2, 3)) if z[0, 0, 0].numel() <= SMALL else z.sum((3, 4)).sum(1)


def _cell_sums(z: Float[Tensor, "g m c h w"], patch: int) -> Float[Tensor, "g u v"]:
    return z.sum((1, 2)).unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).sum((2, 4))


def _spread(cells: Float[Tensor, "g u v"], patch: int) -> Float[Tensor, "g h w"]:
    wide = cells[:, :, None, :, None].expand(-1, -1, patch, -1, patch)
    return wide.flatten(3).flatten(1, 2)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, groups: int, patch: int | None, channels: bool) -> tuple[Tensor, ...]:
        measure = _by_kernel if z.is_cuda else _by_axis
        pairs = measure(z.unflatten(0, (groups, -1)), patch, channels)
        ctx.save_for_backward(z, *(mean for mean, _ in pairs))
        ctx.groups, ctx.patch, ctx.channels = groups, patch, channels
        return tuple(part for pair in pairs for part in pair)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """d mean / dz = 1 / N and d var / dz = 2 (z - mean) / N, N = values in the mean."""
        z, *means = ctx.saved_tensors
        factor: Tensor | float = 0.0
        shift: Tensor | float = 0.0
        for i, mean in enumerate(means):
            values = z.numel() // mean.numel()
            by_var = slopes[2 * i + 1] * (2 / values)
            pair = by_var, torch.addcmul(slopes[2 * i] / values, by_var, mean, value=-1)
            if i == 0 and ctx.channels:
                factor, shift = (part[:, :, None, None] for part in pair)
            else:
                cells = (part.unflatten(1, (z.shape[2] // ctx.patch, -1)) for part in pair)
                on_map = [_spread(part, ctx.patch)[:, None] for part in cells]
                factor, shift = factor + on_map[0], shift + on_map[1]
        assert isinstance(factor, Tensor) and isinstance(shift, Tensor)
        slope = torch.addcmul(shift[:, None], factor[:, None], z.unflatten(0, (ctx.groups, -1)))
        return slope.flatten(0, 1), None, None, None


def merged(
    mean: Float[Tensor, "n d"], var: Float[Tensor, "n d"], owner: Int[Tensor, " n"], rows: int
) -> Pair:
    """Mean and variance of the union of equally large sets that have the same owner, 0 to rows - 1.

    Law of total variance: the mean variance inside a set and the variance of the sets' means. Summed in
    float64, which no precision of matrix products touches.
    """
    member = functional.one_hot(owner, rows).double()
    share = (member / member.sum(0)).T
    total = share @ mean.double()
    spread = var.double() + (mean.double() - total[owner]).square()
    return total.to(mean.dtype), (share @ spread).to(var.dtype)


def _image_moments(z: Float[Tensor, "n c h w"], patch: int | None) -> dict[str, Pair]:
    """Of each image alone: of its channels and, with `patch`, of its cells.

    From sums of values and of squares, one pass over what is in the cache: in float64 as good as distances.
    """
    rows: tuple[list[Tensor], list[Tensor]] = [], []  # sums of the values, then of their squares
    pixels: tuple[list[Tensor], list[Tensor]] = [], []
    together = max(1, (1 << 26 if z.is_cuda else 2 * CACHED) // max(1, z[0].numel()))
    room = _room(z[:together])
    for part in z.split(together):
        values = room[: len(part)].copy_(part)
        larger = values if patch is None else enlarged(values, patch)
        for power in range(2):
            if power:
                values.square_()
                larger = values if larger.shape == values.shape else larger.square_()
            rows[power].append(values.sum((2, 3)))
            if patch is not None:
                pixels[power].append(larger.sum(1))
    found = {"channel": [torch.cat(parts) / z[0, 0].numel() for parts in rows]}
    if patch is not None:
        cells = (torch.cat(parts).unflatten(2, (-1, patch)).unflatten(1, (-1, patch)) for parts in pixels)
        found["patch"] = [cell.sum((2, 4)).flatten(1) / (z.shape[1] * patch**2) for cell in cells]
    return {kind: (mean, (square - mean.square()).clamp_min(0)) for kind, (mean, square) in found.items()}


def _room(z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """For copies in float64, a cache line between maps: at powers of 2 apart they evict each other."""
    pixels = z[0, 0].numel()
    room = z.new_empty(*z.shape[:2], pixels + 8 * (pixels > SMALL), dtype=torch.float64)
    return room[..., :pixels].unflatten(2, z.shape[2:])


def class_moments(
    z: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    classes: int,
    patch: int | None,
    batch_size: int | None = None,
) -> Moments:
    """The sums of these images: each image is its own group, added to its class in float64.

    patch: side of a cell; None = no cells. batch_size: also average over consecutive batches of so many
    images; the last may be smaller.
    """
    sums: dict[str, Tensor] = {"count": torch.bincount(labels, minlength=classes).double()}
    for kind, (mean, var) in _image_moments(z, patch).items():
        rows = torch.stack([mean, mean.square(), var], 1)
        empty = torch.zeros(classes, *rows.shape[1:], dtype=torch.float64, device=z.device)
        sums[kind] = empty.index_add_(0, labels, rows)
        if batch_size is not None:
            owner = torch.arange(len(z), device=z.device) // batch_size
            pair = torch.stack(merged(mean, var, owner, math.ceil(len(z) / batch_size)))
            sums[f"{kind}_batches"] = (pair * owner.bincount()[:, None]).sum(1)
    return Moments(**sums)


def observe(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    classes: int,
    patch: int,
    batch_size: int | None = None,
) -> dict[str, Moments]:
    """`class_moments` of the input of every hooked layer, in one forward; layer name -> Moments."""
    sizes = {layer.name: patch if layer.kind == "conv" else None for layer in models.layers(model)}

    def read(name: str, z: Tensor) -> Moments:
        return class_moments(z, labels, classes, sizes[name], batch_size)

    with torch.no_grad(), models.capture(model, read) as moments:
        model(images)
    return moments


def add(total: Mapping[str, Moments], more: Mapping[str, Moments]) -> dict[str, Moments]:
    """Layer by layer; `total` may be empty."""
    return {name: total[name] + m for name, m in more.items()} if total else dict(more)


def whole(moments: Moments, kind: str) -> tuple[Float[Tensor, "1 d"], Float[Tensor, "1 d"]]:
    """The global statistics: over all pixels of all images or, where it was summed, the average over batches.

    That average leaves out how the batches' means differ (official, method.md 2.3). kind: "channel", "patch".
    """
    batches: Tensor | None = getattr(moments, f"{kind}_batches")
    if batches is None:
        return pooled(moments, shares(moments), kind)
    mean, var = (batches / moments.count.sum())[:, None]
    return mean, var


def pooled(
    moments: Moments, weights: Float[Tensor, "g k"], kind: str
) -> tuple[Float[Tensor, "g d"], Float[Tensor, "g d"]]:
    """Mean and variance over all pixels of images whose labels occur with `weights` (rows sum to 1).

    kind: "channel" or "patch". Law of total variance: E[var] + E[mean^2] - E[mean]^2.
    """
    mean, square, var = _class_means(moments, weights, kind)
    return mean, (var + square - mean.square()).clamp_min(0)


def within_image(
    moments: Moments, weights: Float[Tensor, "g k"], kind: str
) -> tuple[Float[Tensor, "g d"], Float[Tensor, "g d"]]:
    """As `pooled`, but the variance is the mean variance inside one image (official, method.md 2.4, P2)."""
    mean, _, var = _class_means(moments, weights, kind)
    return mean, var


def _class_means(moments: Moments, weights: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    sums: Tensor = getattr(moments, kind)
    per_class = sums / moments.count.clamp_min(1)[:, None, None]
    mean, square, var = (weights.double() @ per_class[:, i] for i in range(3))
    return mean, square, var


def shares(moments: Moments) -> Float[Tensor, "1 k"]:
    """How often each class occurs in the data: the weights that give the global statistics."""
    return (moments.count / moments.count.sum())[None]
