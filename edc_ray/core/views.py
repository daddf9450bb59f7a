"""Views: RandAugment, crop, flip and mix of one student batch, as data (architecture.md section 3).

A view is drawn once, as a pure function of (seed, step), and applied in batch on the images' device by
whoever needs it, so that labeller and student see the same pixels. Nothing here reads a global random state.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edc_ray.config import Augment, Relabel
from edc_ray.core import randaugment
from edc_ray.core.data import denormalize, normalize
from edc_ray.core.random import generator

CROP_TRIES = 10  # as torchvision's RandomResizedCrop: then the whole image
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class View:
    """What happens to each image of a batch, on the CPU. Boxes are (top, left, height, width) in pixels."""

    ids: Int[Tensor, " b"]
    ops: Int[Tensor, "b o"]  # of RandAugment, in their order
    magnitudes: Int[Tensor, "b o"]
    box: Int[Tensor, "b 4"]  # of the source, resized to the full image
    flip: Bool[Tensor, " b"]
    partner: Int[Tensor, " b"]  # position in the batch of the image that is pasted or blended in
    mix_box: Int[Tensor, "b 4"]  # of the result, where the partner is pasted; without area, it is blended
    lam: Float[Tensor, " b"]  # lambda: the share of the pixels that is the image's own


def concat(views: Sequence[View]) -> View:
    """Several batches as one; partners stay inside their own batch."""
    joined = {f.name: torch.cat([getattr(view, f.name) for view in views]) for f in fields(View)}
    sizes = torch.tensor([len(view.ids) for view in views])
    joined["partner"] = joined["partner"] + torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    return View(**joined)


# --- drawing ------------------------------------------------------------------------------------------------


def random_boxes(n: int, size: int, crop_min: float, rng: torch.Generator) -> Int[Tensor, "n 4"]:
    """Boxes of RandomResizedCrop(size, scale=(crop_min, 1), ratio=(3/4, 4/3)) on square images."""
    area = torch.empty(n, CROP_TRIES).uniform_(crop_min, 1, generator=rng) * size * size
    ratio = torch.empty(n, CROP_TRIES).uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=rng).exp()
    width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.float().argmax(1, keepdim=True)
    some = fits.any(1)
    height = torch.where(some, height.gather(1, first)[:, 0], size)
    width = torch.where(some, width.gather(1, first)[:, 0], size)
    spot = torch.rand(n, 2, generator=rng)
    top, left = (spot[:, 0] * (size - height + 1)).long(), (spot[:, 1] * (size - width + 1)).long()
    return torch.stack([top, left, height, width], 1)


Mix = tuple[Int[Tensor, " n"], Int[Tensor, "n 4"], Float[Tensor, " n"]]  # partner, mix_box, lam


def no_mix(n: int, size: int, rng: torch.Generator) -> Mix:
    """Changes nothing."""
    return torch.arange(n), torch.zeros(n, 4, dtype=torch.long), torch.ones(n)


def cutmix(n: int, size: int, rng: torch.Generator) -> Mix:
    """One box a batch: lambda ~ U(0, 1), side size * sqrt(1 - lambda), any centre, clipped (method.md 4).

    The lambda that is kept is what is left of the image: 1 - area of the box inside it.
    """
    lam = float(torch.rand((), generator=rng))
    half = int(size * math.sqrt(1 - lam)) // 2
    centre = torch.randint(size, (2,), generator=rng)
    low, high = (centre - half).clamp(0, size), (centre + half).clamp(0, size)
    left = 1 - float((high - low).prod()) / size**2
    return (
        torch.randperm(n, generator=rng),
        torch.cat([low, high - low]).expand(n, 4),
        torch.full((n,), left),
    )


def mixup(n: int, size: int, rng: torch.Generator) -> Mix:
    """One lambda ~ U(0, 1) a batch: lambda * image + (1 - lambda) * partner."""
    lam = torch.rand((), generator=rng)
    return torch.randperm(n, generator=rng), torch.zeros(n, 4, dtype=torch.long), lam.expand(n)


MIXES: dict[str, Callable[[int, int, torch.Generator], Mix]] = {
    "none": no_mix,
    "cutmix": cutmix,
    "mixup": mixup,
}


def steps_per_epoch(cfg: Relabel, images: int) -> int:
    """Batches an epoch. A last image alone joins the batch before it: BatchNorm cannot train on one."""
    full, rest = divmod(images, cfg.batch_size)
    return max(1, full + (rest > 1))


def draw(cfg: Relabel, images: int, size: int, seed: int, step: int) -> View:
    """The view of training step `step` (counted over all epochs) on `images` images of side `size`."""
    steps = steps_per_epoch(cfg, images)
    epoch, batch = divmod(step, steps)
    order = torch.randperm(images, generator=generator("order", seed, epoch))
    ids = order[batch * cfg.batch_size : (batch + 1) * cfg.batch_size if batch < steps - 1 else images]
    rng = generator("view", seed, step)
    n = len(ids)
    box = random_boxes(n, size, cfg.crop_min, rng)
    flip = torch.rand(n, generator=rng) < (0.5 if cfg.flip else 0.0)
    partner, mix_box, lam = MIXES[cfg.mix](n, size, rng)
    if float(torch.rand((), generator=rng)) >= cfg.mix_probability:
        partner, mix_box, lam = no_mix(n, size, rng)
    rng = generator("randaugment", seed, step)
    ops, magnitudes = randaugment.draw(n, cfg.randaugment_ops, cfg.randaugment_magnitude, rng)
    return View(ids, ops, magnitudes, box, flip, partner, mix_box, lam)


# --- applying -----------------------------------------------------------------------------------------------


def _taps(start: Tensor, length: Tensor, flip: Tensor | None, size: int) -> Float[Tensor, "n size size"]:
    """Bilinear weights from `size` source positions to `size` results; those outside the source are 0."""
    grid = torch.arange(size, device=start.device, dtype=torch.float32)
    start, length = start.float()[:, None], length.float()[:, None]
    at = start + (grid + 0.5) * length / size - 0.5
    at = torch.minimum(torch.maximum(at, start), start + length - 1)  # the crop's own edge is repeated
    if flip is not None:
        at = torch.where(flip[:, None], at.flip(1), at)
    return (1 - (at[:, :, None] - grid).abs()).clamp_min(0)


def resample(
    images: Float[Tensor, "n c s s"], box: Int[Tensor, "n 4"], flip: Bool[Tensor, " n"]
) -> Float[Tensor, "n c s s"]:
    """Crop, bilinear resize to the full side (align_corners=False, no antialias: a crop only grows), flip.

    Two small matrix products: batched, differentiable and deterministic on every device. A box that sticks
    out of the image reads zeros there.
    """
    size = images.shape[-1]
    rows = _taps(box[:, 0], box[:, 2], None, size)
    columns = _taps(box[:, 1], box[:, 3], flip, size)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def apply(
    view: View, images: Float[Tensor, "n c s s"], pixels: tuple[Sequence[float], Sequence[float]]
) -> Float[Tensor, "b c s s"]:
    """The pixels of a view of `images` (all condensed images, normalised), on their device.

    pixels: mean and standard deviation of the channels. RandAugment works on bytes, to which the images are
    rounded for it; then come crop, flip and mix, in the official order (method.md 5.3).
    """
    ids, box, flip, partner, mix_box, lam = (
        getattr(view, name).to(images.device) for name in ("ids", "box", "flip", "partner", "mix_box", "lam")
    )
    chosen = images[ids]
    if view.ops.shape[1]:
        levels = randaugment.apply(denormalize(chosen, *pixels), view.ops, view.magnitudes)
        chosen = normalize(levels, *pixels)
    crops = resample(chosen, box, flip)
    at = torch.arange(images.shape[-1], device=images.device)
    top, left, height, width = (mix_box[:, i, None] for i in range(4))
    rows, columns = (at >= top) & (at < top + height), (at >= left) & (at < left + width)
    other = crops[partner]
    own = torch.where((height * width)[:, 0] > 0, 1.0, lam)  # a box is pasted, not blended
    blended = torch.lerp(other, crops, own[:, None, None, None])
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], other, blended)


def augment(images: Float[Tensor, "n c s s"], cfg: Augment, rng: torch.Generator) -> Float[Tensor, "n c s s"]:
    """A shifted or a resized crop and a random flip, each image its own (method.md 1).

    RandomCrop(s, padding=pad_px) or, with crop_min, RandomResizedCrop(s, (crop_min, 1)).
    """
    n, size = len(images), images.shape[-1]
    if cfg.crop_min is None:
        shift = torch.randint(-cfg.pad_px, cfg.pad_px + 1, (n, 2), generator=rng)
        box = torch.cat([shift, torch.full((n, 2), size)], 1)
    else:
        box = random_boxes(n, size, cfg.crop_min, rng)
    flip = torch.rand(n, generator=rng) < (0.5 if cfg.flip else 0.0)
    return resample(images, box.to(images.device), flip.to(images.device))
