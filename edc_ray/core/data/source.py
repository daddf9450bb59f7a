"""What a dataset has before a pixel is decoded: its classes, its labels, where each image is. And the errors
about what it lacks."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from edc_ray.config import ConfigError, Dataset, NotThere, unknown

HASH_BYTES = 2 << 30  # larger datasets are known by file names, sizes and times

# Where an image is from, and its encoded file or its uint8 pixels (3, h, w).
Item = tuple[str, bytes | Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """The training or the test images: their labels, and `get`, which reads rows of the source in order."""

    labels: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]  # ascending
    get: Callable[[Sequence[int]], Iterator[Item]]

    def items(self, first: int = 0, last: int | None = None) -> Iterator[Item]:
        """Those of images `first` to `last`, one at a time."""
        return self.get(self.rows[first:last].tolist())


@dataclass(frozen=True, slots=True)
class Listing:
    """A dataset, unread. `named`: the classes have names that a user may choose by.

    skipped: images that `dataset.skip_corrupt` left out.
    """

    classes: tuple[str, ...]
    train: Part
    test: Part
    named: bool = True
    skipped: tuple[str, ...] = ()

    def counts(self) -> tuple[int, ...]:
        """Training images of every class."""
        return tuple(self.train.labels.bincount(minlength=len(self.classes)).tolist())


def in_turn(counts: Sequence[int]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Labels, and positions inside the class: one image of each class in turn, while there are any.

    So every prefix is as balanced as it can be.
    """
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    turns = torch.cat([torch.arange(count) for count in counts])
    order = torch.argsort(turns * len(counts) + labels)
    return labels[order], turns[order]


def chosen(cfg: Dataset, known: Sequence[str]) -> tuple[str, ...]:
    """The class names that count, in label order: those of `dataset.classes`, or all.

    Raises:
        ConfigError: `dataset.classes` is empty or names a class twice or one that is not known.
    """
    if cfg.classes is None:
        return tuple(known)
    if not cfg.classes or len(set(cfg.classes)) < len(cfg.classes):
        raise ConfigError("dataset.classes", cfg.classes, "needs at least one class, each once; null = all")
    for index, name in enumerate(cfg.classes):
        if name not in known:
            raise unknown(f"dataset.classes.{index}", name, known)
    return cfg.classes


def disagreement(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int, str, str]:
    """The first label whose class is not the same in both, and the classes from there on, for a person."""
    odd = next(i for i, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b)
    mine, its = (", ".join(part[odd : odd + 3]) or "nothing" for part in (ours, theirs))
    return odd, mine, its


def select(found: Listing, cfg: Dataset) -> Listing:
    """Only the classes of `dataset.classes`, in its order."""
    names = chosen(cfg, found.classes)
    if names != found.classes:
        if not found.named:
            legal = "must be null: the metadata of the Parquet files do not name their classes"
            raise ConfigError("dataset.classes", cfg.classes, legal)
        new = torch.full((len(found.classes),), -1)
        new[[found.classes.index(name) for name in names]] = torch.arange(len(names))
        found = Listing(names, _relabelled(found.train, new), _relabelled(found.test, new))
    return found


def cut(found: Listing, limit: int | None) -> Listing:
    """Of the training images the first `limit`."""
    train = replace(found.train, labels=found.train.labels[:limit], rows=found.train.rows[:limit])
    return replace(found, train=train)


def without(found: Listing, lost: Mapping[str, Sequence[int]], skipped: Sequence[str]) -> Listing:
    """Without these positions of "train" and "test".

    Raises:
        ConfigError: a class has no image left.
    """
    parts = dict[str, Part]()
    for name, positions in lost.items():
        part: Part = getattr(found, name)
        keep = torch.ones(len(part.labels), dtype=torch.bool)
        keep[list(positions)] = False
        parts[name] = replace(part, labels=part.labels[keep], rows=part.rows[keep])
        empty = set(part.labels.tolist()) - set(parts[name].labels.tolist())
        if empty:
            legal = f"leaves no {name} image of class {found.classes[min(empty)]}; corrupt is {skipped[0]}"
            raise ConfigError("dataset.skip_corrupt", True, legal)
    return replace(found, train=parts["train"], test=parts["test"], skipped=tuple(skipped))


def _relabelled(part: Part, new: Int[Tensor, " k"]) -> Part:
    labels = new[part.labels]
    return Part(labels[labels >= 0], part.rows[labels >= 0], part.get)


def bad(path: Path, why: str) -> ConfigError:
    """Says the name twice, as a long path is shown cut."""
    return ConfigError("dataset.path", str(path), f"{path.name} {why}")


def root_of(cfg: Dataset, expected: str) -> Path:
    """The folder of the files. Raises NotThere, which says what it should hold."""
    if cfg.path is None or not Path(cfg.path).is_dir():
        raise NotThere("dataset.path", cfg.path, f"no such folder; must be {expected}")
    return Path(cfg.path)


def hash_files(root: Path, names: Iterable[str]) -> str:
    """Of the content of files under `root` and of their names; see `data.fingerprint`."""
    found = []  # not the whole results of stat: there may be a million
    for name in sorted(names):
        stat = os.stat(root / name)
        found.append((name, stat.st_size, stat.st_mtime_ns))
    by_content = sum(size for _, size, _ in found) < HASH_BYTES
    digest = hashlib.sha256()
    for name, size, changed in found:
        digest.update(f"{name}\0{size}\0".encode())
        if by_content:
            with (root / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(f"{changed}\0".encode())
    return digest.hexdigest()
