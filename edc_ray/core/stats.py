"""Moments of layer inputs: per image, summed per class, exact and mergeable (method.md 2 and 10.2).

Per image and channel: the mean and the (biased) variance over its own pixels. Summed over the images of a
class with the squares of the means, they give every form of class statistic, for any mix of labels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.core import models

CACHED = 1 << 17  # values of a temporary on a CPU
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
    """Resized up to multiples of `patch` (method.md 2.2); as it is, where it is one."""
    size = tuple(math.ceil(side / patch) * patch for side in z.shape[-2:])
    if size == tuple(z.shape[-2:]):
        return z
    return functional.interpolate(z, size, mode="bilinear", align_corners=False)


def group_moments(
    z: Float[Tensor, "n c h w"], groups: int, patch: int | None, channels: bool = True
) -> list[Pair]:
    """Mean and biased variance in each of `groups` equal runs of images (method.md 2.2).

    channels: of each channel over images and pixels. patch: then also of each patch x patch cell over images,
    channels and pixels; other sizes are first resized up to a multiple. One backward for both, affine in z
    and twice differentiable; nothing but z is kept for it, which the network keeps anyway.
    """
    if patch is not None and (larger := enlarged(z, patch)) is not z:
        own = group_moments(z, groups, None) if channels else []
        return own + group_moments(larger, groups, patch, channels=False)
    found = _Moments.apply(z, groups, patch, channels)
    return list(zip(found[::2], found[1::2], strict=True))


def _two_passes(z: Float[Tensor, "n c h w"], groups: int, patch: int | None, channels: bool) -> list[Tensor]:
    """The means and the variances in float64; no image is copied to it.

    The distances to a first mean, summed in float32, are small; they correct it and give the variance. The
    sums go along one axis at a time, which torch has vectorised (`torch.var_mean` over several has not).
    """
    n, c, h, w = z.shape
    found: list[Tensor] = []
    if channels:
        values = n // groups * h * w
        first = _grouped(z.sum((2, 3)), groups) / values
        sums = _distances(z, first[:, :, None, None], (2, 3))
        found += _corrected(first, *(_grouped(part, groups) / values for part in sums))
    if patch is not None:
        values = n // groups * c * patch**2
        first = _grouped(_cell_sums(z.sum(1), patch), groups) / values
        sums = _distances(z, _spread(first, patch)[:, None], (1,))
        parts = _corrected(first, *(_grouped(_cell_sums(part, patch), groups) / values for part in sums))
        found += [part.flatten(1) for part in parts]
    return found


def _corrected(first: Tensor, apart: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    return first + apart, (square - apart.square()).clamp_min(0)


def _grouped(rows: Tensor, groups: int) -> Tensor:
    return rows.double().unflatten(0, (groups, -1)).sum(1)


def _distances(z: Float[Tensor, "n c h w"], centre: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sums of the distances to the centre of each image's group, and of their squares, over `dims`.

    On a CPU in copies that fit its cache.
    """
    run = len(z) if z.is_cuda else max(1, CACHED // max(1, z[0].numel()))
    centre = centre.to(z.dtype).repeat_interleave(len(z) // len(centre), 0)
    sums, squares = [], []
    for part, its in zip(z.split(run), centre.split(run), strict=True):
        apart = part - its
        sums.append(apart.sum(dims))
        squares.append(apart.square_().sum(dims))
    return torch.cat(sums), torch.cat(squares)


def _cell_sums(pixels: Float[Tensor, "n h w"], patch: int) -> Float[Tensor, "n u v"]:
    return pixels.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).sum((2, 4))


def _spread(cells: Float[Tensor, "g u v"], patch: int) -> Float[Tensor, "g h w"]:
    return cells.repeat_interleave(patch, 1).repeat_interleave(patch, 2)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, groups: int, patch: int | None, channels: bool) -> tuple[Tensor, ...]:
        found = [part.to(z.dtype) for part in _two_passes(z, groups, patch, channels)]
        ctx.save_for_backward(z, *found[::2])
        ctx.groups, ctx.patch, ctx.channels = groups, patch, channels
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """d mean / dz = 1 / N and d var / dz = 2 (z - mean) / N, N = values in the mean."""
        z, *means = ctx.saved_tensors
        n, c, h, w = z.shape
        lines = []
        for i, mean in enumerate(means):
            channel = ctx.channels and i == 0
            values = n // ctx.groups * (h * w if channel else c * ctx.patch**2)
            by_mean, factor = slopes[2 * i] / values, slopes[2 * i + 1] * (2 / values)
            line = torch.stack([factor, by_mean - factor * mean], 1)
            if channel:
                lines.append(line[..., None, None])
            else:
                maps = line.unflatten(2, (h // ctx.patch, -1)).flatten(0, 1)
                lines.append(_spread(maps, ctx.patch).unflatten(0, (-1, 2))[:, :, None])
        factor, shift = (lines[0] + lines[1] if len(lines) > 1 else lines[0]).unbind(1)
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
    each = {"channel": _two_passes(z, len(z), None, True)}
    if patch is not None:
        each["patch"] = _two_passes(enlarged(z, patch), len(z), patch, False)
    for kind, (mean, var) in each.items():
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
