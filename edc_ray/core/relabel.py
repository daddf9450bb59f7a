"""Soft labels: the mean logits of the observers on a page of views (method.md 4, 5.1).

A page is a fixed run of training steps, the unit of labelling and of storage. Whoever labels it, the
student's own process or a label job, runs this same function, so both give the same bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edc_ray.config import Relabel
from edc_ray.core import views
from edc_ray.core.fit import cached

FORWARD_IMAGES = 1024  # most images in one forward of an observer; bounds the memory


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive training steps: the view of each, and its labels (rounded to fp16, as they are stored).

    A student with hard labels reads pages without logits. pixels: those of the views one after the other,
    where they are labelled beside the student; else it makes them itself.
    """

    first_step: int
    views: tuple[views.View, ...]
    logits: tuple[Float[Tensor, "_ k"], ...]  # an epoch's last batch may be smaller; () = none
    pixels: Float[Tensor, "m c s s"] | None = None


def page_steps(cfg: Relabel) -> int:
    """Training steps on one page."""
    return max(1, cfg.page_images // cfg.batch_size)


def page_views(cfg: Relabel, images: int, size: int, seed: int, page: int) -> tuple[views.View, ...]:
    steps = page_steps(cfg)
    return views.draw(cfg, images, size, seed, range(page * steps, (page + 1) * steps))


@contextmanager
def batch_statistics(observers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, BatchNorm in eval mode takes the statistics of its batch; its buffers are not touched.

    The "batch-specific soft labels" of method.md 9: every other layer stays as it was.
    """
    norms = [m for model in observers for m in model.modules() if isinstance(m, _BatchNorm)]
    kept = [(m.running_mean, m.running_var) for m in norms]
    try:
        for m in norms:
            m.running_mean = m.running_var = None  # torch then has only the batch to look at
        yield
    finally:
        for m, (mean, var) in zip(norms, kept, strict=True):
            m.running_mean, m.running_var = mean, var


@torch.no_grad()
def mean_logits(
    observers: Sequence[nn.Module],
    batches: Sequence[Float[Tensor, "_ c s s"]],
    weights: Sequence[float] | None = None,
) -> Float[Tensor, "b k"]:
    """Raw logits of all batches, their weighted mean over the observers, which are in eval mode.

    weights: None = equal. No graph is recorded.
    """
    share = torch.tensor(weights or [1.0] * len(observers), device=batches[0].device)
    share = share * len(observers) / share.sum()
    return torch.cat(
        [
            (torch.stack([model(batch) for model in observers]) * share[:, None, None]).mean(0)
            for batch in batches
        ]
    )


def label_page(
    cfg: Relabel,
    observers: Sequence[nn.Module],
    images: Float[Tensor, "n c s s"],
    pixels: tuple[Sequence[float], Sequence[float]],
    seed: int,
    page: int,
    together: int = FORWARD_IMAGES,
) -> Page:
    """Draw the page's views of the normalised images and label them.

    observers: those that label, in the order of `cfg.observer_weights`. pixels: as in `views.apply`.
    together: most images in one forward, unless BatchNorm looks at the batch.

    Raises:
        FloatingPointError: a label is not finite, or does not fit fp16.
    """
    drawn = page_views(cfg, len(images), images.shape[-1], seed, page)
    sizes = [len(view.ids) for view in drawn]
    mixed = views.apply(views.concat(drawn), images, pixels)
    if cfg.teacher_bn == "batch":
        with batch_statistics(observers):
            logits = mean_logits(observers, mixed.split(sizes), cfg.observer_weights)
    else:
        logits = mean_logits(observers, list(cached(mixed.split(together))), cfg.observer_weights)
    logits = logits.half().cpu()
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(f"labels of page {page} are not finite in half precision")
    return Page(page * page_steps(cfg), drawn, logits.split(sizes), mixed)
