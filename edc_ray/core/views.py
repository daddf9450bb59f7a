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
from edc_ray.core.random import generator, seed_of

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


BoxDraws = tuple[Float[Tensor, "n t"], Float[Tensor, "n t"], Float[Tensor, "n 2"]]


def random_boxes(n: int, size: int, crop_min: float, rng: torch.Generator) -> Int[Tensor, "n 4"]:
    """Boxes of RandomResizedCrop(size, scale=(crop_min, 1), ratio=(3/4, 4/3)) on square images."""
    return _boxes(size, *_box_draws(n, crop_min, rng))


def _box_draws(n: int, crop_min: float, rng: torch.Generator) -> BoxDraws:
    """All that is random in boxes: share of the area and logarithm of the ratio, of each try; place."""
    area = torch.empty(n, CROP_TRIES).uniform_(crop_min, 1, generator=rng)
    ratio = torch.empty(n, CROP_TRIES).uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=rng)
    return area, ratio, torch.rand(n, 2, generator=rng)


def _boxes(size: int, area: Tensor, ratio: Tensor, spot: Tensor) -> Int[Tensor, "n 4"]:
    """The first try that fits, at its place."""
    area, ratio = area * size * size, ratio.exp()
    width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.float().argmax(1, keepdim=True)
    some = fits.any(1)
    height = torch.where(some, height.gather(1, first)[:, 0], size)
    width = torch.where(some, width.gather(1, first)[:, 0], size)
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
    centre = torch.randint(size, (2,), generator=rng).tolist()
    low, high = ([min(max(at + move, 0), size) for at in centre] for move in (-half, half))
    height, width = (end - start for start, end in zip(low, high, strict=True))
    box = torch.tensor([*low, height, width]).expand(n, 4)
    return torch.randperm(n, generator=rng), box, torch.full((n,), 1 - height * width / size**2)


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


def draw(cfg: Relabel, images: int, size: int, seed: int, steps: Sequence[int]) -> tuple[View, ...]:
    """The views of these training steps (counted over all epochs) on `images` images of side `size`.

    Each depends on its own step alone; what is not random is computed for all of them at once.
    """
    orders = _orders(cfg, images, seed, steps)
    rng, sizes = torch.Generator(), [len(ids) for ids in orders]
    boxes, flips, mixes, operations = [], [], [], []
    for n, step in zip(sizes, steps, strict=True):
        rng.manual_seed(seed_of("view", seed, step))
        boxes.append(_box_draws(n, cfg.crop_min, rng))
        flips.append(torch.rand(n, generator=rng))
        mix = MIXES[cfg.mix](n, size, rng)
        mixed = float(torch.rand((), generator=rng)) < cfg.mix_probability
        mixes.append(mix if mixed else no_mix(n, size, rng))
        rng.manual_seed(seed_of("randaugment", seed, step))
        operations.append(randaugment.draw(n, cfg.randaugment_ops, cfg.randaugment_magnitude, rng))
    box = _boxes(size, *map(torch.cat, zip(*boxes, strict=True))).split(sizes)
    flip = (torch.cat(flips) < (0.5 if cfg.flip else 0.0)).split(sizes)
    drawn = zip(orders, operations, box, flip, mixes, strict=True)
    return tuple(View(ids, *chosen, crop, flipped, *mix) for ids, chosen, crop, flipped, mix in drawn)


def _orders(cfg: Relabel, images: int, seed: int, steps: Sequence[int]) -> list[Int[Tensor, " b"]]:
    """The images of each step: every epoch is one permutation of them all."""
    per_epoch, found, known = steps_per_epoch(cfg, images), [], dict[int, Tensor]()
    for step in steps:
        epoch, batch = divmod(step, per_epoch)
        if epoch not in known:
            known[epoch] = torch.randperm(images, generator=generator("order", seed, epoch))
        last = images if batch == per_epoch - 1 else (batch + 1) * cfg.batch_size
        found.append(known[epoch][batch * cfg.batch_size : last])
    return found


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
    if view.ops.shape[1]:
        few = len(images) < len(ids)  # then each is rounded once, not once a view
        levels = denormalize(images, *pixels)[ids] if few else denormalize(images[ids], *pixels)
        chosen = normalize(randaugment.apply(levels, view.ops, view.magnitudes), *pixels)
    else:
        chosen = images[ids]
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
    box, flip = augmentation(len(images), images.shape[-1], cfg, rng)
    return resample(images, box.to(images.device), flip.to(images.device))


def augmentation(
    n: int, size: int, cfg: Augment, rng: torch.Generator
) -> tuple[Int[Tensor, "n 4"], Bool[Tensor, " n"]]:
    """The boxes and flips that `augment` draws for `n` images of side `size`."""
    if cfg.crop_min is None:
        shift = torch.randint(-cfg.pad_px, cfg.pad_px + 1, (n, 2), generator=rng)
        box = torch.cat([shift, torch.full((n, 2), size)], 1)
    else:
        box = random_boxes(n, size, cfg.crop_min, rng)
    return box, torch.rand(n, generator=rng) < (0.5 if cfg.flip else 0.0)
