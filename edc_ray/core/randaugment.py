"""RandAugment on a batch of bytes, image by image its own operations (method.md 5.3).

Operations and magnitudes are torchvision's (`transforms.RandAugment`, its 31 magnitudes, nearest neighbour,
filled with 0). Images that drew the same operation go through it together, on their device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

MAGNITUDES = 31


@dataclass(frozen=True, slots=True)
class Operation:
    """apply(bytes, amount). amounts: of an image of side s, one a magnitude. signed: also with -amount."""

    apply: Callable[[Tensor, float], Tensor]
    amounts: Callable[[int], Tensor]
    signed: bool = False


def _vision() -> Any:
    from torchvision.transforms import functional  # only who uses RandAugment pays for the import

    return functional


def _affine(images: Tensor, **change: Any) -> Tensor:
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return _vision().affine(images, **(still | change))


def _shear_x(images: Tensor, amount: float) -> Tensor:
    return _affine(images, shear=[math.degrees(math.atan(amount)), 0.0], center=[0, 0])


def _shear_y(images: Tensor, amount: float) -> Tensor:
    return _affine(images, shear=[0.0, math.degrees(math.atan(amount))], center=[0, 0])


def _equalize(images: Tensor, amount: float) -> Tensor:
    from torchvision.transforms.v2.functional import equalize_image  # the other one loops over images

    return equalize_image(images)


def _even(first: float, last: float) -> Callable[[int], Tensor]:
    return lambda size: torch.linspace(first, last, MAGNITUDES)


def _shift(size: int) -> Tensor:
    return torch.linspace(0.0, 150.0 / 331.0 * size, MAGNITUDES)


def _bits(size: int) -> Tensor:
    return 8 - (torch.arange(MAGNITUDES) / ((MAGNITUDES - 1) / 4)).round()


_TINT = _even(0.0, 0.9)
OPERATIONS: dict[str, Operation] = {
    "identity":     Operation(lambda x, m: x, _even(0.0, 0.0)),
    "shear_x":      Operation(_shear_x, _even(0.0, 0.3), signed=True),
    "shear_y":      Operation(_shear_y, _even(0.0, 0.3), signed=True),
    "translate_x":  Operation(lambda x, m: _affine(x, translate=[int(m), 0]), _shift, signed=True),
    "translate_y":  Operation(lambda x, m: _affine(x, translate=[0, int(m)]), _shift, signed=True),
    "rotate":       Operation(lambda x, m: _vision().rotate(x, m), _even(0.0, 30.0), signed=True),
    "brightness":   Operation(lambda x, m: _vision().adjust_brightness(x, 1 + m), _TINT, signed=True),
    "color":        Operation(lambda x, m: _vision().adjust_saturation(x, 1 + m), _TINT, signed=True),
    "contrast":     Operation(lambda x, m: _vision().adjust_contrast(x, 1 + m), _TINT, signed=True),
    "sharpness":    Operation(lambda x, m: _vision().adjust_sharpness(x, 1 + m), _TINT, signed=True),
    "posterize":    Operation(lambda x, m: _vision().posterize(x, int(m)), _bits),
    "solarize":     Operation(lambda x, m: _vision().solarize(x, m), _even(255.0, 0.0)),
    "autocontrast": Operation(lambda x, m: _vision().autocontrast(x), _even(0.0, 0.0)),
    "equalize":     Operation(_equalize, _even(0.0, 0.0)),
}  # fmt: skip
_TABLE = tuple(OPERATIONS.values())
_SIGNED = torch.tensor([operation.signed for operation in _TABLE])


def draw(
    n: int, count: int, magnitude: int, rng: torch.Generator
) -> tuple[Int[Tensor, "n count"], Int[Tensor, "n count"]]:
    """(positions in OPERATIONS, magnitudes, negative where the amount is), all equally likely."""
    chosen = torch.randint(len(_TABLE), (n, count), generator=rng)
    sign = 2 * torch.randint(2, (n, count), generator=rng) - 1
    return chosen, magnitude * torch.where(_SIGNED[chosen], sign, 1)


def apply(
    images: UInt8[Tensor, "n 3 s s"], chosen: Int[Tensor, "n count"], magnitudes: Int[Tensor, "n count"]
) -> UInt8[Tensor, "n 3 s s"]:
    """The images after their operations, one after the other. What was drawn is on the CPU: no sync."""
    for kinds, strengths in zip(chosen.unbind(1), magnitudes.unbind(1), strict=True):
        pairs = torch.stack([kinds, strengths], 1)
        found, which, counts = pairs.unique(dim=0, return_inverse=True, return_counts=True)
        order = which.argsort(stable=True)
        parts = images[order.to(images.device)].split(counts.tolist())
        done = [_apply(part, *row) for part, row in zip(parts, found.tolist(), strict=True)]
        images = torch.cat(done)[order.argsort().to(images.device)]
    return images


def _apply(images: Tensor, kind: int, magnitude: int) -> Tensor:
    operation = _TABLE[kind]
    amount = float(operation.amounts(images.shape[-1])[abs(magnitude)])
    return operation.apply(images, -amount if magnitude < 0 else amount)
