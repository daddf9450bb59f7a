"""Class-incremental learning from a memory: at each step a network is trained from scratch on what is kept of
the classes seen so far, and judged on all of those (GDumb, Prabhu et al. 2020; as DSA and DREAM do). So a
step depends on which classes were seen alone, not on the steps before it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edc_ray.core.random import generator


def arrival(classes: int, seed: int) -> Int[Tensor, " k"]:
    """The classes in the random order in which they come."""
    return torch.randperm(classes, generator=generator("continual", seed))


def seen_after(classes: int, steps: int) -> list[int]:
    """How many classes have come after each step; the first steps have one more, where it must be."""
    return torch.tensor([len(part) for part in torch.arange(classes).tensor_split(steps)]).cumsum(0).tolist()


def relabelled(labels: Int[Tensor, " n"], seen: Int[Tensor, " k"]) -> Int[Tensor, " n"]:
    """The position of each label in `seen`; -1 where it is not there."""
    seen = seen.to(labels.device)
    there = labels[:, None] == seen
    return torch.where(there.any(1), there.float().argmax(1), -1)


def cut(logits: Sequence[Float[Tensor, "_ c"]], seen: Int[Tensor, " k"]) -> tuple[Float[Tensor, "_ k"], ...]:
    """Those of the classes seen, in the order in which these came."""
    return tuple(each[:, seen] for each in logits)


def herding(features: Float[Tensor, "n d"], count: int) -> Int[Tensor, " m"]:
    """Positions whose mean is led to the mean of all, greedily (iCaRL, Rebuffi et al. 2017); in their order.

    The features are scaled to length 1 first. Ties go to the first.
    """
    features = torch.nn.functional.normalize(features.double(), dim=1)
    mean, total, chosen = features.mean(0), torch.zeros_like(features[0]), list[int]()
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for size in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + features) / size).norm(dim=1)
        index = int(torch.where(free, distance, torch.inf).argmin())
        chosen.append(index)
        total, free[index] = total + features[index], False
    return torch.tensor(chosen)
