"""Network slimming (Liu et al. 2017): channels go by the scale of their BatchNorm, over all layers at once.

For networks that are one chain of convolutions, each with a BatchNorm behind it, as VGG is.
"""

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from edc_ray.core.models import Library

# Layers behind which a channel of zeros is still one of zeros, beside those that are cut.
_KEEP_ZERO = (
    nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity,
)  # fmt: skip
LEAST = 0.1  # share of the channels of each layer that stay, whatever their scales are
Masks = list[Bool[Tensor, " _"]]


def _chain(model: nn.Module) -> list[nn.Module]:
    """The layers with weights, in their order."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Those whose channels can be cut."""
    return [m for m in _chain(model) if isinstance(m, nn.BatchNorm2d)]


def is_chain(model: nn.Module) -> bool:
    """Whether `prune` can cut it: (convolution, BatchNorm) again and again, then linear layers."""
    for module in model.modules():
        known = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Sequential, Library, *_KEEP_ZERO)
        torchvision = type(module).__module__ == "torchvision.models.vgg"  # not imported for the question
        grouped = isinstance(module, nn.Conv2d) and module.groups > 1
        if grouped or not (torchvision or isinstance(module, known)):
            return False
    kinds = "".join(type(m).__name__[0] for m in _chain(model))  # Conv2d, BatchNorm2d, Linear
    heads = len(kinds) - len(kinds.rstrip("L"))
    return heads > 0 and heads < len(kinds) and kinds == "CB" * ((len(kinds) - heads) // 2) + "L" * heads


def penalty(model: nn.Module) -> Float[Tensor, ""]:
    """The sum of the absolute scales: what the L1 term weighs."""
    return torch.stack([norm.weight.abs().sum() for norm in norms(model)]).sum()


def masks(model: nn.Module, kept: float) -> Masks:
    """The channels of each BatchNorm that stay: this share of all, and at least a tenth of each layer.

    A layer of one channel ends the network, so the largest scales of each layer stay first; the largest of
    the others fill up what is left. Ties go to the first.
    """
    scales = [norm.weight.detach().abs() for norm in norms(model)]
    least = [scale.argsort(descending=True, stable=True)[: math.ceil(LEAST * len(scale))] for scale in scales]
    ranked = torch.cat([s.index_fill(0, ids, math.inf) for s, ids in zip(scales, least, strict=True)])
    count = max(sum(map(len, least)), round(kept * len(ranked)))
    keep = torch.zeros_like(ranked, dtype=torch.bool)
    keep[ranked.argsort(descending=True, stable=True)[:count]] = True
    return list(keep.split([len(scale) for scale in scales]))


def masked(model: nn.Module, keep: Masks) -> nn.Module:
    """A copy in which the other channels are zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for norm, mask in zip(norms(model), keep, strict=True):
            norm.weight.mul_(mask)
            norm.bias.mul_(mask)
    return model


def prune(model: nn.Module, keep: Masks) -> nn.Module:
    """A copy without the other channels: computes what `masked` does."""
    model = copy.deepcopy(model)
    before: Tensor | None = None  # the channels that are left of the input
    todo = list(keep)
    with torch.no_grad():
        for layer in _chain(model):
            if isinstance(layer, nn.Conv2d):
                _cut(layer, "weight", 1, before)
                _cut(layer, "weight", 0, todo[0])
                _cut(layer, "bias", 0, todo[0])
                layer.out_channels, layer.in_channels = layer.weight.shape[:2]
            elif isinstance(layer, nn.BatchNorm2d):
                before = todo.pop(0)
                for name in ("weight", "bias", "running_mean", "running_var"):
                    _cut(layer, name, 0, before)
                layer.num_features = len(layer.weight)
            elif before is not None:  # the first linear layer sees the flat map
                assert isinstance(layer, nn.Linear)
                _cut(layer, "weight", 1, before.repeat_interleave(layer.in_features // len(before)))
                layer.in_features, before = layer.weight.shape[1], None
    return model


def _cut(layer: nn.Module, name: str, axis: int, mask: Tensor | None) -> None:
    value = getattr(layer, name)
    if value is None or mask is None:
        return
    value.data = value.data.index_select(axis, mask.nonzero()[:, 0].to(value.device))


def sizes(keep: Masks) -> Sequence[int]:
    """Channels that are left of each layer."""
    return [int(mask.sum()) for mask in keep]
