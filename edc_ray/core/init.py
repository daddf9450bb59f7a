"""INITS: the initial images of one class (method.md 3.1).

A row makes `cfg.ipc` images from the class's pool. Classes are independent: each has a generator of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from edc_ray.config import Init
from edc_ray.core.data import denormalize, normalize
from edc_ray.core.random import generator

TOGETHER = 64  # images of a pool that are in memory at once, as floats and once for each of their crops


@dataclass(frozen=True, slots=True)
class Pool:
    """The images that a class may start from, read when they are asked for.

    get: those at these positions (0 to count - 1). score: cross-entropies of images to the class; only the
    rows of SCORED call it. pixels: the dataset's mean and standard deviation of each channel, for noise.
    """

    count: int
    get: Callable[[Int[Tensor, " m"]], UInt8[Tensor, "m c s s"]]
    score: Callable[[UInt8[Tensor, "m c h h"]], Float[Tensor, " m"]] | None = None
    pixels: tuple[Sequence[float], Sequence[float]] | None = None


def class_images(cfg: Init, pool: Pool, seed: int, label: int) -> UInt8[Tensor, "ipc c s s"]:
    """The start of one class. seed: Experiment.seed; it acts together with `cfg.seed`.

    Raises:
        ValueError: the pool has fewer images than `needed`.
    """
    if pool.count < (least := needed(cfg)):
        raise ValueError(f"class {label} has {pool.count} images to start from and needs {least}")
    return INITS[cfg.kind](cfg, pool, generator("init", seed, cfg.seed, label))


def needed(cfg: Init) -> int:
    """Images that the pool of a class must have at least."""
    if cfg.kind == "rded":
        return (cfg.pool or cfg.ipc) * cfg.factor**2  # no two crops of one image
    again = cfg.kind == "noise" or (cfg.replacement and cfg.kind not in ("difficulty", "given"))
    return 1 if again else cfg.ipc


# --- drawn --------------------------------------------------------------------------------------------------


def draw(cfg: Init, pool: Pool, rng: torch.Generator) -> UInt8[Tensor, "ipc c s s"]:
    """Random images of the pool, each at most once, or (official) each slot by itself."""
    if cfg.replacement:
        return pool.get(torch.randint(pool.count, (cfg.ipc,), generator=rng))
    return pool.get(torch.randperm(pool.count, generator=rng)[: cfg.ipc])


def given(cfg: Init, pool: Pool, rng: torch.Generator) -> UInt8[Tensor, "ipc c s s"]:
    """The images of the folder in their order: somebody's condensed set, to be judged as it is."""
    return pool.get(torch.arange(cfg.ipc))


def noise(cfg: Init, pool: Pool, rng: torch.Generator) -> UInt8[Tensor, "ipc c s s"]:
    """N(0, 1) in normalised pixels (method.md 3.1), clipped to bytes: no class leaves a trace in it."""
    assert pool.pixels is not None
    drawn = torch.randn(cfg.ipc, *pool.get(torch.tensor([0])).shape[1:], generator=rng)
    return denormalize(drawn, *pool.pixels)


# --- chosen by observers ------------------------------------------------------------------------------------


def rded(cfg: Init, pool: Pool, rng: torch.Generator) -> UInt8[Tensor, "ipc c s s"]:
    """RDED's selection: of random images the easiest crop each, of those the easiest, tiled. With `pool` that
    many tiles are made, and the official code's draw from such a folder follows.

    Ties go to the crop, and to the image, that was drawn first. Scores are those of the bytes that are kept.
    """
    assert pool.score is not None
    picked = torch.randperm(pool.count, generator=rng)[: cfg.mipc]
    boxes = square_boxes(len(picked) * cfg.crops, cfg.crop_min, rng).unflatten(0, (-1, cfg.crops))
    kept, losses = [], []
    for ids, box in zip(picked.split(TOGETHER), boxes.split(TOGETHER), strict=True):
        images = pool.get(ids)
        crops = resized(images.repeat_interleave(cfg.crops, 0), box.flatten(0, 1), cfg.factor)
        loss = pool.score(crops).unflatten(0, (-1, cfg.crops))
        easiest = loss.argmin(1)
        kept.append(crops.unflatten(0, (-1, cfg.crops))[torch.arange(len(ids)), easiest.cpu()])
        losses.append(loss.gather(1, easiest[:, None])[:, 0])
    order = torch.cat(losses).argsort(stable=True)[: needed(cfg)].cpu()
    tiles = tile(torch.cat(kept)[order], cfg.factor)
    return tiles if cfg.pool is None else tiles[torch.randint(cfg.pool, (cfg.ipc,), generator=rng)]


def difficulty(cfg: Init, pool: Pool, rng: torch.Generator) -> UInt8[Tensor, "ipc c s s"]:
    """The `ipc` neighbours in the order of their cross-entropies whose middle is nearest to the quantile.

    With n images the quantile q lies at rank q * (n - 1). At the ends the neighbours move inwards: q = 0 are
    the easiest, q = 1 the hardest. Equal scores keep the order of the pool; nothing here is random.
    """
    assert pool.score is not None
    ids = torch.arange(pool.count)
    order = torch.cat([pool.score(pool.get(part)) for part in ids.split(TOGETHER)]).argsort(stable=True)
    first = math.floor(cfg.quantile * (pool.count - 1) - (cfg.ipc - 1) / 2 + 0.5)
    first = min(max(first, 0), pool.count - cfg.ipc)
    return pool.get(order[first : first + cfg.ipc].cpu())


@torch.no_grad()
def cross_entropies(
    models: Sequence[nn.Module],
    label: int,
    size: int,
    normalization: tuple[Sequence[float], Sequence[float]],
    together: int,
    images: UInt8[Tensor, "m c h h"],
) -> Float[Tensor, " m"]:
    """Of the mean logits of models in eval mode; smaller images are set into a square of `size` px of the
    mean colour, in its middle. together: most images in one forward.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    less = size - images.shape[-1]
    sides = (less // 2, less - less // 2)
    parts = (pad(normalize(part, *normalization), sides * 2) for part in images.split(together))
    logits = torch.cat([torch.stack([model(part) for model in models]).mean(0) for part in parts])
    if not bool(logits.isfinite().all()):
        raise FloatingPointError("the logits of init.scorers are not finite")
    return cross_entropy(logits, torch.full((len(images),), label, device=logits.device), reduction="none")


def square_boxes(n: int, crop_min: float, rng: torch.Generator) -> Float[Tensor, "n 3"]:
    """(side, top, left) of random square crops of an area of `crop_min` to 1, as shares; see `resized`."""
    side = torch.empty(n).uniform_(crop_min, 1, generator=rng).sqrt()
    return torch.cat([side[:, None], torch.rand(n, 2, generator=rng)], 1)


def resized(
    images: UInt8[Tensor, "n c s s"], boxes: Float[Tensor, "n 3"], factor: int
) -> UInt8[Tensor, "n c h h"]:
    """Crops of whole pixels, resized to a side of s / factor: bilinear, antialiased where they shrink."""
    size = images.shape[-1]
    boxes = boxes.to(images.device)
    side = (boxes[:, :1] * size).round().clamp_min(1)
    rows, columns = (
        _taps((boxes[:, i, None] * (size - side + 1)).floor(), side, size, factor) for i in (1, 2)
    )
    pixels = rows[:, None] @ images.float() @ columns[:, None].transpose(-1, -2)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _taps(start: Tensor, side: Tensor, size: int, factor: int) -> Float[Tensor, "n h s"]:
    """Weights of the `size` source pixels in each of the size / factor results; start and side are (n, 1)."""
    results, pixels = (torch.arange(count, device=start.device) + 0.5 for count in (size // factor, size))
    scale = side * factor / size
    centre, reach = (start + results * scale)[:, :, None], scale.clamp_min(1)[:, :, None]
    inside = ((pixels > start) & (pixels < start + side))[:, None]
    weight = (1 - (centre - pixels).abs() / reach).clamp_min(0) * inside
    return weight / weight.sum(2, keepdim=True)


def tile(crops: UInt8[Tensor, "m c h h"], factor: int) -> UInt8[Tensor, "n c s s"]:
    """n = m / factor^2 images; crop k * n + j is cell k, row by row, of image j."""
    cells = crops.unflatten(0, (factor, factor, -1))  # row, column, image, channel, y, x
    return cells.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)


INITS: dict[str, Callable[[Init, Pool, torch.Generator], Tensor]] = {
    "real": draw, "noise": noise, "rded": rded, "difficulty": difficulty, "folder": draw,
    "given": given,
}  # fmt: skip
SCORED = ("rded", "difficulty")  # rows whose pools need a score
FROM_FOLDER = ("folder", "given")  # rows whose pools are those of `Init.path`
