"""Condensed sets that somebody else made: a folder CLASS/FILE, or a .pt, .npz or .parquet file."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from edc_ray.config import ConfigError
from edc_ray.core.data import start
from edc_ray.core.data.folders import images_in
from edc_ray.core.data.pixels import decode, denormalize

IMAGES, LABELS = ("images", "image", "data", "x"), ("labels", "label", "targets", "y")
EXPECTED = (
    "images (n, 3, s, s) or (n, s, s, 3) and labels (n) or (n, classes): a .npz with the arrays images "
    "and labels; a .pt with such a dictionary, a pair, or images alone beside a file of the same name with"
    " labels for images; a .parquet with the columns image (an encoded file) and label"
)
SLACK = 0.01  # floats a little outside of [0, 1] are rounding, not normalised pixels

Channels = tuple[Sequence[float], Sequence[float]]


def folder_shape(path: str) -> tuple[int, int]:
    """(images a class, side in px) of a folder CLASS/FILE; reads only the heads of the files.

    Raises:
        ConfigError: not so many of each class, or not all squares of one size.
    """
    root = Path(path)
    names = {name: images_in(root, name) for name in start.class_folders(root)}
    counts = {len(found) for found in names.values()}
    if len(counts) != 1 or 0 in counts:
        seen = ", ".join(map(str, sorted(counts))) or "no class folders"
        raise ConfigError("SET", path, f"must have CLASS/FILE with as many images in each class; has {seen}")
    sides = set[tuple[int, int]]()
    for name in (name for found in names.values() for name in found):
        try:
            with Image.open(root / name) as file:
                sides.add(file.size)
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError("SET", path, f"{name} is not a readable image: {error}") from None
    if len(sides) > 1 or len({*sides.copy().pop()}) > 1:
        raise ConfigError("SET", path, f"must have squares of one size; has {sorted(sides)[:5]} px")
    return counts.pop(), sides.pop()[0]


def class_order(path: str, classes: Sequence[str]) -> str | None:
    """A note where the folders are not named by the classes, and so are taken in their order (see start)."""
    found = start.class_folders(Path(path))
    if set(classes) <= set(found):
        return None
    pairs = [f"{folder} = {name}" for folder, name in zip(found, classes, strict=False)]
    return f"class folders by their order: {', '.join(pairs[:3])}{', ...' * (len(pairs) > 3)}"


def read_tensors(
    path: str, pixels: Channels | None
) -> tuple[UInt8[Tensor, "n 3 s s"], Int[Tensor, " n"], tuple[str, ...]]:
    """Somebody's tensors as levels and labels, in class order, as many of each class; notes of what was lost
    on the way. Nothing but tensors is unpickled.

    Labels of one row an image that were learned count by their largest entry. Floats in [0, 1] are rounded to
    levels; others count as normalised by `pixels`, and what is then outside of [0, 1] is clipped.

    Raises:
        ConfigError: not such a file, or not as many images of each class.
    """
    found, notes = _loaded(Path(path)), list[str]()
    images, labels = (torch.as_tensor(part) for part in found)
    if images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(labels) or not len(images):
        raise _bad(path, f"has images {tuple(images.shape)} and labels {tuple(labels.shape)}")
    if images.shape[2] != images.shape[3]:
        raise _bad(path, f"has images of {images.shape[2]} x {images.shape[3]} px")
    if labels.ndim == 2:
        labels = labels.argmax(1)
        notes.append("its own soft labels are not used, but for the class of their largest entry")
    images, more = _levels(path, images, pixels)
    labels = labels.long()
    counts = labels.bincount()
    if len(set(counts.tolist())) != 1:
        raise _bad(path, f"has {int(counts.min())} to {int(counts.max())} images of a class")
    order = labels.argsort(stable=True)
    return images[order].contiguous(), labels[order], (*notes, *more)


def _loaded(path: Path) -> tuple[Any, Any]:
    try:
        if path.suffix == ".parquet":
            return _rows(path)
        if path.suffix == ".npz":
            with np.load(path) as file:  # refuses pickles
                return _pair(path, dict(file))
        return _pair(path, torch.load(path, map_location="cpu", weights_only=True))
    except ConfigError:
        raise
    except Exception as error:  # whatever the two libraries say of a file that is not theirs
        raise _bad(str(path), f"cannot be read: {str(error).splitlines()[0][:200]}") from None


def _rows(path: Path) -> tuple[Tensor, Tensor]:
    """Of a table with the columns `image` (an encoded file) and `label`; all of the first one's size."""
    table = pq.read_table(path, columns=["image", "label"])
    files = table["image"].to_pylist()
    with Image.open(io.BytesIO(files[0])) as first:
        size = min(first.size)
    items = ((f"row {i}", file) for i, file in enumerate(files))
    return decode(items, len(files), size), torch.tensor(table["label"].to_pylist())


def _pair(path: Path, found: Any) -> tuple[Any, Any]:
    if isinstance(found, Mapping):
        parts = [next((found[name] for name in names if name in found), None) for names in (IMAGES, LABELS)]
        if parts[0] is None or parts[1] is None:
            raise _bad(str(path), f"has {', '.join(map(str, found))}")
        return parts[0], parts[1]
    if isinstance(found, Tensor):
        other = path.with_name(path.name.replace("images", "labels").replace("image", "label"))
        if other == path or not other.is_file():
            raise _bad(str(path), "has one tensor, and no labels beside it")
        return found, torch.load(other, map_location="cpu", weights_only=True)
    if isinstance(found, Sequence) and len(found) == 2:
        return found[0], found[1]
    raise _bad(str(path), f"has a {type(found).__name__}")


def _levels(path: str, images: Tensor, pixels: Channels | None) -> tuple[Tensor, list[str]]:
    if images.dtype == torch.uint8:
        return images, []
    if not images.is_floating_point() or not bool(images.isfinite().all()):
        raise _bad(path, f"has images of {images.dtype}, or values that are not finite")
    images = images.float()
    if images.min() >= -SLACK and images.max() <= 1 + SLACK:
        return (images * 255).round().clamp(0, 255).to(torch.uint8), ["floats were rounded to 256 levels"]
    if pixels is None:
        raise _bad(
            path, f"has values from {images.min():.2f} to {images.max():.2f}; must be bytes or in [0, 1]"
        )
    mean, std = (torch.tensor(values)[:, None, None] for values in pixels)
    plain = images * std + mean
    out = float(((plain < -SLACK) | (plain > 1 + SLACK)).float().mean())
    note = f"taken as normalised by the dataset's constants; {100 * out:.2f} % of the values were clipped"
    return denormalize(images, *pixels), [note]


def _bad(path: str, why: str) -> ConfigError:
    return ConfigError("SET", path, f"{why}; must be {EXPECTED}")
