"""cifar10, cifar100: torchvision's files, downloaded by the first stage where they are absent.

Their classes, counts and content are known from the publication, so names of artifacts need no file.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edc_ray.config import Dataset, NotThere
from edc_ray.core.data.source import Item, Listing, Part, in_turn

URL = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True, slots=True)
class Published:
    """What the files hold; md5: of the archive, as published."""

    loader: str  # in torchvision.datasets
    folder: str
    files: tuple[str, ...]
    archive: str
    md5: str
    classes: tuple[str, ...]
    train: int  # images of each class
    test: int


CIFAR: dict[str, Published] = {
    "cifar10": Published(
        "CIFAR10", "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
        tuple("airplane automobile bird cat deer dog frog horse ship truck".split()), 5000, 1000,
    ),
    "cifar100": Published(
        "CIFAR100", "cifar-100-python", ("train", "test", "meta"),
        "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85",
        tuple(
            "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
            "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
            "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house "
            "kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
            "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
            "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark "
            "shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table "
            "tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
            "willow_tree wolf woman worm".split()
        ), 500, 100,
    ),
}  # fmt: skip


def listing(cfg: Dataset) -> Listing:
    """Needs no file: one image of each class in turn, in the order of the files inside a class."""
    known = CIFAR[cfg.name]

    def part(train: bool) -> Part:
        labels, _ = in_turn([known.train if train else known.test] * len(known.classes))
        return Part(labels, torch.arange(len(labels)), partial(_images, cfg, train))

    return Listing(known.classes, part(True), part(False))


def fingerprint(cfg: Dataset) -> str:
    return hashlib.sha256(f"{cfg.name} {CIFAR[cfg.name].md5}".encode()).hexdigest()


def require(cfg: Dataset) -> None:
    """Raises NotThere without a folder to look into, or to download into."""
    if cfg.path is None or not Path(cfg.path).is_dir():
        raise NotThere("dataset.path", cfg.path, f"no such folder; must be {_expected(cfg)}")


def _expected(cfg: Dataset) -> str:
    known = CIFAR[cfg.name]
    files = ", ".join(known.files)
    return (
        f"a folder with {known.folder}/ ({files}) or with {known.archive} from {URL}{known.archive}; "
        "into an empty one it is downloaded"
    )


def _images(cfg: Dataset, train: bool, rows: Sequence[int]) -> Iterator[Item]:
    known, found = CIFAR[cfg.name], _open(cfg, train)
    labels, turns = in_turn([known.train if train else known.test] * len(known.classes))
    of_class = torch.argsort(torch.tensor(found.targets), stable=True).view(len(known.classes), -1)
    at = of_class[labels, turns].tolist()
    assert tuple(found.classes) == known.classes
    pixels = torch.from_numpy(np.asarray(found.data)).permute(0, 3, 1, 2)
    return ((f"{'train' if train else 'test'} image {at[row]}", pixels[at[row]]) for row in rows)


def _open(cfg: Dataset, train: bool) -> Any:
    """torchvision's dataset: checks every file's md5; unpacks or downloads the archive where one is wrong.

    Raises:
        NotThere: that was not possible; says which files are missing, and how to get them.
    """
    from torchvision import datasets  # slow to import

    require(cfg)
    known, root = CIFAR[cfg.name], Path(str(cfg.path))
    try:
        return getattr(datasets, known.loader)(root, train=train, download=True)
    except (OSError, RuntimeError) as error:  # no network, no right to write, or other bytes
        absent = [name for name in known.files if not (root / known.folder / name).is_file()]
        state = f"{known.folder}/ has no {', '.join(absent)}" if absent else "a file is damaged"
        why = f"{state}, and the download failed ({error}); must be {_expected(cfg)}"
        raise NotThere("dataset.path", cfg.path, why) from error
