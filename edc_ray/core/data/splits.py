"""The split that holds some training images out of the training."""

import torch
from jaxtyping import Int
from torch import Tensor

from edc_ray.config import ConfigError
from edc_ray.core.random import generator


def split(
    labels: Int[Tensor, " n"], val: float, seed: int, path: str = "split.val"
) -> tuple[Int[Tensor, " fit"], Int[Tensor, " val"]]:
    """Sorted, disjoint indices (fit, val): `held_out` images of every class, drawn at random, are val.

    Raises:
        ConfigError: a class would lose all its images; names `path`.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist() if val else ():
        members = (labels == label).nonzero().flatten()
        count = held_out(len(members), val)
        if count >= len(members):
            raise ConfigError(
                path, val, f"holds out all of the {len(members)} training images with label {label}"
            )
        held[members[torch.randperm(len(members), generator=generator("split", seed, label))[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def held_out(count: int, val: float) -> int:
    """How many of a class's images `split` holds out: the rounded share, at least one unless val = 0."""
    return max(1, round(val * count)) if val and count else 0
