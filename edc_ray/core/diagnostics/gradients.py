"""Whether a small batch points where the whole data points (paper Fig. 2c, bottom)."""

from collections.abc import Callable, Mapping, Sequence

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


def batch_cosines(
    of: Gradient,
    images: int,
    size: int,
    draws: int,
    goals: Sequence[Float[Tensor, " d"]],
    rng: torch.Generator,
) -> Float[Tensor, "draws goals"]:
    """Cosines between the gradient of each random batch, drawn without replacement, and each of `goals`.

    images: how many there are to draw from. A gradient of zeros has the cosine 0.
    """
    against = torch.stack(list(goals))
    found = []
    for _ in range(draws):
        one = of(torch.randperm(images, generator=rng)[:size])
        found.append(functional.cosine_similarity(one[None], against))
    return torch.stack(found)
