"""Architecture search: does a small training set rank architectures as the whole one does?

The space is a small one of the ConvNets of Dataset Condensation (Zhao et al. 2021): width, depth, norm
and activation.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from edc_ray.core import models
from edc_ray.core.random import fork_rng, generator

DRAWS = 1000  # of the bootstrap
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda width: nn.GroupNorm(width, width),
    "batch": nn.BatchNorm2d,
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def _convnet(classes: int, size_px: int, *, width: int, depth: int, norm: str, activation: str) -> nn.Module:
    """Blocks of 3x3 convolution, normalisation, activation, 2x2 average pooling; a linear layer."""
    blocks: list[nn.Module] = []
    for index in range(depth):
        conv = nn.Conv2d(width if index else 3, width, 3, padding=1)
        blocks += [conv, NORMS[norm](width), ACTIVATIONS[activation](), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * (size_px >> depth) ** 2, classes))


SPACE: dict[str, Callable[[int, int], nn.Module]] = {
    f"w{width}_d{depth}_{norm}_{activation}": partial(
        _convnet, width=width, depth=depth, norm=norm, activation=activation
    )
    for width, depth, norm, activation in itertools.product((4, 16), (1, 2, 3), NORMS, ACTIVATIONS)
}


def build(name: str, classes: int, size_px: int, seed: int) -> nn.Module:
    """A row of SPACE, or a network by its name, with weights drawn from the seed."""
    if name not in SPACE:
        return models.build(name, classes, size_px, seed)
    with fork_rng(seed):
        return SPACE[name](classes, size_px)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; nan where one of them does not vary."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return float("nan")
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Sequence[float]) -> Float[np.ndarray, " n"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def bootstrap(measure: Callable[[Sequence[int]], float], count: int, seed: int = 0) -> tuple[float, float]:
    """The percentile interval (95 %) of a measure of `count` things, drawn again with replacement.

    measure: of the things at these positions. Draws where it is nan do not count.
    """
    rng = generator("bootstrap", seed)
    drawn = torch.randint(count, (DRAWS, count), generator=rng).tolist()
    low, high = np.nanpercentile([measure(ids) for ids in drawn], (2.5, 97.5))
    return float(low), float(high)


def ranks(found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """How well each arm ranks the networks, by means over the seeds, beside those of the arm "all".

    found: network -> arm -> an accuracy a seed. Returns
    arms: rho with its interval (95 % by a bootstrap of the networks), and the network that it ranks first
    with the accuracy of that one trained on all;
    over: rho of condensed minus that of random_real, in the same resamples;
    ceiling: one seed of "all" with the mean of the others, the mean of these; None of one seed.
    """
    names = list(found)
    mean = {arm: [sum(found[n][arm]) / len(found[n][arm]) for n in names] for arm in found[names[0]]}
    truth = mean.pop("all")

    def rho(arm: str, ids: Sequence[int]) -> float:
        return spearman([mean[arm][i] for i in ids], [truth[i] for i in ids])

    def said(measure: Callable[[Sequence[int]], float]) -> dict[str, Any]:
        low, high = bootstrap(measure, len(names))
        return {"rho": measure(range(len(names))), "low": low, "high": high}

    arms = {arm: said(partial(rho, arm)) for arm in mean}
    for arm, its in arms.items():
        best = max(range(len(names)), key=mean[arm].__getitem__)
        its["chosen"] = [names[best], truth[best]]
    over = said(lambda ids: rho("condensed", ids) - rho("random_real", ids))
    return {"arms": arms, "over": over, "ceiling": _ceiling([found[name]["all"] for name in names])}


def _ceiling(found: Sequence[Sequence[float]]) -> float | None:
    """found: of each network, an accuracy a seed."""
    count = len(found[0])
    if count == 1:
        return None
    each = [spearman([of[i] for of in found], [sum(of) - of[i] for of in found]) for i in range(count)]
    return sum(each) / count
