"""A folder of images to start from: CLASS/FILE (method.md 3.1)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from edc_ray.config import ConfigError, NotThere
from edc_ray.core.data import pixels
from edc_ray.core.data.folders import images_in
from edc_ray.core.data.source import hash_files

EXPECTED = "a folder with CLASS/FILE, a folder of images for each class of the dataset"


@dataclass(frozen=True, slots=True)
class Start:
    """The images of a folder, unread. files: of each class, in label order; relative to `root`."""

    root: Path
    files: tuple[tuple[str, ...], ...]

    def side(self) -> int:
        """The shorter side of the first image, in px. Raises ConfigError as `read`."""
        name = next(name for names in self.files for name in names)
        try:
            with Image.open(self.root / name) as image:
                return min(image.size)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
            raise ConfigError(
                "init.path", str(self.root), f"{name} is not a readable image: {error}"
            ) from error

    def read(
        self, label: int, ids: Sequence[int], size_px: int, threads: int = 1
    ) -> UInt8[Tensor, "m 3 s s"]:
        """Images of a class as squares: shorter side to size_px, centre crop.

        Raises:
            ConfigError: one is not a readable image; says which.
        """
        names = [self.files[label][i] for i in ids]
        items = ((name, (self.root / name).read_bytes()) for name in names)
        try:
            return pixels.decode(items, len(names), size_px, threads=threads)
        except ValueError as error:
            raise ConfigError("init.path", str(self.root), str(error)) from error


def start_listing(path: str | None, classes: Sequence[str]) -> Start:
    """What `init.path` offers for these classes: the folders of their names or, where those have other names
    but there are as many, the i-th in sorted order for class i.

    Raises:
        NotThere: no such folder. ConfigError: its folders fit the classes neither by name nor in number.
    """
    root = _root(path)
    found = class_folders(root)
    by_name = set(classes) <= set(found)
    if not by_name and len(found) != len(classes):
        absent = ", ".join(sorted(set(classes) - set(found))[:5])
        why = f"has {len(found)} class folders for {len(classes)} classes, and none named {absent}"
        raise ConfigError("init.path", path, f"{why}; must be {EXPECTED}")
    names = classes if by_name else found
    return Start(root, tuple(tuple(images_in(root, name)) for name in names))


def start_fingerprint(path: str | None) -> str:
    """Hash of all images below `init.path` and of their names. Raises NotThere."""
    root = _root(path)
    return hash_files(root, [file for name in class_folders(root) for file in images_in(root, name)])


def _root(path: str | None) -> Path:
    if path is None or not Path(path).is_dir():
        raise NotThere("init.path", path, f"no such folder; must be {EXPECTED}")
    return Path(path)


def class_folders(root: Path) -> list[str]:
    """Names of the class folders, sorted; hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
