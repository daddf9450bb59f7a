"""Whether a small batch points where the whole data points (paper Fig. 2c, bottom)."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edc_ray.core.data import Pixels
from edc_ray.core.fit import TEST_IMAGES, cached

Gradient = Callable[[Int[Tensor, " b"]], Float[Tensor, " d"]]


def gradient(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    images: Float[Tensor, "n c s s"] | Pixels,
    labels: Int[Tensor, " n"],
    rows: Int[Tensor, " b"],
    together: int = TEST_IMAGES,
) -> Float[Tensor, " d"]:
    """Of the mean cross-entropy of these images in all weights, summed up over parts of `together` images.

    model: in eval mode, so that an image's gradient does not depend on its batch. tensors: its weights and
    buffers. rows: on the CPU.
    """
    names = [name for name, _ in model.named_parameters()]
    weights = {name: tensors[name].detach().requires_grad_(True) for name in names}
    total = [torch.zeros_like(weight) for weight in weights.values()]
    for chosen in rows.split(together):
        here = chosen.to(labels.device)
        part = images[chosen if isinstance(images, Pixels) else here]
        at = 0
        for pixels in cached([part]):
            goal = labels[here[at : at + len(pixels)]]
            at += len(pixels)
            logits = functional_call(model, {**tensors, **weights}, (pixels,))
            loss = functional.cross_entropy(logits, goal, reduction="sum") / len(rows)
            torch._foreach_add_(total, torch.autograd.grad(loss, list(weights.values())))
    return torch.cat([part.flatten() for part in total])


def draw(
    images: int, size: int, rng: torch.Generator, labels: Int[Tensor, " n"] | None = None
) -> Int[Tensor, " b"]:
    """A random batch of so many images, without replacement.

    labels: of the images; then as many of each class as can be, the classes in a random order.
    """
    order = torch.randperm(images, generator=rng)
    if labels is None:
        return order[:size]
    classes = functional.one_hot(labels.cpu()[order])
    turn = (classes.cumsum(0) * classes).sum(1)  # of its class, the how manieth
    place = torch.randperm(classes.shape[1], generator=rng)[labels.cpu()[order]]
    return order[(turn * classes.shape[1] + place).argsort()[:size]]


def batch_cosines(
    of: Gradient, batches: Iterable[Int[Tensor, " b"]], goals: Sequence[Float[Tensor, " d"]]
) -> Float[Tensor, "draws goals"]:
    """Cosines between the gradient of each batch and each of `goals`; 0 for a gradient of zeros."""
    against = torch.stack(list(goals))
    return torch.stack([functional.cosine_similarity(of(rows)[None], against) for rows in batches])
