"""How much images of one class differ inside the networks, against what they should (method.md 2.4)."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from edc_ray.core.stats import Moments, pooled


def class_variance(
    ours: Mapping[str, Moments],
    real: Mapping[str, Moments],
    layers: Iterable[str],
    labels: Int[Tensor, " k"],
) -> tuple[Float[Tensor, "l k"], Float[Tensor, "l k"]]:
    """(ratio, share) for each layer's input and class: the variance over all pixels of the class's images.

    ratio: summed over the channels, over that of the real images. share: of the channels that vary more than
    those of the real images do.
    """
    ratios, shares = [], []
    for name in layers:
        one = functional.one_hot(labels.cpu(), len(real[name].count)).double()
        here, there = (
            pooled(m[name], one.to(m[name].count.device), "channel")[1].cpu() for m in (ours, real)
        )
        ratios.append(here.sum(1) / there.sum(1))
        shares.append((here > there).double().mean(1))
    return torch.stack(ratios), torch.stack(shares)
