"""SCHEDULES: multiplier of the peak learning rate along the training (method.md 5.4).

A row is a function of the config, of the share e / E of the epochs that are done, and of their mean losses;
nothing else is remembered, so a resumed training goes on with the same rates.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from edc_ray.config import Evaluate, Squeeze

CALM = 0.02  # ALRS: a loss that moved less than this, in itself and relative to the one before, is calm


def cos(cfg: Squeeze | Evaluate, share: float, losses: Sequence[float]) -> float:
    """Cosine that would reach 0 at zeta * E (paper 3.2, "smoothing LR")."""
    return 0.5 * (1 + math.cos(math.pi * share / cfg.zeta))


def linear(cfg: Squeeze | Evaluate, share: float, losses: Sequence[float]) -> float:
    """Straight line that would reach 0 at zeta * E; what the official ImageNet-1k script really ran (B1)."""
    return 1 - share / cfg.zeta


def constant(cfg: Squeeze | Evaluate, share: float, losses: Sequence[float]) -> float:
    """No decay."""
    return 1.0


def ssrs(cfg: Evaluate, share: float, losses: Sequence[float]) -> float:
    """The cosine up to the share `fall`, then a drop to a line that reaches 0 at E (paper Eq. 33, "cos2")."""
    if share <= cfg.fall:
        return cos(cfg, share, losses)
    return cos(cfg, cfg.fall, losses) * (1 - share)


def multistep(cfg: Evaluate, share: float, losses: Sequence[float]) -> float:
    """Times gamma at each milestone."""
    return float(cfg.gamma ** sum(share >= milestone for milestone in cfg.milestones))


def alrs(cfg: Evaluate, share: float, losses: Sequence[float]) -> float:
    """Times gamma after each epoch whose mean loss is within 0.02, and 2 % of itself, of the one before."""
    calm = (abs(now - before) < CALM * min(1.0, now) for before, now in pairwise(losses))
    return float(cfg.gamma ** sum(calm))


SCHEDULES: dict[str, Callable[[Any, float, Sequence[float]], float]] = {
    "cos": cos,
    "linear": linear,
    "constant": constant,
    "ssrs": ssrs,
    "multistep": multistep,
    "alrs": alrs,
}


def multiplier(cfg: Squeeze | Evaluate, epoch: int, losses: Sequence[float] = ()) -> float:
    """Of the peak rate in epoch `epoch` (0 = the first). losses: mean loss of each epoch before it."""
    return SCHEDULES[cfg.schedule](cfg, epoch / cfg.epochs, losses)
