"""Pixels: encoded images to squares of bytes, bytes to normalised floats, and images read when asked for."""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from edc_ray.core.data.source import Item

T = TypeVar("T")
SHOWN = 5  # corrupt images that an error names
TOGETHER = 256  # encoded images that wait for the threads


@dataclass(frozen=True, slots=True)
class Pixels:
    """Real images as one lazy tensor of normalised float32 on `device`, of which only what is asked is read.

    They may lie in memory or encoded in shards: an image is decoded when it is indexed, and only then, so a
    pass in any order decodes each once and needs memory for a batch.

    read: images by their row in the source, as bytes (on any device). rows: which of them these are.
    """

    read: Callable[[Int[Tensor, " b"]], UInt8[Tensor, "b 3 s s"]]
    rows: Int[Tensor, " n"]
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, ids: Int[Tensor, " b"] | slice) -> Float[Tensor, "b 3 s s"]:
        return normalize(self.read(self._rows(ids)).to(self.device), self.mean, self.std)

    def bytes(self, ids: Int[Tensor, " b"] | slice = slice(None)) -> UInt8[Tensor, "b 3 s s"]:
        """The same images as they are, on the CPU."""
        return self.read(self._rows(ids)).cpu()

    def split(self, size: int) -> Iterator[Float[Tensor, "_ 3 s s"]]:
        """All of them in order, `size` at a time."""
        return (self[first : first + size] for first in range(0, len(self), size))

    def subset(self, ids: Int[Tensor, " m"]) -> "Pixels":
        return Pixels(self.read, self.rows[ids], self.mean, self.std, self.device)

    def _rows(self, ids: Tensor | slice) -> Tensor:
        return self.rows[ids if isinstance(ids, slice) else ids.to(self.rows.device)]


def normalize(
    images: UInt8[Tensor, "n 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "n 3 h w"]:
    """float32 with mean 0 and standard deviation 1 per channel, on the same device."""
    return (images.float() / 255 - _column(mean, images)) / _column(std, images)


def denormalize(
    images: Float[Tensor, "n 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[Tensor, "n 3 h w"]:
    """The inverse of `normalize`, rounded to the nearest level and clamped to 0..255."""
    pixels = images * _column(std, images) + _column(mean, images)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _column(values: Sequence[float], images: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1)


# --- decoding -----------------------------------------------------------------------------------------------


def decode(
    items: Iterable[Item], count: int, size_px: int, resize: float = 1.0, threads: int = 1
) -> UInt8[Tensor, "n 3 s s"]:
    """All `count` images as RGB squares of `size_px`; those of another size go through `square`.

    Raises:
        ValueError: some are not readable images; says how many, and where the first ones are from.
    """
    images = torch.empty((count, 3, size_px, size_px), dtype=torch.uint8)
    index, wrong = 0, list[str]()
    for image in _each(partial(_decoded, size_px=size_px, resize=resize), items, threads):
        if isinstance(image, str):
            wrong.append(image)
        else:
            images[index] = image
        index += 1
    if wrong:
        raise ValueError(_told(wrong, count))
    assert index == count, (index, count)
    return images


def corrupt(items: Iterable[Item], threads: int = 1) -> list[tuple[int, str]]:
    """(position, where it is from) of those that `decode` would refuse; keeps no image."""
    found = enumerate(_each(_opened, items, threads))
    return [(index, why.partition(" is not a ")[0]) for index, why in found if isinstance(why, str)]


def _told(wrong: Sequence[str], count: int) -> str:
    if len(wrong) == 1:
        return wrong[0]
    more = ", ".join(each.partition(" is not a ")[0] for each in wrong[1:SHOWN])
    dots = ", ..." if len(wrong) > SHOWN else ""
    return f"{wrong[0]}; so are {len(wrong)} of {count}: also {more}{dots}"


def _each(work: Callable[[Item], T], items: Iterable[Item], threads: int) -> Iterator[T]:
    todo = iter(items)
    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes outside the interpreter's lock
        run = map if threads == 1 else pool.map
        while waiting := list(islice(todo, TOGETHER)):
            yield from run(work, waiting)


def _decoded(item: Item, size_px: int, resize: float) -> UInt8[Tensor, "3 s s"] | str:
    _, found = item
    if isinstance(found, Tensor) and found.shape[1:] == (size_px, size_px):
        return found
    image = _opened(item)
    if isinstance(image, str):
        return image
    return torch.from_numpy(np.array(square(image, size_px, resize))).permute(2, 0, 1)


def _opened(item: Item) -> Image.Image | str:
    """The image in RGB, or why there is none."""
    where, found = item
    if isinstance(found, Tensor):
        return Image.fromarray(found.permute(1, 2, 0).numpy())
    try:
        with Image.open(io.BytesIO(found)) as file:
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        return f"{where} is not a readable image: {error}"


def square(image: Image.Image, size_px: int, resize: float = 1.0) -> Image.Image:
    """Shorter side to size_px * resize (bilinear, antialiased), then the central square of size_px.

    Equal to torchvision's Resize and CenterCrop. An image that is such a square already stays as it is.
    """
    if image.size == (size_px, size_px):
        return image
    short = round(size_px * resize)
    width, height = (max(short, int(short * side / min(image.size))) for side in image.size)
    left, top = (round((side - size_px) / 2.0) for side in (width, height))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + size_px, top + size_px))


def encoded(item: Item) -> bytes:
    """The file of the image; pixels become a PNG, which loses nothing."""
    _, found = item
    if isinstance(found, bytes):
        return found
    buffer = io.BytesIO()
    Image.fromarray(found.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


# --- mean and deviation -------------------------------------------------------------------------------------


def sums(images: UInt8[Tensor, "n 3 s s"]) -> Int[Tensor, "3 3"]:
    """Number, sum and sum of squares of each channel's levels 0..255: exact, so they can be added up."""
    level = torch.arange(256)
    powers = torch.stack([torch.ones_like(level), level, level**2], 1)
    # By histogram: no copy of the images in a larger type.
    histograms = [channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]
    return torch.stack(histograms) @ powers


def scale(
    totals: Int[Tensor, "3 3"],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and biased standard deviation per channel of the pixels in [0, 1], to 4 decimals. See `sums`."""
    mean, std = [], []
    for count, total, squares in totals.tolist():
        mean.append(round(total / (255 * count), 4))
        deviation = math.sqrt(count * squares - total**2) / (255 * count)  # the difference is exact
        std.append(round(deviation, 4) or 1.0)  # a constant channel is only shifted
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
