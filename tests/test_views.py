"""Views against slow oracles: torchvision image by image, and patches pasted by hand."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as vision

from edc_ray.config import Augment, Relabel
from edc_ray.core.random import fork_rng
from edc_ray.core.views import (
    MIXES,
    View,
    apply,
    augment,
    concat,
    cutmix,
    draw,
    random_boxes,
    resample,
    steps_per_epoch,
)

IMAGES, SIZE = 10, 12
CFG = Relabel(batch_size=4, crop_min=0.1)
STILL = Relabel(batch_size=4, crop_min=1.0, flip=False, mix="none")


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn((IMAGES, 3, SIZE, SIZE), generator=rng)


def same(a: View, b: View) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(View))


def slow(view: View, images: Tensor) -> Tensor:
    """torchvision's crop and flip of one image after the other, then one paste after the other."""
    crops = []
    for i, box, flip in zip(view.ids.tolist(), view.box.tolist(), view.flip.tolist(), strict=True):
        crop = vision.resized_crop(images[i], *box, [SIZE, SIZE], InterpolationMode.BILINEAR, antialias=False)
        crops.append(vision.hflip(crop) if flip else crop)
    mixed = [crop.clone() for crop in crops]
    for result, partner, box in zip(mixed, view.partner.tolist(), view.mix_box.tolist(), strict=True):
        top, left, height, width = box
        area = (slice(None), slice(top, top + height), slice(left, left + width))
        result[area] = crops[partner][area]
    return torch.stack(mixed)


# --- drawing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", MIXES)
def test_a_view_depends_on_seed_and_step_alone(mix: str) -> None:
    cfg, before = replace(CFG, mix=mix), torch.get_rng_state()
    backwards = {step: draw(cfg, IMAGES, SIZE, 3, step) for step in reversed(range(7))}
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # whatever others draw meanwhile
    for step in range(7):
        assert same(draw(cfg, IMAGES, SIZE, 3, step), backwards[step])
        assert not same(draw(cfg, IMAGES, SIZE, 4, step), backwards[step])
    boxes = {tuple(view.box.flatten().tolist()) for view in backwards.values()}
    assert len(boxes) == 7


@pytest.mark.parametrize("images, batch", [(10, 4), (10, 5), (10, 16), (10, 3), (1, 2)])
def test_an_epoch_visits_each_image_once(images: int, batch: int) -> None:
    cfg = replace(CFG, batch_size=batch)
    per_epoch, orders = steps_per_epoch(cfg, images), []
    for epoch in range(3):
        views = [draw(cfg, images, SIZE, 0, epoch * per_epoch + i) for i in range(per_epoch)]
        sizes = [len(view.ids) for view in views]
        assert set(sizes[:-1]) <= {batch} and sizes[-1] in (images % batch, batch, batch + 1)
        assert images == 1 or 1 not in sizes  # BatchNorm cannot train on one image
        orders.append(torch.cat([view.ids for view in views]).tolist())
        assert sorted(orders[-1]) == list(range(images))
    assert images == 1 or orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("mix", MIXES)
def test_partners_are_in_the_batch_and_boxes_in_the_image(mix: str) -> None:
    for step in range(60):
        view = draw(replace(CFG, mix=mix), IMAGES, SIZE, 0, step)
        assert sorted(view.partner.tolist()) == list(range(len(view.ids)))
        assert len(view.mix_box.unique(dim=0)) == 1  # one for the batch
        for box in (view.box, view.mix_box):
            assert box.shape == (len(view.ids), 4)
            assert (box >= 0).all() and (box[:, :2] + box[:, 2:] <= SIZE).all()
        if mix == "none":
            assert not view.mix_box.any()


@pytest.mark.parametrize("flip, low, high", [(True, 0.4, 0.6), (False, 0.0, 0.0)])
def test_half_of_the_images_are_flipped_or_none(flip: bool, low: float, high: float) -> None:
    flips = torch.cat([draw(replace(CFG, flip=flip), 100, SIZE, 0, step).flip for step in range(100)])
    assert low <= flips.float().mean() <= high


@pytest.mark.parametrize("crop_min", [0.01, 0.3, 0.5, 0.9])
def test_crops_keep_to_area_and_ratio_up_to_rounding(crop_min: float, rng: torch.Generator) -> None:
    size = 32
    top, left, height, width = random_boxes(5000, size, crop_min, rng).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= size).all() and (left + width <= size).all()
    for start, length in ((top, height), (left, width)):  # every place is possible, up to both edges
        free = length < size
        assert (start[free] == 0).any() and (start + length == size)[free].any()
    assert ((height + 0.5) * (width + 0.5) >= crop_min * size**2).all()
    assert ((width - 0.5) / (height + 0.5) <= 4 / 3).all() and ((width + 0.5) / (height - 0.5) >= 3 / 4).all()


@pytest.mark.parametrize("crop_min", [0.08, 0.7])
def test_crops_are_distributed_as_in_torchvision(crop_min: float, rng: torch.Generator) -> None:
    """Means and spreads of area, ratio and place; 6000 draws give each to about 0.005."""
    count, size = 6000, 64
    blank, ratio = torch.empty(3, size, size), [3 / 4, 4 / 3]
    with fork_rng("torchvision"):
        drawn = [RandomResizedCrop.get_params(blank, [crop_min, 1.0], ratio) for _ in range(count)]
    theirs, ours = torch.tensor(drawn), random_boxes(count, size, crop_min, rng)

    def summary(boxes: Tensor) -> Tensor:
        top, left, height, width = (boxes / size).unbind(1)
        kinds = torch.stack([height * width, (width / height).log(), top, left])
        return torch.cat([kinds.mean(1), kinds.std(1)])

    torch.testing.assert_close(summary(ours), summary(theirs), rtol=0, atol=0.015)


def test_a_crop_of_the_whole_area_is_the_whole_image(rng: torch.Generator) -> None:
    assert random_boxes(50, SIZE, 1.0, rng).tolist() == [[0, 0, SIZE, SIZE]] * 50


def test_cutmix_boxes_have_the_area_of_lambda_and_are_clipped(rng: torch.Generator) -> None:
    """With a side of sqrt(u), u ~ U(0, 1), and a uniform centre, E[u - u^1.5 / 2 + u^2 / 16] is inside."""
    size = 512
    boxes = torch.cat([cutmix(1, size, rng)[1] for _ in range(4000)])
    top, left, height, width = boxes.unbind(1)
    area = (height * width) / size**2
    assert area.double().mean() == pytest.approx(0.5 - 0.2 + 1 / 48, abs=0.015)  # sigma of the mean: 0.004
    whole = (top > 0) & (left > 0) & (top + height < size) & (left + width < size)
    assert torch.equal(height[whole], width[whole]) and (height != width).any()
    centre = (top + height / 2)[whole].double().mean() / size
    assert centre == pytest.approx(0.5, abs=0.02)


# --- applying -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", MIXES)
def test_apply_equals_torchvision_image_by_image(mix: str, images: Tensor) -> None:
    cfg = replace(CFG, batch_size=5, mix=mix)
    for step in range(12):
        view = draw(cfg, IMAGES, SIZE, 0, step)
        torch.testing.assert_close(apply(view, images), slow(view, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mix", MIXES)
def test_joined_views_replay_each_view(mix: str, images: Tensor) -> None:
    views = [draw(replace(CFG, mix=mix), IMAGES, SIZE, 0, step) for step in range(7)]  # the third is shorter
    joined = apply(concat(views), images).split([len(view.ids) for view in views])
    for view, pixels in zip(views, joined, strict=True):
        torch.testing.assert_close(pixels, apply(view, images), rtol=0, atol=1e-6)


KINDS = [
    replace(STILL, crop_min=0.5),
    replace(STILL, flip=True),
    *(replace(STILL, mix=mix) for mix in MIXES if mix != "none"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_view_changes_the_images_and_nothing_else_does(kind: Relabel, images: Tensor) -> None:
    for cfg, changes in ((STILL, False), (kind, True)):
        views = [draw(cfg, IMAGES, SIZE, 0, step) for step in range(3)]
        assert any(not torch.equal(apply(view, images), images[view.ids]) for view in views) is changes


def test_without_mixing_the_partner_is_not_looked_at(images: Tensor) -> None:
    view = draw(replace(CFG, mix="none"), IMAGES, SIZE, 0, 0)
    other = replace(view, partner=view.partner.flip(0))
    assert torch.equal(apply(view, images), apply(other, images))


def test_resampling_is_differentiable_and_leaves_its_input(images: Tensor, rng: torch.Generator) -> None:
    before, box = images.clone(), random_boxes(IMAGES, SIZE, 0.3, rng)
    flip = torch.arange(IMAGES) % 2 == 0
    leaf = images.requires_grad_()
    resample(leaf, box, flip).sum().backward()
    assert leaf.grad is not None and torch.equal(leaf.detach(), before)
    used = torch.zeros_like(leaf.grad, dtype=torch.bool)
    for row, (top, left, height, width) in zip(used, box.tolist(), strict=True):
        row[:, top : top + height, left : left + width] = True
    torch.testing.assert_close(leaf.grad.sum((1, 2, 3)), torch.full((IMAGES,), 3.0 * SIZE**2))
    assert not leaf.grad[~used].any()


# --- augmentation of real images ----------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
def test_augment_is_a_padded_crop_and_a_flip(flip: bool, rng: torch.Generator) -> None:
    """Every result is one of the possible ones, and each of those occurs."""
    image, pad, n = torch.randn((3, 6, 6), generator=rng), 1, 400
    padded = vision.pad(image, [pad])
    crops = [vision.crop(padded, top, left, 6, 6) for top in range(3) for left in range(3)]
    legal = torch.stack(crops + ([vision.hflip(crop) for crop in crops] if flip else []))
    before = torch.get_rng_state()
    found = augment(image.expand(n, -1, -1, -1), Augment(pad_px=pad, flip=flip), rng)
    assert torch.equal(torch.get_rng_state(), before)
    distance = (found[:, None] - legal).abs().amax((2, 3, 4))
    assert (distance.amin(1) <= 1e-6).all()
    counts = distance.argmin(1).bincount(minlength=len(legal))
    assert counts.min() > n / len(legal) / 3


def test_augment_can_do_nothing(images: Tensor, rng: torch.Generator) -> None:
    assert torch.equal(augment(images, Augment(pad_px=0, flip=False), rng), images)
