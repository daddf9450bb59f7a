"""Sharpness: the Frobenius norm of a Hessian that is never written down (paper Fig. 2b, 2c)."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Loss = Callable[[list[Tensor]], Tensor]


def probes(like: Sequence[Tensor], count: int, rng: torch.Generator) -> Iterator[list[Tensor]]:
    """Random signs, shaped as the tensors: E[v v^T] = I, with the least variance that a v can have here."""
    for _ in range(count):
        yield [(torch.randint(2, x.shape, generator=rng) * 2 - 1).to(x) for x in like]


def squared_products(
    losses: Sequence[Loss], at: Sequence[Tensor], vectors: Sequence[Sequence[Tensor]]
) -> Float[Tensor, " k"]:
    """||H v||^2 for each vector, H the Hessian of the sum of the losses in all of `at` together.

    Exact, by differentiating twice: one gradient, then one more backward for each vector. The graph of one
    loss is in memory at a time.
    """
    leaves = [x.detach().clone().requires_grad_(True) for x in at]
    products = [[torch.zeros_like(x) for x in at] for _ in vectors]
    for loss in losses:
        slopes = torch.autograd.grad(loss(leaves), leaves, create_graph=True)
        for product, vector in zip(products, vectors, strict=True):
            more = torch.autograd.grad(
                slopes, leaves, grad_outputs=list(vector), retain_graph=True, materialize_grads=True
            )
            torch._foreach_add_(product, more)
    return torch.stack([torch.stack([x.square().sum() for x in product]).sum() for product in products])


def frobenius(squares: Float[Tensor, " k"]) -> tuple[float, float]:
    """(||H||_F, its standard error) from ||H v||^2 of k random vectors, as E||H v||^2 = ||H||_F^2.

    Hutchinson's estimate for H^T H; the error of the root by the delta method. One vector has no error: NaN.
    """
    values = squares.double()
    norm = math.sqrt(float(values.mean()))
    spread = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return norm, spread / (2 * norm) if norm else 0.0


def second_order(
    losses: Sequence[Loss], at: Sequence[Tensor], other: Sequence[Tensor], norm: float
) -> tuple[float, float]:
    """(|L(other) - L(at)|, its bound |g d| + norm |d|^2 / 2) with d = other - at and g the slope at `at`.

    L: the sum of the losses. norm: ||H||_F at `at`, which no curvature along d exceeds. Terms of third order
    are left out, so the gap of a loss that is not quadratic may exceed the bound.
    """
    leaves = [x.detach().clone().requires_grad_(True) for x in at]
    steps = [b.detach() - a.detach() for a, b in zip(at, other, strict=True)]
    gap, along = 0.0, 0.0
    for loss in losses:
        here = loss(leaves)
        slopes = torch.autograd.grad(here, leaves, materialize_grads=True)
        with torch.no_grad():
            gap += float(loss(list(other)) - here)
        along += sum(float((g * d).sum()) for g, d in zip(slopes, steps, strict=True))
    far = sum(float(d.square().sum()) for d in steps)
    return abs(gap), abs(along) + norm * far / 2
