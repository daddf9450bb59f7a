"""Datasets of class folders: image_folder, tiny_imagenet, imagenet_1k, imagenet_10."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from edc_ray.config import Dataset
from edc_ray.core.data.source import Item, Listing, Part, bad, chosen, hash_files, in_turn, root_of

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FOLDER = "a folder with train/CLASS/FILE and test/CLASS/FILE (or val/CLASS/FILE)"
IMAGENET = (
    "ImageNet's classification set of 2012: train/WNID/*.JPEG and val/WNID/*.JPEG, WNID such as n01440764; "
    "ask for it at https://image-net.org/download, unpack it and sort val into folders of classes"
)
TINY = (
    "tiny-imagenet-200 as distributed: wnids.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and "
    "val/val_annotations.txt; unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip"
)
# ImageNet-10 in the official order, which is that of CMC's imagenet100.txt and not alphabetical (method.md
# B18; EDC, Branch_ImageNet_10/recover/dataset.py, the first ten of CLASS10).
IMAGENET_10 = (
    "n02869837", "n01749939", "n02488291", "n02107142", "n13037406",
    "n02091831", "n04517823", "n04589890", "n03062245", "n01773797",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Files:
    """Images and their labels, both in order; names are relative to the folder."""

    labels: Int[Tensor, " n"]
    names: list[str]


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the folder gives."""

    root: Path
    classes: tuple[str, ...]
    train: Files
    test: Files


Scan = Callable[[Dataset], Found]


def listing(scan: Scan, cfg: Dataset) -> Listing:
    found = scan(cfg)
    return Listing(found.classes, _part(found.root, found.train), _part(found.root, found.test))


def fingerprint(scan: Scan, cfg: Dataset) -> str:
    found = scan(cfg)
    return hash_files(found.root, [*found.train.names, *found.test.names])


def _part(root: Path, files: Files) -> Part:
    def get(rows: Sequence[int]) -> Iterator[Item]:
        return ((files.names[row], (root / files.names[row]).read_bytes()) for row in rows)

    return Part(files.labels, torch.arange(len(files.names)), get)


# --- image_folder and ImageNet ------------------------------------------------------------------------------


def image_folder(cfg: Dataset) -> Found:
    """Class folders under train, and under test or, without that, under val."""
    root = root_of(cfg, FOLDER)
    return _scan(cfg, root, "test" if (root / "test").is_dir() else "val", FOLDER, None)


def imagenet(known: tuple[str, ...] | None, cfg: Dataset) -> Found:
    """Class folders under train and val; test has no labels. known: the only classes that count."""
    return _scan(cfg, root_of(cfg, IMAGENET), "val", IMAGENET, known)


def _scan(cfg: Dataset, root: Path, test: str, expected: str, known: tuple[str, ...] | None) -> Found:
    for part in ("train", test):
        if not (root / part).is_dir():
            raise bad(root, f"has no {part}; must be {expected}")
    classes = chosen(cfg, known or _all_classes(cfg, root, test, expected))
    places = [f"{part}/{name}" for part in ("train", test) for name in classes]
    if absent := [place for place in places if not (root / place).is_dir()]:
        raise bad(root, f"has no {_some(absent)}; must be {expected}")
    middle = len(classes)
    return Found(
        root, classes, _class_by_class(root, places[:middle]), _class_by_class(root, places[middle:])
    )


def _all_classes(cfg: Dataset, root: Path, test: str, expected: str) -> tuple[str, ...]:
    """Of the training set; where no classes are chosen, the test set must have the same."""
    train, tested = (
        sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir() and entry.name[0] != ".")
        for part in ("train", test)
    )
    if cfg.classes is None and (not train or train != tested):
        odd = _some(sorted({*train} ^ {*tested})) or "nothing"
        why = f"must have the same classes in train and {test}; differ in {odd}; must be {expected}"
        raise bad(root, why)
    return tuple(train)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])


def _class_by_class(root: Path, places: Sequence[str]) -> Files:
    """One folder of images for each class, one image of each class in turn."""
    files = [images_in(root, place) for place in places]
    if empty := [place for place, names in zip(places, files, strict=True) if not names]:
        raise bad(root / empty[0], f"has no images ({', '.join(sorted(SUFFIXES))})")
    labels, turns = in_turn([len(names) for names in files])
    return Files(labels, [files[k][turn] for k, turn in zip(labels.tolist(), turns.tolist(), strict=True)])


def images_in(root: Path, place: str) -> list[str]:
    """Images anywhere under a folder, hidden ones left out: names under root, sorted by their parts."""
    found = []
    for folder, inner, names in os.walk(root / place):
        inner[:] = [name for name in inner if name[0] != "."]
        at = Path(folder).relative_to(root).as_posix()
        images = (name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)
        found += [f"{at}/{name}" for name in images if name[0] != "."]
    return sorted(found, key=lambda name: name.split("/"))


# --- tiny_imagenet ------------------------------------------------------------------------------------------


def tiny_imagenet(cfg: Dataset) -> Found:
    """Classes of wnids.txt, sorted; the validation images are the test split, as in every publication."""
    root = root_of(cfg, TINY)
    wanted = ("wnids.txt", "train", "val/images", "val/val_annotations.txt")
    if absent := [name for name in wanted if not (root / name).exists()]:
        raise bad(root, f"has no {_some(absent)}; must be {TINY}")
    classes = chosen(cfg, sorted((root / "wnids.txt").read_text().split()))
    train = _class_by_class(root, [f"train/{name}/images" for name in classes])
    return Found(root, classes, train, _annotated(root, classes))


def _annotated(root: Path, classes: Sequence[str]) -> Files:
    """val/val_annotations.txt: a line has the file, its class and a box, between tabs."""
    table, label = root / "val" / "val_annotations.txt", {name: index for index, name in enumerate(classes)}
    rows = [line.split("\t") for line in table.read_text().splitlines() if line]
    if wrong := [row for row in rows if len(row) < 2]:
        raise bad(table, f"has the line {wrong[0][0]!r}; needs FILE, WNID and a box, between tabs")
    kept = [(row[0], row[1]) for row in rows if row[1] in label]
    if unseen := sorted(set(classes) - {wnid for _, wnid in kept}):
        raise bad(table, f"has no image of {_some(unseen)}")
    if absent := [file for file, _ in kept if not (root / "val" / "images" / file).is_file()]:
        raise bad(root / "val" / "images", f"has no {_some(absent)}; must be {TINY}")
    return Files(torch.tensor([label[wnid] for _, wnid in kept]), [f"val/images/{file}" for file, _ in kept])
