"""RandAugment in batches against torchvision's, image by image."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from edc_ray.core.randaugment import MAGNITUDES, OPERATIONS, apply, draw

SIZE = 20
THEIRS = RandAugment()._augmentation_space(MAGNITUDES, (SIZE, SIZE))
KINDS = list(zip(OPERATIONS, THEIRS, strict=True))


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    """Noise, blocks of few levels, and a single level: histograms of every kind."""
    noise = torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=rng)
    blocks = torch.randint(80, 130, (3, 3, 4, 4), generator=rng)
    blocks = blocks.repeat_interleave(5, 2).repeat_interleave(5, 3)
    return torch.cat([noise, blocks, torch.full((1, 3, SIZE, SIZE), 77)]).to(torch.uint8)


def one(image: Tensor, kind: int, magnitude: int) -> Tensor:
    """torchvision's own code on one image."""
    name = list(THEIRS)[kind]
    amounts, _ = THEIRS[name]
    amount = float(amounts[abs(magnitude)]) if amounts.ndim else 0.0
    sign = -1 if magnitude < 0 else 1
    return _apply_op(image, name, sign * amount, InterpolationMode.NEAREST, None)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=OPERATIONS)
def test_each_operation_is_torchvisions_to_the_bit_with_both_signs(kind: int, images: Tensor) -> None:
    ours, theirs = KINDS[kind]
    assert ours.replace("_", "") == theirs.lower()
    signed = OPERATIONS[ours].signed
    assert signed == THEIRS[theirs][1]
    changed = False
    for magnitude in (0, 5, 9, 30, *((-5, -9, -30) if signed else ())):
        chosen = torch.full((len(images), 1), kind)
        found = apply(images, chosen, torch.full_like(chosen, magnitude))
        want = torch.stack([one(image, kind, magnitude) for image in images])
        assert found.dtype == torch.uint8 and torch.equal(found, want), magnitude
        changed |= not torch.equal(found, images)
    assert changed == (ours != "identity")


def test_each_image_has_its_own_operations_in_their_order(images: Tensor, rng: torch.Generator) -> None:
    many, before = images.repeat(8, 1, 1, 1), images.clone()
    chosen, magnitudes = draw(len(many), 3, 9, rng)
    want = []
    for image, kinds, strengths in zip(many, chosen.tolist(), magnitudes.tolist(), strict=True):
        for kind, magnitude in zip(kinds, strengths, strict=True):
            image = one(image, kind, magnitude)
        want.append(image)
    assert torch.equal(apply(many, chosen, magnitudes), torch.stack(want))
    assert torch.equal(images, before)


def test_operations_and_signs_are_equally_likely(rng: torch.Generator) -> None:
    chosen, magnitudes = draw(7000, 2, 9, rng)
    counts = chosen.flatten().bincount(minlength=len(OPERATIONS))
    assert counts.min() > 850 and counts.max() < 1150 and len(counts) == 14
    for kind, operation in enumerate(OPERATIONS.values()):
        negative = (magnitudes[chosen == kind] < 0).float().mean()
        assert (magnitudes[chosen == kind].abs() == 9).all()
        assert 0.4 < negative < 0.6 if operation.signed else negative == 0
    assert draw(5, 0, 9, rng)[0].shape == (5, 0)
