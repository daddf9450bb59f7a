"""Soft labels: the mean logits of the observers on a page of views (method.md 4, 5.1).

A page is a fixed run of training steps, the unit of labelling and of storage. Whoever labels it, the
student's own process or a label job, runs this same function, so both give the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edc_ray.config import Relabel
from edc_ray.core import views

FORWARD_IMAGES = 1024  # most images in one forward of an observer; bounds the memory


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive training steps: the view of each, and its labels (rounded to fp16, as they are stored)."""

    first_step: int
    views: tuple[views.View, ...]
    logits: tuple[Float[Tensor, "_ k"], ...]  # an epoch's last batch may be smaller


def page_steps(cfg: Relabel) -> int:
    """Training steps on one page."""
    return max(1, cfg.page_images // cfg.batch_size)


def page_views(cfg: Relabel, images: int, size: int, seed: int, page: int) -> tuple[views.View, ...]:
    steps = page_steps(cfg)
    return tuple(
        views.draw(cfg, images, size, seed, step) for step in range(page * steps, (page + 1) * steps)
    )


@torch.no_grad()
def mean_logits(observers: Sequence[nn.Module], pixels: Float[Tensor, "b c s s"]) -> Float[Tensor, "b k"]:
    """Raw logits averaged over the observers, which are in eval mode; no graph is recorded."""
    chunks = pixels.split(FORWARD_IMAGES)
    return torch.cat([torch.stack([model(chunk) for model in observers]).mean(0) for chunk in chunks])


def label_page(
    cfg: Relabel, observers: Sequence[nn.Module], images: Float[Tensor, "n c s s"], seed: int, page: int
) -> Page:
    """Draw the page's views of the normalised images and label them.

    Raises:
        FloatingPointError: a label is not finite, or does not fit fp16.
    """
    drawn = page_views(cfg, len(images), images.shape[-1], seed, page)
    pixels = views.apply(views.concat(drawn).to(images.device), images)
    logits = mean_logits(observers, pixels).half().cpu()
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(f"labels of page {page} are not finite in half precision")
    return Page(page * page_steps(cfg), drawn, logits.split([len(view.ids) for view in drawn]))
