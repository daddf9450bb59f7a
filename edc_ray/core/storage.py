"""How the condensed images are kept: bytes or half floats; and how they are read again (B16)."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from edc_ray.config import Recover
from edc_ray.core import data

Stored = UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"]  # levels, or half floats in [0, 1]


def store(images: Stored, cfg: Recover) -> tuple[Stored, int]:
    """(images as a reader sees them, bytes that they take). images: levels, or floats in [0, 1].

    uint8 rounds to the nearest level; uint8_truncated and jpeg cut the rest off, as the official code does;
    jpeg is coded and decoded. Levels stay as they are, but in jpeg and float16.
    """
    if cfg.format == "float16":
        kept = pixels(images).clamp(0, 1).half()
        return kept, kept.nbytes
    if images.is_floating_point():
        levels = images.float().clamp(0, 1) * 255
        images = (levels.round() if cfg.format == "uint8" else levels).to(torch.uint8)
    return _jpeg(images, cfg.jpeg_quality) if cfg.format == "jpeg" else (images, images.nbytes)


def pixels(images: Stored) -> Float[Tensor, "n 3 h w"]:
    """float32 in [0, 1]."""
    return images.float() if images.is_floating_point() else images.float() / 255


def levels(images: Stored) -> UInt8[Tensor, "n 3 h w"]:
    """Bytes, rounded: for pictures, and for what needs bytes."""
    return (images.float() * 255).round().to(torch.uint8) if images.is_floating_point() else images


def normalized(images: Stored, mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "n 3 h w"]:
    """float32 with the dataset's mean and deviation taken out."""
    if not images.is_floating_point():
        return data.normalize(images, mean, std)
    low, spread = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return (pixels(images) - low) / spread


def _jpeg(images: UInt8[Tensor, "n 3 h w"], quality: int) -> tuple[UInt8[Tensor, "n 3 h w"], int]:
    decoded, size = [], 0
    for image in images.permute(0, 2, 3, 1).numpy():
        coded = io.BytesIO()
        Image.fromarray(image).save(coded, format="JPEG", quality=quality)
        size += coded.tell()
        decoded.append(np.asarray(Image.open(coded)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous(), size
