"""Training of the observers on the real images (method.md 1)."""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.config import Squeeze
from edc_ray.core import views
from edc_ray.core.data import Pixels
from edc_ray.core.fit import batches, pack, parameter_groups, unpack
from edc_ray.core.random import fork_rng, generator
from edc_ray.core.schedules import multiplier


def fit_observer(
    cfg: Squeeze,
    model: nn.Module,
    images: Float[Tensor, "n c s s"] | Pixels,
    labels: Int[Tensor, " n"],
    seeds: tuple[int, str],
    saved: Mapping[str, Tensor] | None = None,
    penalty: Callable[[nn.Module], Float[Tensor, ""]] | None = None,
) -> Iterator[tuple[int, Callable[[], dict[str, Tensor]]]]:
    """Train `model` in place with SGD and cross-entropy; yields (epochs done, how to make a checkpoint).

    The schedule runs over `epochs`, also where the training ends before, at `checkpoint_epoch`; without
    epochs the weights stay as they are.

    seeds: the experiment's seed and the observer's name. penalty: added to the loss.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
    """
    groups = parameter_groups(model, cfg.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum)
    start = 0
    if saved is not None:
        unpack(model, optimizer, saved)
        start = int(saved["epoch"])
    model.train()
    for epoch in range(start, cfg.checkpoint_epoch or cfg.epochs):
        rng = generator("squeeze", *seeds, epoch)
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * multiplier(cfg, epoch)
        total = torch.zeros((), device=images.device)
        for step, ids in enumerate(batches(torch.randperm(len(images), generator=rng), cfg.batch_size)):
            ids = ids.to(images.device)
            pixels = views.augment(images[ids], cfg.augment, rng)
            # Dropout has no generator argument.
            with fork_rng("squeeze", *seeds, epoch, step, device=images.device):
                loss = functional.cross_entropy(model(pixels), labels[ids])
            if penalty is not None:
                loss = loss + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            if cfg.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
            optimizer.step()
            total += loss.detach()
        if not math.isfinite(float(total)):
            raise FloatingPointError(f"the loss of {seeds[1]} is not finite in epoch {epoch}")
        done = torch.tensor(epoch + 1)
        yield epoch + 1, lambda done=done: pack(model, optimizer) | {"epoch": done}  # type: ignore[misc]
    model.eval()
