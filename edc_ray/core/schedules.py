"""SCHEDULES: multiplier of the peak learning rate in epoch e of E (method.md 5.4)."""

import math
from collections.abc import Callable


def cos(epoch: int, epochs: int, zeta: float) -> float:
    """Cosine that would reach 0 at zeta * E (paper 3.2, "smoothing LR"; method.md 5.4)."""
    return 0.5 * (1 + math.cos(math.pi * epoch / (zeta * epochs)))


def linear(epoch: int, epochs: int, zeta: float) -> float:
    """Straight line that would reach 0 at zeta * E; what the official ImageNet-1k script really ran (B1)."""
    return 1 - epoch / (zeta * epochs)


def constant(epoch: int, epochs: int, zeta: float) -> float:
    """No decay."""
    return 1.0


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "cos": cos,
    "linear": linear,
    "constant": constant,
}
