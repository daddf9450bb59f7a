"""Slices of a loss along filter-normalised random directions (Li et al. 2018, arXiv:1712.09913)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Weights = Mapping[str, Tensor]


def direction(weights: Weights, rng: torch.Generator) -> dict[str, Tensor]:
    """Gaussian, each filter as long as the filter of the weights; 0 for biases and norms, which have none.

    A filter is a row of the first axis of a weight with more than one.
    """
    found = {}
    for name, weight in weights.items():
        drawn = torch.randn(weight.shape, generator=rng).to(weight)
        if weight.ndim < 2:
            found[name] = torch.zeros_like(weight)
            continue
        long, drawn_long = (x.flatten(1).norm(dim=1).clamp_min(1e-12) for x in (weight, drawn))
        shape = (-1, *[1] * (weight.ndim - 1))
        found[name] = drawn * (long / drawn_long).view(shape)
    return found


@torch.no_grad()
def values(
    loss: Callable[[dict[str, Tensor]], Tensor],
    weights: Weights,
    directions: Sequence[Weights],
    places: Float[Tensor, "p k"],
) -> Float[Tensor, " p"]:
    """The loss at weights + sum_i place_i direction_i, for each place."""
    found = []
    for place in places.tolist():
        moved = {
            name: weight + sum(x * each[name] for x, each in zip(place, directions, strict=True))
            for name, weight in weights.items()
        }
        found.append(loss(moved))
    return torch.stack(found)
