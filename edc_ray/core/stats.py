"""Moments of layer inputs: per image, summed per class, exact and mergeable (method.md 2 and 10.2).

Per image and channel: the mean and the (biased) variance over its own pixels. Summed over the images of a
class with the squares of the means, they give every form of class statistic, for any mix of labels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the images of each class, float64. `a + b` merges two sets of images.

    count: images per class. channel, patch: sums of (mean, mean squared, variance) per channel or cell.
    """

    count: Float[Tensor, " k"]
    channel: Float[Tensor, "k 3 c"]
    patch: Float[Tensor, "k 3 p"]

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.channel + other.channel, self.patch + other.patch)


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


def class_moments(
    z: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], classes: int, patch: int
) -> Moments:
    """The sums of these images: each image is its own group, added to its class in float64."""

    def add(mean: Tensor, var: Tensor) -> Tensor:
        rows = torch.stack([mean, mean.square(), var], 1).double()
        return torch.zeros(classes, *rows.shape[1:], dtype=torch.float64, device=z.device).index_add_(
            0, labels, rows
        )

    z = z.double()  # squares of float32 means lose the small variances
    count = torch.bincount(labels, minlength=classes).double()
    return Moments(count, add(*channel_moments(z, len(z))), add(*patch_moments(z, len(z), patch)))


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
