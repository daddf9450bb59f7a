"""DATASETS: real images, as uint8 tensors or as shards of encoded ones, and the split that holds some out.

Reads raw datasets and writes nothing, but for the download of CIFAR. To add one, write a row: the functions
of a module such as `parquet`.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from jaxtyping import Int, UInt8
from torch import Tensor

from edc_ray.config import ConfigError, Dataset, unknown
from edc_ray.core.data import cifar, digits, folders, parquet, pixels
from edc_ray.core.data.condensed import class_order, folder_shape, read_tensors
from edc_ray.core.data.pixels import Pixels, denormalize, encoded, normalize
from edc_ray.core.data.source import Item, Listing, Part, cut, disagreement, select, without
from edc_ray.core.data.splits import held_out, split
from edc_ray.core.data.start import Start, start_fingerprint, start_listing

__all__ = [
    "CONSTANTS", "DATASETS", "Images", "Listing", "Pixels", "Shard", "Start", "check", "check_classes",
    "class_counts", "class_order", "decoded", "denormalize", "encoded", "fingerprint", "folder_shape",
    "held_out", "listing", "normalization", "normalize", "read", "read_tensors", "require", "shard",
    "shard_images", "shards", "split", "start_fingerprint", "start_listing",
]  # fmt: skip

IN_MEMORY_BYTES = 2 << 30  # a dataset with more decoded bytes is kept in shards
SHARD_BYTES = 128 << 20  # of the decoded images of one shard
DECODERS = 4  # threads that look for corrupt images
log = logging.getLogger(__name__)

Triple = tuple[float, float, float]

# Of the pixels in [0, 1]: (mean, standard deviation) per channel. cifar100: as the official code has them.
CONSTANTS: dict[str, tuple[Triple, Triple]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True, slots=True)
class Images:
    """A dataset in memory; `mean` and `std` are those of `dataset.normalization`, per channel."""

    train: UInt8[Tensor, "n 3 s s"]
    train_labels: Int[Tensor, " n"]
    test: UInt8[Tensor, "m 3 s s"]
    test_labels: Int[Tensor, " m"]
    mean: Triple
    std: Triple
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of images as encoded files, and the `pixels.sums` of the decoded ones."""

    files: list[bytes]
    labels: Int[Tensor, " n"]
    sums: Int[Tensor, "3 3"]


@dataclass(frozen=True, slots=True)
class Source:
    """A row of DATASETS; see the functions of the same names.

    test_resize: test images are resized to a shorter side of this times size_px before the centre crop.
    """

    listing: Callable[[Dataset], Listing]
    fingerprint: Callable[[Dataset], str]
    require: Callable[[Dataset], None] = lambda cfg: None
    test_resize: float = 1.0


def listing(cfg: Dataset) -> Listing:
    """Classes and labels, and where the images are; those of `dataset.classes`, cut to `limit`.

    Decodes no image, but with `skip_corrupt` all of them, once a process, to leave out those that cannot be.

    Raises:
        ConfigError: unknown name or class, nothing at `path`, the wrong layout, labels not 0..classes-1.
    """
    found = select(_source(cfg).listing(cfg), cfg)
    if cfg.skip_corrupt:
        require(cfg)
        found = without(found, *_corrupt(replace(cfg, limit=None), fingerprint(cfg)))
    return cut(found, cfg.limit)


def check_classes(cfg: Dataset, theirs: Sequence[str], file: str) -> None:
    """Raises ConfigError where the classes here and those of a file are not the same, in order."""
    ours = listing(cfg).classes
    if ours != tuple(theirs):
        odd, mine, its = disagreement(ours, theirs)
        legal = f"the class order differs from label {odd} on: {mine} here, {its} in {file}"
        raise ConfigError("dataset.classes", cfg.classes, legal)


@functools.lru_cache(maxsize=16)
def _corrupt(cfg: Dataset, content: str) -> tuple[dict[str, list[int]], list[str]]:
    """Positions of the images that cannot be decoded, in train and test, and where they are from."""
    found = select(_source(cfg).listing(cfg), cfg)
    wrong = {name: pixels.corrupt(getattr(found, name).items(), DECODERS) for name in ("train", "test")}
    skipped = [where for rows in wrong.values() for _, where in rows]
    if skipped:
        shown = ", ".join(skipped[: pixels.SHOWN]) + (", ..." if len(skipped) > pixels.SHOWN else "")
        log.warning("dataset.skip_corrupt: %d corrupt images are left out: %s", len(skipped), shown)
    return {name: [index for index, _ in rows] for name, rows in wrong.items()}, skipped


def fingerprint(cfg: Dataset) -> str:
    """Hash of the raw content as hex digits; `size_px`, `limit` and `normalization` are no part of it.

    Files are hashed byte by byte, with their relative names, when they sum to less than 2 GiB; of larger
    datasets only names, sizes and modification times are, so touching a file changes the hash. CIFAR is known
    by its published md5.

    Raises:
        ConfigError: unknown name, or nothing at `path`.
    """
    return _source(cfg).fingerprint(cfg)


def require(cfg: Dataset) -> None:
    """Raises NotThere where files that `listing` did not need can be neither read nor downloaded."""
    _source(cfg).require(cfg)


def check(cfg: Dataset) -> None:
    """Refuse what cannot be read, before any compute: as `listing` and `require`. Decodes no image."""
    listing(cfg)
    require(cfg)


def class_counts(cfg: Dataset) -> tuple[int, ...]:
    """Training images of every class after `cfg.limit`, without decoding one. Raises as `listing`."""
    return listing(cfg).counts()


def _source(cfg: Dataset) -> Source:
    if cfg.name not in DATASETS:
        raise unknown("dataset.name", cfg.name, DATASETS)
    return DATASETS[cfg.name]


# --- decoded: in memory, or in shards -----------------------------------------------------------------------


def shards(cfg: Dataset, found: Listing) -> tuple[int, int]:
    """How many shards of training and of test images there are; (0, 0) where all fit in memory."""
    sizes = [len(part.labels) for part in (found.train, found.test)]
    if sum(sizes) * _image_bytes(cfg) <= IN_MEMORY_BYTES:
        return 0, 0
    return -(-sizes[0] // shard_images(cfg)), -(-sizes[1] // shard_images(cfg))


def shard_images(cfg: Dataset) -> int:
    """In one shard; the last one may have fewer."""
    return max(1, SHARD_BYTES // _image_bytes(cfg))


def _image_bytes(cfg: Dataset) -> int:
    return 3 * cfg.size_px**2


def read(cfg: Dataset, threads: int = 1) -> Images:
    """All images, decoded and sized (`decoded`).

    Raises:
        ConfigError: as `check`, and for a file that is not an image.
    """
    require(cfg)
    found = listing(cfg)
    train, test = (
        decoded(cfg, name, part.items(), len(part.labels), threads)
        for name, part in (("train", found.train), ("test", found.test))
    )
    mean, std = normalization(cfg, pixels.sums(train))
    return Images(train, found.train.labels, test, found.test.labels, mean, std, found.classes)


def shard(cfg: Dataset, found: Listing, part: str, index: int, threads: int = 1) -> Shard:
    """Shard `index` of "train" or "test". Every image is decoded once, to find those that cannot be."""
    require(cfg)
    images: Part = getattr(found, part)
    run = slice(index * shard_images(cfg), (index + 1) * shard_images(cfg))
    items = list(images.items(run.start, run.stop))
    sums = pixels.sums(decoded(cfg, part, items, len(items), threads))
    return Shard([pixels.encoded(item) for item in items], images.labels[run], sums)


def decoded(
    cfg: Dataset, part: str, items: Iterable[Item], count: int, threads: int = 1
) -> UInt8[Tensor, "n 3 s s"]:
    """`count` images of "train" or "test" as RGB squares: shorter side to size_px, centre crop.

    ImageNet's test images are resized to 256/224 of that first, as everyone does.

    Raises:
        ConfigError: some are not readable images; says how many, and where the first ones are from.
    """
    resize = _source(cfg).test_resize if part == "test" else 1.0
    try:
        return pixels.decode(items, count, cfg.size_px, resize, threads)
    except ValueError as error:
        legal = f"{error}; dataset.skip_corrupt=true leaves out what is corrupt"
        raise ConfigError("dataset.path", cfg.path, legal) from error


def normalization(cfg: Dataset, sums: Int[Tensor, "3 3"]) -> tuple[Triple, Triple]:
    """(mean, standard deviation) of `dataset.normalization`. sums: of the training images."""
    return CONSTANTS[cfg.normalization] if cfg.normalization in CONSTANTS else pixels.scale(sums)


def _folders(scan: folders.Scan, test_resize: float = 1.0) -> Source:
    return Source(partial(folders.listing, scan), partial(folders.fingerprint, scan), test_resize=test_resize)


DATASETS: dict[str, Source] = {
    "digits": Source(digits.listing, digits.fingerprint),
    "parquet": Source(parquet.listing, parquet.fingerprint),
    "image_folder": _folders(folders.image_folder),
    "cifar10": Source(cifar.listing, cifar.fingerprint, cifar.require),
    "cifar100": Source(cifar.listing, cifar.fingerprint, cifar.require),
    "tiny_imagenet": _folders(folders.tiny_imagenet),
    "imagenet_1k": _folders(partial(folders.imagenet, None), 256 / 224),
    "imagenet_10": _folders(partial(folders.imagenet, folders.IMAGENET_10), 256 / 224),
}
