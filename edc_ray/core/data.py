"""DATASETS: real images as a few uint8 tensors, and the split that holds some of them out of the training.

Reads raw datasets and writes nothing. To add one, write a row: three functions of the `Dataset` section.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from edc_ray.config import ConfigError, Dataset, NotThere, unknown
from edc_ray.core.random import generator

HASH_BYTES = 2 << 30  # larger datasets are known by file names, sizes and times


@dataclass(frozen=True, slots=True)
class Images:
    """A dataset in memory. `mean` and `std` are those of the training pixels in [0, 1], per channel."""

    train: UInt8[Tensor, "n 3 s s"]
    train_labels: Int[Tensor, " n"]
    test: UInt8[Tensor, "m 3 s s"]
    test_labels: Int[Tensor, " m"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A row of DATASETS; see the functions of the same names. `class_counts` is the one that checks."""

    read: Callable[[Dataset], Images]
    fingerprint: Callable[[Dataset], str]
    class_counts: Callable[[Dataset], tuple[int, ...]]


def read(cfg: Dataset) -> Images:
    """All images, decoded and resized to `cfg.size_px`; the training images cut to `cfg.limit`.

    Raises:
        ConfigError: as `check`, and for a file that is not an image.
    """
    check(cfg)
    return DATASETS[cfg.name].read(cfg)


def fingerprint(cfg: Dataset) -> str:
    """Hash of the raw content as hex digits; `size_px` and `limit` are no part of it.

    Files are hashed byte by byte, with their relative names, when they sum to less than 2 GiB; of larger
    datasets only names, sizes and modification times are, so touching a file changes the hash.

    Raises:
        ConfigError: unknown name, or nothing at `path`.
    """
    return _source(cfg).fingerprint(cfg)


def check(cfg: Dataset) -> None:
    """Refuse what cannot be read, before any compute. Decodes no image.

    Raises:
        ConfigError: unknown name, nothing at `path`, the wrong layout, or labels that are not 0..classes-1.
    """
    class_counts(cfg)


def class_counts(cfg: Dataset) -> tuple[int, ...]:
    """Training images of every class after `cfg.limit`, without decoding one. Raises as `check`."""
    return _source(cfg).class_counts(cfg)


def _source(cfg: Dataset) -> Source:
    if cfg.name not in DATASETS:
        raise unknown("dataset.name", cfg.name, DATASETS)
    return DATASETS[cfg.name]


def split(
    labels: Int[Tensor, " n"], val: float, seed: int, path: str = "split.val"
) -> tuple[Int[Tensor, " fit"], Int[Tensor, " val"]]:
    """Sorted, disjoint indices (fit, val): `held_out` images of every class, drawn at random, are val.

    Raises:
        ConfigError: a class would lose all its images; names `path`.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist() if val else ():
        members = (labels == label).nonzero().flatten()
        count = held_out(len(members), val)
        if count >= len(members):
            raise ConfigError(
                path, val, f"holds out all of the {len(members)} training images with label {label}"
            )
        held[members[torch.randperm(len(members), generator=generator("split", seed, label))[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def held_out(count: int, val: float) -> int:
    """How many of a class's images `split` holds out: the rounded share, at least one unless val = 0."""
    return max(1, round(val * count)) if val and count else 0


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


# --- digits: scikit-learn's 1,797 scans of 8x8 px, nothing to download --------------------------------------


def _digits() -> tuple[Float[Tensor, "n 8 8"], Int[Tensor, " n"], Int[Tensor, " m"], Int[Tensor, " k"]]:
    """Gray levels 0..16, labels, and the indices of train and of a test split that never changes."""
    from sklearn.datasets import load_digits  # only this row needs it

    scans = load_digits()
    labels = torch.from_numpy(scans.target).long()
    return torch.from_numpy(scans.images).double(), labels, *split(labels, 0.3, seed=1797)


def _read_digits(cfg: Dataset) -> Images:
    levels, labels, train, test = _digits()
    train = train[: cfg.limit]
    sized = interpolate(
        levels[:, None], size=(cfg.size_px, cfg.size_px), mode="bilinear", align_corners=False
    )
    pixels = (sized * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return _images((pixels[train], labels[train]), (pixels[test], labels[test]), tuple("0123456789"))


def _fingerprint_digits(cfg: Dataset) -> str:
    levels, labels, _, _ = _digits()
    return hashlib.sha256(levels.byte().numpy().tobytes() + labels.byte().numpy().tobytes()).hexdigest()


def _count_digits(cfg: Dataset) -> tuple[int, ...]:
    if cfg.path is not None:
        raise ConfigError("dataset.path", cfg.path, "must be null: the digits come with scikit-learn")
    _, labels, train, _ = _digits()
    return _count(labels[train][: cfg.limit], 10)


# --- parquet ------------------------------------------------------------------------------------------------

_PARQUET = "a folder with train*.parquet and test*.parquet, columns image (encoded bytes) and label (0, 1...)"


def _parquet_files(cfg: Dataset) -> tuple[list[Path], list[Path]]:
    root = _root(cfg, _PARQUET)
    train, test = sorted(root.glob("train*.parquet")), sorted(root.glob("test*.parquet"))
    if not train or not test:
        raise _bad(root, f"has no {'test' if train else 'train'}*.parquet; must be {_PARQUET}")
    return train, test


def _parquet_schema(file: Path) -> pa.Schema:
    try:
        schema = pq.read_schema(file)
    except pa.ArrowInvalid:
        raise _bad(file, "is not a Parquet file") from None
    types = {field.name: field.type for field in schema}
    image, label = types.get("image", pa.null()), types.get("label", pa.null())
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)) or not pa.types.is_integer(label):
        found = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise _bad(file, f"has the columns {found}; needs image (binary: encoded) and label (integer)")
    return schema


def _parquet_names(file: Path) -> tuple[str, ...]:
    """The classes that the schema metadata name; none where it does not."""
    text = (_parquet_schema(file).metadata or {}).get(b"classes", b"[]")
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _bad(file, "needs a JSON list of names as its metadata `classes`")
    return tuple(names)


def _parquet_labels(file: Path) -> Int[Tensor, " n"]:
    column = pq.read_table(file, columns=["label"])["label"]
    if column.null_count:
        raise _bad(file, f"has {column.null_count} rows without a label")
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def _count_parquet(cfg: Dataset) -> tuple[int, ...]:
    train, test = _parquet_files(cfg)
    for file in train + test:
        _parquet_schema(file)
    names = _parquet_names(train[0])
    labels = {file: _parquet_labels(file) for file in train + test}
    for files in (train, test):
        if not sum(len(labels[file]) for file in files):
            raise _bad(files[0], "has no rows")
    fit = torch.cat([labels[file] for file in train])
    classes = len(names) or int(fit.max()) + 1
    for file, values in labels.items():
        wrong = values[(values < 0) | (values >= classes)].tolist()
        if wrong:
            why = "as its metadata names the classes" if names else "as in train"
            raise _bad(file, f"has the label {wrong[0]}; must be 0 to {classes - 1}, {why}")
    seen = fit.unique().tolist()
    if len(seen) < classes:
        gap = next(label for label, found in enumerate([*seen, None]) if label != found)
        raise _bad(train[0].parent, f"has no training image with the label {gap} of 0 to {classes - 1}")
    return _count(fit[: cfg.limit], classes)


def _read_parquet(cfg: Dataset) -> Images:
    def part(files: list[Path], limit: int | None) -> tuple[Tensor, Tensor]:
        labels = torch.cat([_parquet_labels(file) for file in files])[:limit]
        return _decode(cfg, _parquet_blobs(files), len(labels)), labels

    train, test = _parquet_files(cfg)
    numbers = tuple(map(str, range(len(_count_parquet(cfg)))))
    return _images(part(train, cfg.limit), part(test, None), _parquet_names(train[0]) or numbers)


def _parquet_blobs(files: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        batches = pq.ParquetFile(file).iter_batches(batch_size=256, columns=["image"])
        for row, blob in enumerate(blob for batch in batches for blob in batch.column(0)):
            yield f"{file.name}, row {row}", blob.as_py() or b""


def _fingerprint_parquet(cfg: Dataset) -> str:
    train, test = _parquet_files(cfg)
    return _hash_files(train[0].parent, train + test)


# --- image_folder -------------------------------------------------------------------------------------------

_FOLDERS = "a folder with train/CLASS/FILE and test/CLASS/FILE (or val/CLASS/FILE)"
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def _folders(cfg: Dataset) -> tuple[Path, Path, list[str]]:
    """The folders of train and test, and the classes."""
    root = _root(cfg, _FOLDERS)
    train, test = root / "train", root / ("test" if (root / "test").is_dir() else "val")
    for part in (train, test):
        if not part.is_dir():
            raise _bad(root, f"has no {part.name}; must be {_FOLDERS}")
    classes, tested = (
        sorted(entry.name for entry in part.iterdir() if entry.is_dir() and entry.name[0] != ".")
        for part in (train, test)
    )
    if not classes or classes != tested:
        odd = ", ".join(sorted({*classes} ^ {*tested})[:5])
        raise _bad(root, f"must have the same classes in train and {test.name}; differ in {odd or 'nothing'}")
    return train, test, classes


def _listing(folder: Path, classes: Iterable[str]) -> list[tuple[Path, int]]:
    """Files and labels, one of each class in turn, so that every prefix is as balanced as it can be."""
    rows = []
    for label, name in enumerate(classes):
        files = (file for file in (folder / name).rglob("[!.]*") if file.suffix.lower() in _SUFFIXES)
        rows += [(turn, label, file) for turn, file in enumerate(sorted(files))]
    return [(file, label) for _, label, file in sorted(rows)]


def _folder_labels(rows: list[tuple[Path, int]]) -> Int[Tensor, " n"]:
    return torch.tensor([label for _, label in rows], dtype=torch.int64)


def _count_folder(cfg: Dataset) -> tuple[int, ...]:
    train, test, classes = _folders(cfg)
    labels = _folder_labels(_listing(train, classes))
    empty = [
        train / name for name, count in zip(classes, _count(labels, len(classes)), strict=True) if not count
    ]
    if empty or not _listing(test, classes):
        raise _bad([*empty, test][0], f"has no images ({', '.join(sorted(_SUFFIXES))})")
    return _count(labels[: cfg.limit], len(classes))


def _read_folder(cfg: Dataset) -> Images:
    def part(folder: Path, limit: int | None) -> tuple[Tensor, Tensor]:
        rows = _listing(folder, classes)[:limit]
        blobs = ((str(file.relative_to(folder.parent)), file.read_bytes()) for file, _ in rows)
        return _decode(cfg, blobs, len(rows)), _folder_labels(rows)

    train, test, classes = _folders(cfg)
    return _images(part(train, cfg.limit), part(test, None), tuple(classes))


def _fingerprint_folder(cfg: Dataset) -> str:
    train, test, classes = _folders(cfg)
    files = [file for part in (train, test) for file, _ in _listing(part, classes)]
    return _hash_files(train.parent, files)


# --- shared -------------------------------------------------------------------------------------------------


def _bad(path: Path, why: str) -> ConfigError:
    """Says the name twice, as a long path is shown cut."""
    return ConfigError("dataset.path", str(path), f"{path.name} {why}")


def _root(cfg: Dataset, expected: str) -> Path:
    if cfg.path is None or not Path(cfg.path).is_dir():
        raise NotThere("dataset.path", cfg.path, f"no such folder; must be {expected}")
    return Path(cfg.path)


def _count(labels: Int[Tensor, " n"], classes: int) -> tuple[int, ...]:
    return tuple(labels.bincount(minlength=classes).tolist())


def _decode(cfg: Dataset, blobs: Iterable[tuple[str, bytes]], count: int) -> UInt8[Tensor, "n 3 s s"]:
    """The first `count` of (where it is from, encoded image), as RGB, stretched to a square."""
    size_px = cfg.size_px
    images = torch.empty((count, 3, size_px, size_px), dtype=torch.uint8)
    for index, (where, blob) in enumerate(islice(blobs, count)):
        try:
            with Image.open(io.BytesIO(blob)) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
            raise ConfigError("dataset.path", cfg.path, f"{where} is not a readable image: {error}") from None
        if image.size != (size_px, size_px):
            image = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
        images[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return images


def _images(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: tuple[str, ...]) -> Images:
    """Images with the mean and biased standard deviation of the training pixels, to 4 decimals."""
    level = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in train[0].unbind(1):
        # By histogram: exact, and no float copy of the images.
        share = channel.flatten().bincount(minlength=256).double() / channel.numel()
        mu = share @ level
        deviation = (share @ (level - mu) ** 2).sqrt()
        mean.append(round(mu.item(), 4))
        std.append(round(deviation.item(), 4) or 1.0)  # a constant channel is only shifted
    return Images(*train, *test, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), classes)


def _hash_files(root: Path, files: Sequence[Path]) -> str:
    """See `fingerprint`."""
    stats = {file.relative_to(root).as_posix(): file.stat() for file in files}
    by_content = sum(stat.st_size for stat in stats.values()) < HASH_BYTES
    digest = hashlib.sha256()
    for name, stat in sorted(stats.items()):
        digest.update(f"{name}\0{stat.st_size}\0".encode())
        if by_content:
            with (root / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(f"{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


DATASETS: dict[str, Source] = {
    "digits": Source(_read_digits, _fingerprint_digits, _count_digits),
    "parquet": Source(_read_parquet, _fingerprint_parquet, _count_parquet),
    "image_folder": Source(_read_folder, _fingerprint_folder, _count_folder),
}
