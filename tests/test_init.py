"""The contract of every row of INITS, and plain versions of those that observers choose."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.config import Init
from edc_ray.core import init
from edc_ray.core.init import (
    INITS,
    SCORED,
    Pool,
    class_images,
    cross_entropies,
    needed,
    resized,
    square_boxes,
    tile,
)

CLASSES, IPC = 4, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RANDOM = sorted(set(INITS) - {"difficulty", "given"})


def data(size: int = 4) -> tuple[Tensor, Tensor]:
    """Images that are all different; those of class c lie in c * 50 .. c * 50 + 49."""
    rng = torch.Generator().manual_seed(2)
    labels = torch.randint(CLASSES, (60,), generator=rng)
    images = torch.randint(50, (60, 3, size, size), generator=rng) + 50 * labels[:, None, None, None]
    return images.to(torch.uint8), labels


def brightness(images: Tensor) -> Tensor:
    """A score: the darkest is the easiest."""
    return images.float().mean((1, 2, 3))


class Noted:
    """A score, and the images that it was asked for."""

    def __init__(self, score: Callable[[Tensor], Tensor] = brightness) -> None:
        self.score, self.seen = score, list[Tensor]()

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.score(images)


def pool(images: Tensor, score: Callable[[Tensor], Tensor] = brightness) -> Pool:
    return Pool(len(images), lambda ids: images[ids], score, ([0.5] * 3, [0.25] * 3))


def draw(kind: str, label: int, seed: int = 0, **changes: Any) -> Tensor:
    images, labels = data()
    cfg = Init(**{"kind": kind, "ipc": IPC, "mipc": 9, "factor": 1, **changes})
    return class_images(cfg, pool(images[labels == label]), seed, label)


# --- all kinds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INITS)
def test_images_are_bytes_of_their_class_and_drawn_the_same_again(kind: str) -> None:
    state = torch.get_rng_state()
    for label in range(CLASSES):
        images = draw(kind, label)
        assert images.shape == (IPC, 3, 4, 4) and images.dtype == torch.uint8
        if kind != "noise":  # which is of no class
            assert (brightness(images) - 50 * label - 24.5).abs().max() < 15
        assert torch.equal(images, draw(kind, label))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", RANDOM)
def test_both_seeds_and_the_class_matter(kind: str) -> None:
    images, _ = data()
    one, two = (Init(kind=kind, ipc=IPC, mipc=40, seed=seed) for seed in (0, 1))
    drawn = [
        class_images(cfg, pool(images), seed, label)
        for cfg, seed, label in ((one, 0, 0), (two, 0, 0), (one, 1, 0), (one, 0, 1))
    ]
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


@pytest.mark.parametrize("kind", INITS)
def test_a_pool_that_is_too_small_is_refused(kind: str) -> None:
    images, _ = data()
    cfg = Init(kind=kind, ipc=IPC, factor=2)
    least = {"rded": 12, "noise": 1}.get(kind, 3)
    assert needed(cfg) == least
    assert class_images(cfg, pool(images[:least]), 0, 0).shape[0] == IPC
    with pytest.raises(ValueError, match=f"class 5 has {least - 1} images to start from and needs {least}"):
        class_images(cfg, pool(images[: least - 1]), 0, 5)


# --- drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["real", "folder"])
def test_images_are_drawn_without_replacement_or_with(kind: str) -> None:
    images, _ = data()
    drawn = class_images(Init(kind=kind, ipc=60), pool(images), 0, 0)
    assert not torch.equal(drawn, images)  # another order
    assert sorted(drawn.flatten(1).tolist()) == sorted(images.flatten(1).tolist())
    again = class_images(Init(kind=kind, ipc=60, replacement=True), pool(images), 0, 0)
    different = {tuple(image) for image in again.flatten(1).tolist()}
    assert different < {tuple(image) for image in images.flatten(1).tolist()}
    assert 28 <= len(different) <= 48  # 60 draws of 60 see (1 - 1 / e) of them
    assert class_images(Init(kind=kind, ipc=5, replacement=True), pool(images[:1]), 0, 0).shape[0] == 5


def noise(pixels: tuple[list[float], list[float]]) -> Tensor:
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    return class_images(Init(kind="noise", ipc=500), replace(pool(black), pixels=pixels), 0, 0).float()


def test_noise_has_the_mean_and_spread_of_the_datasets_channels_whatever_the_class() -> None:
    mean, spread = torch.tensor([60.0, 120, 180]), torch.tensor([5.0, 10, 15])
    drawn = noise(((mean / 255).tolist(), (spread / 255).tolist()))
    torch.testing.assert_close(drawn.mean((0, 2, 3)), mean, rtol=0, atol=0.5)
    torch.testing.assert_close(drawn.std((0, 2, 3)), spread, rtol=0, atol=0.5)


def test_noise_is_clipped_to_bytes_not_wrapped() -> None:
    drawn = noise(([0.5] * 3, [0.5] * 3))
    # N(127.5, 127.5): an end is reached by what lies beyond one sigma, 16 %.
    for end in (0, 255):
        assert (drawn == end).float().mean() == pytest.approx(0.16, abs=0.02)


# --- chosen by observers ------------------------------------------------------------------------------------


def network(seed: int, size: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, CLASSES)).eval()


def plain_rded(cfg: Init, images: Tensor, score: Callable[[Tensor], Tensor], crops: list[Tensor]) -> Tensor:
    """crops[i]: those of image i. Image by image, crop by crop, cell by cell."""
    best = [min(list(each), key=lambda crop: float(score(crop[None]))) for each in crops]
    best.sort(key=lambda crop: float(score(crop[None])))
    result = torch.zeros(cfg.ipc, *images.shape[1:], dtype=torch.uint8)
    side = images.shape[-1] // cfg.factor
    for k in range(cfg.factor**2):
        for j in range(cfg.ipc):
            top, left = (k // cfg.factor) * side, (k % cfg.factor) * side
            result[j, :, top : top + side, left : left + side] = best[k * cfg.ipc + j]
    return result


@pytest.mark.parametrize(("factor", "mipc", "crops"), [(1, 20, 4), (2, 20, 3), (2, 300, 1)])
def test_rded_is_the_plain_recipe(
    factor: int, mipc: int, crops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """method.md 3.1: the easiest crop of each of `mipc` images, of these the easiest, tiled."""
    monkeypatch.setattr(init, "TOGETHER", 7)  # chunks change nothing
    images, _ = data(8)
    models = [network(0), network(1)]
    noted = Noted(lambda crop: cross_entropies(models, 2, 8, (MEAN, STD), 5, crop))
    cfg = Init(kind="rded", ipc=2, mipc=mipc, crops=crops, factor=factor)
    got = class_images(cfg, pool(images, noted), 0, 0)
    every = list(torch.cat(noted.seen).split(crops))
    assert len(every) == min(mipc, len(images)) and every[0].shape[-1] == 8 // factor
    assert torch.equal(got, plain_rded(cfg, images, noted.score, every))


def test_rded_can_draw_from_a_pool_of_its_own_images() -> None:
    """The official start: a folder of RDED images, 50 a class, from which each slot is drawn by itself."""
    images, _ = data(8)
    score = Noted(lambda crop: cross_entropies([network(0)], 2, 8, (MEAN, STD), 64, crop))
    made = class_images(Init(kind="rded", ipc=9, factor=2), pool(images, score), 0, 0)
    cfg = Init(kind="rded", ipc=30, pool=9, factor=2)
    drawn = class_images(cfg, pool(images, score), 0, 0)
    among = {tuple(image) for image in made.flatten(1).tolist()}
    assert drawn.shape[0] == 30 and {tuple(image) for image in drawn.flatten(1).tolist()} == among
    assert needed(cfg) == 36


def test_rded_draws_different_images_and_every_crop_by_itself() -> None:
    images, _ = data(8)
    noted, whole = Noted(), Noted()
    class_images(Init(kind="rded", mipc=30, crops=4), pool(images, noted), 0, 0)
    crops = torch.cat(noted.seen).unflatten(0, (30, 4))
    assert all(not torch.equal(crops[:, 0], crops[:, k]) for k in (1, 2, 3))
    class_images(Init(kind="rded", mipc=30, crops=1, crop_min=1.0), pool(images, whole), 0, 0)
    uncut = {tuple(image) for image in torch.cat(whole.seen).flatten(1).tolist()}
    assert len(uncut) == 30 and uncut < {tuple(image) for image in images.flatten(1).tolist()}


def test_a_crop_is_a_square_of_an_area_of_at_least_crop_min() -> None:
    boxes = square_boxes(2000, 0.25, torch.Generator().manual_seed(0))
    area = boxes[:, 0] ** 2
    assert 0.25 <= area.min() < 0.26 and 0.99 < area.max() <= 1
    assert area.mean() == pytest.approx(0.625, abs=0.01)  # the area is uniform, not the side
    ramp = torch.arange(32).repeat(3, 32, 1).to(torch.uint8)
    across, down = (
        resized(image[None].expand(2000, -1, -1, -1), boxes, 1).float() for image in (ramp, ramp.mT)
    )
    side = (boxes[:, 0] * 32).round()
    first, last = across[:, 0, 0, 0], across[:, 0, 0, -1]
    assert (first >= 0).all() and (last <= 31).all()
    torch.testing.assert_close(last - first, side - 1, rtol=0, atol=1.01)
    assert first.max() == 16 and last.max() == 31  # every place that fits, both ends included
    torch.testing.assert_close(down[:, 0, -1, 0] - down[:, 0, 0, 0], side - 1, rtol=0, atol=1.01)
    assert not torch.equal(across[:, 0, 0, 0], down[:, 0, 0, 0])


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_crops_are_resized_as_torch_does_with_antialiasing(factor: int, rng: torch.Generator) -> None:
    images = torch.randint(256, (12, 3, 16, 16), generator=rng).to(torch.uint8)
    boxes = torch.rand((12, 3), generator=rng)
    boxes[0], boxes[1] = torch.tensor([1.0, 0.3, 0.9]), torch.tensor([0.01, 0.999, 0.999])
    got = resized(images, boxes, factor)
    for image, (share, *spot), made in zip(images, boxes.tolist(), got, strict=True):
        side = max(1, round(share * 16))
        top, left = (int(part * (16 - side + 1)) for part in spot)
        crop = image[None, :, top : top + side, left : left + side].float()
        want = functional.interpolate(crop, size=16 // factor, mode="bilinear", antialias=True)[0]
        assert (made.float() - want).abs().max() <= 0.501  # the rest is rounding to bytes


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_tile_is_one_crop(factor: int, rng: torch.Generator) -> None:
    crops = torch.randint(256, (5 * factor**2, 3, 4, 4), generator=rng).to(torch.uint8)
    images = tile(crops, factor)
    for k in range(factor**2):
        row, column = divmod(k, factor)
        cell = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.equal(cell, crops[5 * k : 5 * k + 5])


def test_the_score_is_the_cross_entropy_of_the_mean_logits_in_the_middle_of_the_mean_colour() -> None:
    images, models = data(5)[0][:6], [network(seed) for seed in range(3)]
    got = cross_entropies(models, 1, 8, (MEAN, STD), 4, images)
    for image, value in zip(images, got, strict=True):
        normal = torch.zeros(3, 8, 8)
        for channel in range(3):
            normal[channel, 1:6, 1:6] = (image[channel] / 255 - MEAN[channel]) / STD[channel]
        logits = sum(model(normal[None])[0] for model in models) / 3
        assert float(value) == pytest.approx(float(-logits.detach().log_softmax(0)[1]), abs=1e-5)
    assert not got.requires_grad
    broken = nn.Sequential(models[0], nn.Threshold(1e9, torch.nan))
    with pytest.raises(FloatingPointError, match=r"init\.scorers"):
        cross_entropies([broken], 1, 8, (MEAN, STD), 4, images)


@pytest.mark.parametrize(
    ("quantile", "ranks"),
    [
        (0.0, [0, 1, 2]), (1.0, [7, 8, 9]), (0.5, [4, 5, 6]), (0.44, [3, 4, 5]), (0.1, [0, 1, 2]),
        (0.28, [2, 3, 4]), (0.95, [7, 8, 9]),
    ],
)  # fmt: skip
def test_difficulty_takes_the_neighbours_of_a_quantile(quantile: float, ranks: list[int]) -> None:
    """Of ten images, rank 9 q in the middle; half a rank goes up."""
    values = torch.tensor([5, 3, 9, 1, 7, 0, 2, 8, 4, 6])
    images = values.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    got = class_images(Init(kind="difficulty", ipc=3, quantile=quantile), pool(images), 0, 0)
    assert got[:, 0, 0, 0].tolist() == ranks


def test_equally_difficult_images_keep_their_order() -> None:
    images = torch.arange(6).to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    flat = pool(images, lambda part: torch.zeros(len(part)))
    got = class_images(Init(kind="difficulty", ipc=4, quantile=1.0), flat, 0, 0)
    assert got[:, 0, 0, 0].tolist() == [2, 3, 4, 5]
    whole = Init(kind="rded", ipc=6, crop_min=1.0)
    again = [class_images(whole, flat, 0, 0)[:, 0, 0, 0].tolist() for _ in range(2)]
    assert again[0] == again[1] and sorted(again[0]) == list(range(6))


def test_the_scored_kinds_are_those_that_ask_for_scores() -> None:
    images, _ = data()
    noted = {kind: Noted() for kind in INITS}
    for kind in INITS:
        class_images(Init(kind=kind), pool(images, noted[kind]), 0, 0)
    assert {kind for kind, score in noted.items() if score.seen} == set(SCORED)
