"""digits: scikit-learn's 1,797 scans of 8x8 px, nothing to download."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from edc_ray.config import ConfigError, Dataset
from edc_ray.core.data.source import Item, Listing, Part
from edc_ray.core.data.splits import split


@cache  # 1 MB, and a text file to parse
def _digits() -> tuple[Float[Tensor, "n 8 8"], Int[Tensor, " n"], Int[Tensor, " m"], Int[Tensor, " k"]]:
    """Gray levels 0..16, labels, and the indices of train and of a test split that never changes."""
    from sklearn.datasets import load_digits  # only this row needs it

    scans = load_digits()
    labels = torch.from_numpy(scans.target).long()
    return torch.from_numpy(scans.images).double(), labels, *split(labels, 0.3, seed=1797)


def listing(cfg: Dataset) -> Listing:
    if cfg.path is not None:
        raise ConfigError("dataset.path", cfg.path, "must be null: the digits come with scikit-learn")
    levels, labels, train, test = _digits()
    get = _images(levels, cfg.size_px)
    return Listing(tuple("0123456789"), Part(labels[train], train, get), Part(labels[test], test, get))


def _images(levels: Float[Tensor, "n 8 8"], size_px: int) -> Callable[[Sequence[int]], Iterator[Item]]:
    def get(rows: Sequence[int]) -> Iterator[Item]:
        sized = interpolate(
            levels[list(rows), None], size=(size_px, size_px), mode="bilinear", align_corners=False
        )
        pixels = (sized * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        return ((f"scan {row}", image) for row, image in zip(rows, pixels, strict=True))

    return get


def fingerprint(cfg: Dataset) -> str:
    levels, labels, _, _ = _digits()
    return hashlib.sha256(levels.byte().numpy().tobytes() + labels.byte().numpy().tobytes()).hexdigest()
