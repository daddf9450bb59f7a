"""Stand-ins for the published datasets: their real layout, a handful of small images, no download."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from edc_ray.core.data.cifar import CIFAR

WNIDS = ("n01440764", "n01443537", "n01484850")  # the first of ImageNet and of Tiny-ImageNet


def image(label: int, copy: int, size: int) -> "np.ndarray":
    """(size, size, 3) uint8: a class has its colour, an image its place of a square in it."""
    pixels = np.full((size, size, 3), (37 * label % 256, 91 * label % 256, 30), dtype=np.uint8)
    at = copy % (size // 2)
    pixels[at : at + size // 2, at : at + size // 2] = 220
    return pixels


def jpeg(label: int, copy: int, size: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image(label, copy, size)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_cifar(name: str, root: Path, train: int, test: int) -> None:
    """torchvision's files, with so many images of every class."""
    known = CIFAR[name]
    folder, key = root / known.folder, "labels" if name == "cifar10" else "fine_labels"
    folder.mkdir(parents=True)
    classes, files = len(known.classes), [file for file in known.files if "meta" not in file]
    ids = [*np.array_split(np.arange(train * classes), len(files) - 1), np.arange(test * classes)]
    for file, part in zip(files, ids, strict=True):
        pixels = [image(int(i) % classes, int(i) // classes, 32).transpose(2, 0, 1).reshape(-1) for i in part]
        rows = {"data": np.stack(pixels), key: [int(i) % classes for i in part]}
        (folder / file).write_bytes(pickle.dumps(rows))
    names = {"label_names" if name == "cifar10" else "fine_label_names": list(known.classes)}
    (folder / known.files[-1]).write_bytes(pickle.dumps(names))


def trust_cifar(monkeypatch: pytest.MonkeyPatch, train: int, test: int) -> None:
    """Take files of `write_cifar` for the published ones, which are known by count and md5."""
    for name, known in list(CIFAR.items()):
        monkeypatch.setitem(CIFAR, name, replace(known, train=train, test=test))
        loader = getattr(torchvision.datasets, known.loader)
        for files in ("train_list", "test_list"):
            monkeypatch.setattr(loader, files, [[file, None] for file, _ in getattr(loader, files)])
        monkeypatch.setattr(loader, "meta", loader.meta | {"md5": None})


def write_imagenet(root: Path, classes: Sequence[str], train: int, test: int, size: int) -> None:
    for part, count in (("train", train), ("val", test)):
        for label, wnid in enumerate(classes):
            folder = root / part / wnid
            folder.mkdir(parents=True)
            for copy in range(count):
                (folder / f"{wnid}_{copy}.JPEG").write_bytes(jpeg(label, copy, size))


def write_tiny_imagenet(root: Path, train: int, test: int) -> None:
    rows = []
    (root / "val" / "images").mkdir(parents=True)
    for label, wnid in enumerate(WNIDS):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for copy in range(train):
            (folder / f"{wnid}_{copy}.JPEG").write_bytes(jpeg(label, copy, 64))
        for copy in range(test):
            name = f"val_{label}_{copy}.JPEG"
            (root / "val" / "images" / name).write_bytes(jpeg(label, copy, 64))
            rows.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
