"""The statistical loss: moments of a group of images against those of the real ones (method.md 2.6).

An observer's statistics are one flat vector: for each hooked layer the channel means and variances and, for a
convolution, the patch means and variances. `Layout` says where each of these segments lies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edc_ray.config import Matching
from edc_ray.core import models
from edc_ray.core.stats import Moments, channel_moments, patch_moments, pooled, shares, within_image

Norm = Callable[[Float[Tensor, "g d"]], Float[Tensor, " g"]]


def l2(difference: Float[Tensor, "g d"]) -> Float[Tensor, " g"]:
    """The unsquared norm (paper Eq. 5; official code)."""
    return torch.linalg.vector_norm(difference, dim=1)


def l2_squared(difference: Float[Tensor, "g d"]) -> Float[Tensor, " g"]:
    """The squared norm, as in SRe2L's formula."""
    return difference.square().sum(1)


def rms(difference: Float[Tensor, "g d"]) -> Float[Tensor, " g"]:
    """The norm per entry: layers of different width weigh alike."""
    return l2(difference) / difference.shape[1] ** 0.5


MATCHERS: dict[str, Norm] = {"l2": l2, "l2_squared": l2_squared, "rms": rms}
CLASS_VARIANCES = {"pooled": pooled, "within_image": within_image}


@dataclass(frozen=True, slots=True)
class Layout:
    """Segments of one observer's vector: their widths, and the layer each belongs to."""

    widths: tuple[int, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What one observer's statistics should be: of the whole data, and of each group's mix of labels."""

    layout: Layout
    whole: Float[Tensor, "1 d"]
    by_class: Float[Tensor, "g d"]


def measure(
    inputs: Mapping[str, Tensor], layers: Sequence[models.Layer], groups: int, patch: int
) -> Float[Tensor, "groups d"]:
    """The statistics of each group; inputs: captured layer inputs of groups * n images."""
    segments: list[Tensor] = []
    for layer in layers:
        z = inputs[layer.name]
        segments += channel_moments(z, groups)
        if layer.kind == "conv":
            segments += patch_moments(z, groups, patch)
    return torch.cat(segments, 1)


def target(
    model: nn.Module,
    moments: Mapping[str, Moments],
    labels: Int[Tensor, "g n"],
    cfg: Matching,
    swap_patch: bool,
) -> Target:
    """Targets of one observer for groups with these labels.

    BatchNorm layers match the running statistics as global ones (method.md 2.3). swap_patch: quirk B2.

    Raises:
        ValueError: the observer has neither a convolution nor a BatchNorm layer.
    """
    layers = models.layers(model)
    if not layers:
        raise ValueError("no convolution and no BatchNorm layer: there is nothing to match")
    classes = len(next(iter(moments.values())).count)
    mix = torch.nn.functional.one_hot(labels, classes).double().mean(1)
    variance, whole, owners = CLASS_VARIANCES[cfg.class_form], [], []
    by_class: list[Tensor] = []
    for index, layer in enumerate(layers):
        m = moments[layer.name]
        norm = model.get_submodule(layer.name)
        if (
            isinstance(norm, nn.BatchNorm2d)
            and norm.running_mean is not None
            and norm.running_var is not None
        ):
            whole += [norm.running_mean[None].double().cpu(), norm.running_var[None].double().cpu()]
        else:
            whole += pooled(m, shares(m), "channel")
        by_class += variance(m, mix, "channel")
        if layer.kind == "conv":
            whole += pooled(m, shares(m), "patch")
            patch = variance(m, mix, "patch")
            by_class += reversed(patch) if swap_patch else patch
        owners += [index] * (4 if layer.kind == "conv" else 2)
    layout = Layout(tuple(part.shape[1] for part in by_class), tuple(owners))
    return Target(layout, torch.cat(whole, 1).float(), torch.cat(by_class, 1).float())


def residuals(difference: Float[Tensor, "g d"], layout: Layout, norm: Norm) -> Float[Tensor, "g layers"]:
    """Sum of the norms of each layer's segments."""
    per_segment = torch.stack([norm(part) for part in difference.split(list(layout.widths), 1)], 1)
    owner = torch.tensor(layout.layers, device=difference.device)
    return per_segment.new_zeros(len(difference), layout.layers[-1] + 1).index_add(1, owner, per_segment)


def loss(statistics: Float[Tensor, "g d"], goal: Target, cfg: Matching) -> Float[Tensor, " g"]:
    """sum_l w_l ((1 - a) R_global + a R_class), with a = class_weight and w_0 = first_multiplier, w_l = 1."""
    norm, a = MATCHERS[cfg.loss], cfg.class_weight
    layers = (1 - a) * residuals(statistics - goal.whole, goal.layout, norm)
    layers = layers + a * residuals(statistics - goal.by_class, goal.layout, norm)
    return layers.sum(1) + (cfg.first_multiplier - 1) * layers[:, 0]


def straight_through(
    average: Float[Tensor, "g d"], now: Float[Tensor, "g d"], cfg: Matching, visits: int
) -> tuple[Float[Tensor, "g d"], Float[Tensor, "g d"]]:
    """(new running average, value to match): the value of the average, the whole gradient of `now`.

    average starts at 0; visits counts this one. Without bias_correction the start is felt for ever (B5).
    """
    average = cfg.momentum * average + (1 - cfg.momentum) * now.detach()
    value = average / (1 - cfg.momentum**visits) if cfg.bias_correction else average
    return average, value + (now - now.detach())
