"""Images that a program has in memory, as a dataset of the store: Parquet files named by their content.

So that a second run finds them, and workers anywhere, resume and sweeps treat them as any other dataset.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from edc_ray.artifacts import Store, pack_table
from edc_ray.config import ConfigError

SHAPES = (
    "must be images in levels 0..255 (uint8) or in [0, 1] (floats): (n, h, w), (n, h, w, 3), (n, 3, h, w), a "
    "list of such or of PIL images, or a torch Dataset of (image, label)"
)


@dataclass(frozen=True, slots=True)
class Pictures:
    """images: PNG files. labels: positions in `classes`. sides: the (width, height) that there are."""

    images: list[bytes]
    labels: list[int]
    classes: tuple[str, ...]
    named: bool
    sides: frozenset[tuple[int, int]]
    content: str


def read(images: Any, labels: Any, classes: Sequence[str] | None, what: str = "images") -> Pictures:
    """All images and labels, checked. labels: of a torch Dataset None; numbers 0, 1, ... or names of classes.

    classes: names in label order; default: of the Dataset, or the sorted names among the labels.

    Raises:
        ConfigError: names `what`, labels or classes.
    """
    if labels is None:
        pairs = _items(images, what)
        classes = classes if classes is not None else getattr(images, "classes", None)
    else:
        found = _list(labels)
        if len(found) != len(images):
            raise ConfigError("labels", f"{len(found)} labels", f"must be as many as {what}: {len(images)}")
        pairs = zip(images, found, strict=True)
    files, given, sides, digest = list[bytes](), list[Any](), set[tuple[int, int]](), hashlib.sha256()
    for index, (image, label) in enumerate(pairs):
        picture = _picture(image, f"{what}[{index}]")
        sides.add(picture.size)
        digest.update(f"{picture.size}".encode() + picture.tobytes())
        files.append(_png(picture))
        given.append(label)
    if not files:
        raise ConfigError(what, [], "has no image")
    numbers, names = _numbered([_plain(label) for label in given], classes)
    digest.update(json.dumps([numbers, names]).encode())
    shown = names or tuple(str(number) for number in range(max(numbers) + 1))
    return Pictures(files, numbers, shown, bool(names), frozenset(sides), digest.hexdigest())


def keep(store: Store, train: Pictures, test: Pictures | None) -> str:
    """The folder of `dataset.name: parquet` in the store that holds them; written where it is not there.

    Raises:
        ConfigError: the store is no local folder; or the classes differ.
    """
    if not store.local:
        legal = "must be a local folder for images in memory; write them as Parquet files for a bucket"
        raise ConfigError("store", store.root, legal)
    if test is not None and (test.classes != train.classes or set(test.labels) != set(train.labels)):
        odd = sorted({*test.classes} ^ {*train.classes}) or "their order"
        raise ConfigError("test", list(test.classes), f"must have the classes of images; differs in {odd}")
    name = hashlib.sha256(f"{train.content} {test and test.content}".encode()).hexdigest()[:12]
    for part, found in (("train", train), ("test", test)):
        place = f"data/{name}/{part}.parquet"
        if not store.exists(place):
            store.put(place, _table(found, train.classes if train.named else None))
    return store.path(f"data/{name}")


def _table(found: Pictures | None, classes: Sequence[str] | None) -> bytes:
    columns = {
        "image": pa.array(found.images if found else [], pa.binary()),
        "label": pa.array(found.labels if found else [], pa.int32()),
    }
    metadata = {"classes": json.dumps(classes)} if classes else None
    return pack_table(pa.table(columns).replace_schema_metadata(metadata), {})


# --- images -------------------------------------------------------------------------------------------------


def _items(images: Any, what: str) -> Iterator[tuple[Any, Any]]:
    if not (hasattr(images, "__getitem__") and hasattr(images, "__len__")):
        raise ConfigError("labels", None, f"must be given: {what} is no torch Dataset with a length")
    for index in range(len(images)):
        item = images[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ConfigError(what, type(item).__name__, f"{what}[{index}] must be (image, label)")
        yield item[0], item[1]


def _picture(image: Any, where: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    tensor = isinstance(image, torch.Tensor)
    try:
        array = np.asarray(image.detach().cpu() if isinstance(image, torch.Tensor) else image)
    except (TypeError, ValueError) as error:
        raise ConfigError(where, type(image).__name__, SHAPES) from error
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3), array.shape[-1] in (1, 3)
        if first and (tensor or not last):
            array = array.transpose(1, 2, 0)
        array = array[..., 0] if array.shape[-1] == 1 else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or not array.size:
        raise ConfigError(where, f"shape {array.shape}", SHAPES)
    return Image.fromarray(_levels(array, where)).convert("RGB")


def _levels(array: np.ndarray, where: str) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and 0 <= low and high <= 1:
        return np.asarray(np.round(array * 255).astype(np.uint8))
    if array.dtype.kind in "iu" and 0 <= low and high <= 255:
        return np.asarray(array.astype(np.uint8))
    raise ConfigError(where, f"{array.dtype} from {low:g} to {high:g}", SHAPES)


def _png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG", compress_level=1)
    return sink.getvalue()


# --- labels -------------------------------------------------------------------------------------------------


def _list(labels: Any) -> list[Any]:
    return list(labels.tolist()) if hasattr(labels, "tolist") else list(labels)


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def _numbered(labels: Sequence[Any], classes: Sequence[str] | None) -> tuple[list[int], tuple[str, ...]]:
    """Labels as positions, and the names of the classes, if they have some."""
    if all(isinstance(label, str) for label in labels):
        names = tuple(sorted(set(labels)) if classes is None else classes)
        if strange := sorted(set(labels) - set(names)):
            raise ConfigError("labels", strange[0], f"must be one of the classes {', '.join(names[:10])}")
        return [names.index(label) for label in labels], names
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
        odd = next(label for label in labels if not isinstance(label, int) or isinstance(label, bool))
        raise ConfigError(
            "labels", odd, "must be whole numbers 0, 1, ... or names of classes, all of one kind"
        )
    names, found = tuple(classes or ()), set(labels)
    count = len(names) or max(found) + 1
    if min(found) < 0 or max(found) >= count:
        odd = min(found) if min(found) < 0 else max(found)
        raise ConfigError("labels", odd, f"must be 0 to {max(0, count - 1)}")
    return list(labels), names
