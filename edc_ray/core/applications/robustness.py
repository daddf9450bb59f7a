"""Adversarial accuracy: FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018), both L-inf, white box."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from edc_ray.core.data import Pixels
from edc_ray.core.fit import cached
from edc_ray.core.random import generator

TOGETHER = 256  # images that are attacked together; the draws of PGD depend on it

Images = Float[Tensor, "n c s s"]
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Box:
    """What an attack may do to normalised images: the pixel range [0, 1], and changes of up to `epsilon`."""

    mean: Sequence[float]
    std: Sequence[float]
    epsilon: float

    def bounds(self, images: Images) -> tuple[Images, Images]:
        """The least and the largest legal value of each pixel."""
        radius, low, high = (self._normalised(value, images) for value in (None, 0.0, 1.0))
        return torch.maximum(images - radius, low), torch.minimum(images + radius, high)

    def _normalised(self, pixel: float | None, images: Images) -> Float[Tensor, "c 1 1"]:
        """A value of a pixel; None = the length of epsilon."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std))
        return self.epsilon / std if pixel is None else (pixel - mean) / std


def _gradient(model: Model, images: Images, labels: Int[Tensor, " n"]) -> Images:
    """Of the cross-entropy of each image."""
    images = images.detach().requires_grad_(True)
    loss = functional.cross_entropy(model(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]


def fgsm(model: Model, images: Images, labels: Int[Tensor, " n"], box: Box) -> Images:
    """images + epsilon * sign(gradient), kept in the pixel range. model: in eval mode, frozen."""
    low, high = box.bounds(images)
    ahead = _gradient(model, images, labels).sign()
    return torch.where(ahead > 0, high, torch.where(ahead < 0, low, images))


def pgd(
    model: Model,
    images: Images,
    labels: Int[Tensor, " n"],
    box: Box,
    steps: int,
    step: float,
    rng: torch.Generator,
) -> Images:
    """Projected gradient ascent from a random start in the box; a step is `step` * epsilon long."""
    low, high = box.bounds(images)
    length = step * box.epsilon / torch.tensor(box.std, device=images.device)[:, None, None]
    found = low + (high - low) * torch.rand(images.shape, generator=rng).to(images.device)
    for _ in range(steps):
        found = found + length * _gradient(model, found, labels).sign()
        found = torch.minimum(torch.maximum(found, low), high)
    return found.detach()


def accuracies(
    model: Model,
    images: Images | Pixels,
    labels: Int[Tensor, " n"],
    boxes: Sequence[Box],
    pgd_steps: int,
    pgd_step: float,
    seed: int,
) -> list[tuple[str, float, float]]:
    """(attack, epsilon, accuracy) of "clean" at 0, and of both attacks in each box.

    images: normalised; read and attacked `TOGETHER` at a time. seed: of the random starts.
    """
    right: dict[tuple[str, float], Tensor] = {}

    def count(name: str, epsilon: float, attacked: Tensor, truth: Tensor) -> None:
        with torch.no_grad():
            logits = torch.cat([model(chunk) for chunk in cached([attacked])])
        hits = (logits.argmax(1) == truth).sum()
        right[name, epsilon] = right.get((name, epsilon), torch.zeros_like(hits)) + hits

    chunks = zip(images.split(TOGETHER), labels.split(TOGETHER), strict=True)
    for i, (chunk, truth) in enumerate(chunks):
        count("clean", 0.0, chunk, truth)
        for box in boxes:
            rng = generator("pgd", seed, str(box.epsilon), i)
            count("fgsm", box.epsilon, fgsm(model, chunk, truth, box), truth)
            moved = pgd(model, chunk, truth, box, pgd_steps, pgd_step, rng)
            count("pgd", box.epsilon, moved, truth)
    return [(name, epsilon, int(hits) / len(labels)) for (name, epsilon), hits in right.items()]
