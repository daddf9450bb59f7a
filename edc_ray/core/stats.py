"""Moments of layer inputs: per image, summed per class, exact and mergeable (method.md 2 and 10.2).

Per image and channel: the mean and the (biased) variance over its own pixels. Summed over the images of a
class with the squares of the means, they give every form of class statistic, for any mix of labels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.core import models

Pair = tuple[Tensor, Tensor]  # mean and variance, each (rows, d)


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the images of each class, float64. `a + b` merges two sets of images.

    count: images per class. channel, patch: sums of (mean, mean squared, variance) per channel or cell.
    channel_batches, patch_batches: sums over batches of images * (mean, variance), for the official average
    over batches (method.md 2.3).
    """

    count: Float[Tensor, " k"]
    channel: Float[Tensor, "k 3 c"]
    patch: Float[Tensor, "k 3 p"]
    channel_batches: Float[Tensor, "2 c"] | None = None
    patch_batches: Float[Tensor, "2 p"] | None = None

    def __add__(self, other: "Moments") -> "Moments":
        sums = {name: value + getattr(other, name) for name, value in self.tensors().items()}
        return Moments(**sums)

    def tensors(self) -> dict[str, Tensor]:
        """The sums that there are, by the name of their field."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def cells(z: Float[Tensor, "n c h w"], patch: int) -> Float[Tensor, "n c u v i j"]:
    """Non-overlapping patch x patch cells; other sizes are first resized up to a multiple (method.md 2.2)."""
    height, width = (math.ceil(side / patch) * patch for side in z.shape[-2:])
    if (height, width) != tuple(z.shape[-2:]):
        z = functional.interpolate(z, (height, width), mode="bilinear", align_corners=False)
    n, c = z.shape[:2]
    return z.reshape(n, c, height // patch, patch, width // patch, patch).transpose(3, 4)


def channel_moments(
    z: Float[Tensor, "n c h w"], groups: int
) -> tuple[Float[Tensor, "groups c"], Float[Tensor, "groups c"]]:
    """Mean and biased variance of each channel over the pixels of each of `groups` equal runs of images."""
    pixels = z.unflatten(0, (groups, -1))
    var, mean = torch.var_mean(pixels, dim=(1, 3, 4), correction=0)
    return mean, var


def patch_moments(
    z: Float[Tensor, "n c h w"], groups: int, patch: int
) -> tuple[Float[Tensor, "groups p"], Float[Tensor, "groups p"]]:
    """Mean and biased variance of each cell over the images, channels and pixels of each group."""
    pixels = cells(z, patch).unflatten(0, (groups, -1))
    var, mean = torch.var_mean(pixels, dim=(1, 2, 5, 6), correction=0)
    return mean.flatten(1), var.flatten(1)


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
    patch: int,
    batch_size: int | None = None,
) -> Moments:
    """The sums of these images: each image is its own group, added to its class in float64.

    batch_size: also average over consecutive batches of so many images; the last may be smaller.
    """
    z = z.double()  # squares of float32 means lose the small variances
    count = torch.bincount(labels, minlength=classes).double()
    sums, batches = [], []
    for mean, var in (channel_moments(z, len(z)), patch_moments(z, len(z), patch)):
        rows = torch.stack([mean, mean.square(), var], 1)
        empty = torch.zeros(classes, *rows.shape[1:], dtype=torch.float64, device=z.device)
        sums.append(empty.index_add_(0, labels, rows))
        if batch_size is not None:
            owner = torch.arange(len(z), device=z.device) // batch_size
            pair = torch.stack(merged(mean, var, owner, math.ceil(len(z) / batch_size)))
            batches.append((pair * owner.bincount()[:, None]).sum(1))
    return Moments(count, *sums, *batches)


def observe(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    classes: int,
    patch: int,
    batch_size: int | None = None,
) -> dict[str, Moments]:
    """`class_moments` of the input of every hooked layer, in one forward; layer name -> Moments."""
    with torch.no_grad(), models.capture(model) as inputs:
        model(images)
    return {name: class_moments(z, labels, classes, patch, batch_size) for name, z in inputs.items()}


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
