"""Initial images of one class (method.md 3.1)."""

from collections.abc import Callable

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from edc_ray.core.random import generator


def real(pool: UInt8[Tensor, "n c s s"], ipc: int, rng: torch.Generator) -> UInt8[Tensor, "ipc c s s"]:
    """Random real images of the class, without replacement.

    Raises:
        ValueError: the class has fewer than ipc images.
    """
    if len(pool) < ipc:
        raise ValueError(f"a class has {len(pool)} images, fewer than init.ipc = {ipc}")
    return pool[torch.randperm(len(pool), generator=rng)[:ipc]]


def noise(pool: UInt8[Tensor, "n c s s"], ipc: int, rng: torch.Generator) -> UInt8[Tensor, "ipc c s s"]:
    """Gaussian noise with the mean and spread of the class's pixels in each channel, clipped to bytes."""
    var, mean = torch.var_mean(pool.float(), dim=(0, 2, 3), keepdim=True)
    drawn = torch.randn(ipc, *pool.shape[1:], generator=rng) * var.sqrt() + mean
    return drawn.round().clamp(0, 255).to(torch.uint8)


INITS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {"real": real, "noise": noise}


def initial_images(
    kind: str,
    images: UInt8[Tensor, "n c s s"],
    labels: Int[Tensor, " n"],
    classes: range,
    ipc: int,
    seeds: tuple[int, int],
) -> UInt8[Tensor, "m c s s"]:
    """Class-major start of these classes, each drawn by itself; seeds = (Experiment.seed, Init.seed)."""
    return torch.cat([INITS[kind](images[labels == c], ipc, generator("init", *seeds, c)) for c in classes])
