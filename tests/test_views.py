"""Views against slow oracles: torchvision image by image, and pixels mixed by hand."""

from dataclasses import astuple, fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as vision

from edc_ray.config import Augment, Relabel
from edc_ray.core import randaugment
from edc_ray.core.data import denormalize, normalize
from edc_ray.core.random import fork_rng, generator
from edc_ray.core.views import (
    MIXES,
    View,
    augment,
    augmentation,
    concat,
    cutmix,
    random_boxes,
    resample,
    steps_per_epoch,
)
from edc_ray.core.views import apply as apply_view
from edc_ray.core.views import draw as draw_views

IMAGES, SIZE = 10, 12
CFG = Relabel(batch_size=4, crop_min=0.1)
STILL = Relabel(batch_size=4, crop_min=1.0, flip=False, mix="none")
WAYS = {mix: replace(CFG, mix=mix) for mix in MIXES} | {"randaugment": replace(CFG, randaugment_ops=2)}
PIXELS = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn((IMAGES, 3, SIZE, SIZE), generator=rng)


def same(a: View, b: View) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(View))


def apply(view: View, images: Tensor) -> Tensor:
    return apply_view(view, images, PIXELS)


def draw(cfg: Relabel, images: int, size: int, seed: int, step: int) -> View:
    (view,) = draw_views(cfg, images, size, seed, [step])
    return view


def slow_draw(cfg: Relabel, images: int, size: int, seed: int, step: int) -> View:
    """One step by itself, its three generators new."""
    steps = steps_per_epoch(cfg, images)
    epoch, batch = divmod(step, steps)
    order = torch.randperm(images, generator=generator("order", seed, epoch))
    ids = order[batch * cfg.batch_size : (batch + 1) * cfg.batch_size if batch < steps - 1 else images]
    rng, n = generator("view", seed, step), len(ids)
    box = random_boxes(n, size, cfg.crop_min, rng)
    flip = torch.rand(n, generator=rng) < (0.5 if cfg.flip else 0.0)
    mix = MIXES[cfg.mix](n, size, rng)
    if float(torch.rand((), generator=rng)) >= cfg.mix_probability:
        mix = MIXES["none"](n, size, rng)
    rng = generator("randaugment", seed, step)
    chosen = randaugment.draw(n, cfg.randaugment_ops, cfg.randaugment_magnitude, rng)
    return View(ids, *chosen, box, flip, *mix)


def slow(view: View, images: Tensor) -> Tensor:
    """Bytes, torchvision's crop and flip of one image after the other, then one pixel after the other."""
    crops = []
    for n, i in enumerate(view.ids.tolist()):
        image = images[i]
        if view.ops.shape[1]:
            levels = randaugment.apply(
                denormalize(image[None], *PIXELS), view.ops[n : n + 1], view.magnitudes[n : n + 1]
            )
            image = normalize(levels, *PIXELS)[0]
        box, resize = view.box[n].tolist(), [SIZE, SIZE]
        crop = vision.resized_crop(image, *box, resize, InterpolationMode.BILINEAR, antialias=False)
        crops.append((vision.hflip(crop) if view.flip[n] else crop).numpy())
    mixed = np.stack(crops)
    for n, (top, left, height, width) in enumerate(view.mix_box.tolist()):
        lam, other = float(view.lam[n]), crops[int(view.partner[n])]
        for row in range(SIZE):
            for column in range(SIZE):
                if height * width == 0:
                    blend = lam * crops[n][:, row, column] + (1 - lam) * other[:, row, column]
                    mixed[n, :, row, column] = blend
                elif top <= row < top + height and left <= column < left + width:
                    mixed[n, :, row, column] = other[:, row, column]
    return torch.tensor(mixed)


# --- drawing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_view_depends_on_seed_and_step_alone(way: str) -> None:
    cfg, before = WAYS[way], torch.get_rng_state()
    backwards = {step: draw(cfg, IMAGES, SIZE, 3, step) for step in reversed(range(7))}
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # whatever others draw meanwhile
    for step in range(7):
        assert same(draw(cfg, IMAGES, SIZE, 3, step), backwards[step])
        assert not same(draw(cfg, IMAGES, SIZE, 4, step), backwards[step])
    boxes = {tuple(view.box.flatten().tolist()) for view in backwards.values()}
    assert len(boxes) == 7


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "size, crop_min", [(SIZE, 0.01), (32, 0.5), pytest.param(224, 0.08, marks=pytest.mark.slow)]
)
def test_views_drawn_together_equal_those_drawn_one_by_one(way: str, size: int, crop_min: float) -> None:
    """To the bit; the third batch of an epoch is smaller."""
    cfg = replace(WAYS[way], mix_probability=0.7, crop_min=crop_min)
    for step, view in enumerate(draw_views(cfg, IMAGES, size, 3, range(5, 35)), start=5):
        want = slow_draw(cfg, IMAGES, size, 3, step)
        assert same(view, want) and [x.dtype for x in astuple(view)] == [x.dtype for x in astuple(want)]


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
        assert view.mix_box.any() or mix != "cutmix" or SIZE**2 * (1 - view.lam[0]) == 0
        assert mix == "cutmix" or not view.mix_box.any()


@pytest.mark.parametrize("mix", MIXES)
def test_lambda_is_the_share_of_the_pixels_that_is_the_images_own(mix: str) -> None:
    """What is pasted inside the image, not what was drawn: the box is clipped and rounded."""
    levels = torch.arange(IMAGES) ** 2.0
    images, shares = levels[:, None, None, None].expand(-1, 3, SIZE, SIZE), []
    for step in range(30):
        view = draw(replace(STILL, mix=mix), IMAGES, SIZE, 0, step)
        own, other = levels[view.ids], levels[view.ids[view.partner]]
        want = view.lam * own + (1 - view.lam) * other
        torch.testing.assert_close(apply(view, images).mean((1, 2, 3)), want)
        shares.append(float(view.lam[0]))
    assert set(shares) == {1.0} if mix == "none" else min(shares) < 0.4 and len(set(shares)) > 8


def test_so_many_batches_are_mixed_and_nothing_else_changes() -> None:
    always = [draw(replace(CFG, mix="mixup"), IMAGES, SIZE, 0, step) for step in range(100)]
    never = [draw(replace(CFG, mix="none"), IMAGES, SIZE, 0, step) for step in range(100)]
    for probability, low, high in ((0.0, 0, 0), (0.3, 15, 45), (1.0, 90, 100)):
        cfg, count = replace(CFG, mix="mixup", mix_probability=probability), 0
        for step in range(100):
            view = draw(cfg, IMAGES, SIZE, 0, step)
            count += bool((view.lam < 1).all())
            assert same(view, always[step]) or same(view, never[step])
        assert low <= count <= high


@pytest.mark.parametrize("flip, low, high", [(True, 0.4, 0.6), (False, 0.0, 0.0)])
def test_half_of_the_images_are_flipped_or_none(flip: bool, low: float, high: float) -> None:
    flips = torch.cat([draw(replace(CFG, flip=flip), 100, SIZE, 0, step).flip for step in range(100)])
    assert low <= flips.float().mean() <= high


@pytest.mark.parametrize("crop_min", [0.01, 0.5])
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
    boxes = torch.cat([cutmix(1, size, rng)[1] for _ in range(4000)])  # (partner, box, lambda)
    top, left, height, width = boxes.unbind(1)
    area = (height * width) / size**2
    assert area.double().mean() == pytest.approx(0.5 - 0.2 + 1 / 48, abs=0.015)  # sigma of the mean: 0.004
    whole = (top > 0) & (left > 0) & (top + height < size) & (left + width < size)
    assert torch.equal(height[whole], width[whole]) and (height != width).any()
    centre = (top + height / 2)[whole].double().mean() / size
    assert centre == pytest.approx(0.5, abs=0.02)


# --- applying -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_apply_equals_torchvision_image_by_image(way: str, images: Tensor) -> None:
    cfg = replace(WAYS[way], batch_size=5)
    for step in range(8):
        view = draw(cfg, IMAGES, SIZE, 0, step)
        torch.testing.assert_close(apply(view, images), slow(view, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_joined_views_replay_each_view(way: str, images: Tensor) -> None:
    views = [draw(WAYS[way], IMAGES, SIZE, 0, step) for step in range(7)]  # the third is shorter
    joined = apply(concat(views), images).split([len(view.ids) for view in views])
    for view, pixels in zip(views, joined, strict=True):
        torch.testing.assert_close(pixels, apply(view, images), rtol=0, atol=1e-6)


KINDS = [
    replace(STILL, crop_min=0.5),
    replace(STILL, flip=True),
    replace(STILL, randaugment_ops=1),
    *(replace(STILL, mix=mix) for mix in MIXES if mix != "none"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_view_changes_the_images_and_nothing_else_does(kind: Relabel, images: Tensor) -> None:
    for cfg, changes in ((STILL, False), (kind, True)):
        views = [draw(cfg, IMAGES, SIZE, 0, step) for step in range(3)]
        assert any(not torch.equal(apply(view, images), images[view.ids]) for view in views) is changes


def test_randaugment_sees_the_stored_bytes_and_rounds_what_is_not_one(rng: torch.Generator) -> None:
    """Bytes survive being normalised; images stored as float16 lie between the levels."""
    levels = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
    cfg = replace(STILL, randaugment_ops=2, randaugment_magnitude=14)
    view = draw(cfg, IMAGES, SIZE, 0, 0)
    want = normalize(randaugment.apply(levels[view.ids], view.ops, view.magnitudes), *PIXELS)
    between = (levels / 255 + (torch.rand(levels.shape, generator=rng) - 0.5) * 0.8 / 255).clamp(0, 1)
    column = [torch.tensor(values)[:, None, None] for values in PIXELS]
    for stored in (normalize(levels, *PIXELS), (between - column[0]) / column[1]):
        torch.testing.assert_close(apply(view, stored), want, rtol=0, atol=1e-6)
    weaker = draw(replace(cfg, randaugment_magnitude=1), IMAGES, SIZE, 0, 0)
    assert torch.equal(weaker.ops, view.ops) and not torch.equal(weaker.magnitudes, view.magnitudes)


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


def test_augment_with_crop_min_is_a_resized_crop_which_replaces_the_shift(rng: torch.Generator) -> None:
    """Each image its own box of at least that area, as torchvision crops and resizes it; half are flipped."""
    n, size, least = 64, 16, 0.3
    image = torch.randn((3, size, size), generator=rng)
    state = rng.get_state()
    found = augment(image.expand(n, -1, -1, -1), Augment(crop_min=least, pad_px=5), rng)
    rng.set_state(state)
    again = augment(image.expand(n, -1, -1, -1), Augment(crop_min=least, pad_px=0), rng)
    assert torch.equal(found, again)
    rng.set_state(state)
    boxes = random_boxes(n, size, least, rng)
    flips = 0
    for one, (top, left, height, width) in zip(found, boxes.tolist(), strict=True):
        want = vision.resized_crop(image, top, left, height, width, [size, size], antialias=False)
        straight, mirrored = (one - want).abs().max(), (one - vision.hflip(want)).abs().max()
        assert min(straight, mirrored) < 1e-4
        flips += int(mirrored < straight)
    assert n / 4 < flips < 3 * n / 4 and len(boxes.unique(dim=0)) > n / 2
    assert boxes[:, 2:].prod(1).min() >= 0.8 * least * size**2  # sides are rounded


@pytest.mark.parametrize("cfg", [Augment(pad_px=2), Augment(crop_min=0.1)])
def test_images_augmented_in_parts_are_those_augmented_together(cfg: Augment, images: Tensor) -> None:
    together = augment(images, cfg, generator("augment"))
    box, flip = augmentation(IMAGES, SIZE, cfg, generator("augment"))
    parts = zip(images.split(3), box.split(3), flip.split(3), strict=True)
    assert torch.equal(torch.cat([resample(*part) for part in parts]), together)


def test_augment_can_do_nothing(images: Tensor, rng: torch.Generator) -> None:
    assert torch.equal(augment(images, Augment(pad_px=0, flip=False), rng), images)
