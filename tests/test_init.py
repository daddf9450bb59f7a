"""The contract of every row of INITS."""

import pytest
import torch
from torch import Tensor

from edc_ray.core.init import INITS, initial_images

CLASSES, IPC = 4, 3


def data() -> tuple[Tensor, Tensor]:
    """Images that are all different; those of class c lie in c * 50 .. c * 50 + 49."""
    rng = torch.Generator().manual_seed(2)
    labels = torch.randint(CLASSES, (60,), generator=rng)
    return (torch.randint(50, (60, 3, 4, 4), generator=rng) + 50 * labels[:, None, None, None]).to(
        torch.uint8
    ), labels


def draw(kind: str, classes: range = range(CLASSES), seeds: tuple[int, int] = (0, 0)) -> Tensor:
    return initial_images(kind, *data(), classes, IPC, seeds)


@pytest.mark.parametrize("kind", INITS)
def test_images_are_bytes_in_class_major_order(kind: str) -> None:
    images = draw(kind)
    assert images.shape == (CLASSES * IPC, 3, 4, 4) and images.dtype == torch.uint8
    means = images.float().mean((1, 2, 3)).unflatten(0, (CLASSES, IPC))
    assert ((means - 50 * torch.arange(CLASSES)[:, None] - 24.5).abs() < 8).all()


@pytest.mark.parametrize("kind", INITS)
def test_each_class_has_randomness_of_its_own(kind: str) -> None:
    """Any cut of the classes gives the same images, and a class's does not change with the others' data."""
    whole, state = draw(kind), torch.get_rng_state()
    parts = [draw(kind, range(0, 1)), draw(kind, range(1, 4))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(torch.get_rng_state(), state)
    images, labels = data()
    images[labels != 2] = 0
    assert torch.equal(
        initial_images(kind, images, labels, range(2, 3), IPC, (0, 0)), whole[2 * IPC : 3 * IPC]
    )


@pytest.mark.parametrize("kind", INITS)
def test_both_seeds_matter(kind: str) -> None:
    drawn = [draw(kind, seeds=seeds) for seeds in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert torch.equal(drawn[0], drawn[3])
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:3])


@pytest.mark.parametrize("kind", INITS)
def test_equal_classes_do_not_draw_alike(kind: str) -> None:
    images, _ = data()
    both, labels = torch.cat([images, images]), torch.arange(2).repeat_interleave(len(images))
    first, second = initial_images(kind, both, labels, range(2), 10, (0, 0)).split(10)
    assert not torch.equal(first, second)


def test_real_images_are_drawn_without_replacement_and_all_can_be() -> None:
    images, labels = data()
    for c in range(CLASSES):
        pool = images[labels == c]
        drawn = initial_images("real", images, labels, range(c, c + 1), len(pool), (0, 0))
        assert not torch.equal(drawn, pool)  # another order
        assert sorted(drawn.flatten(1).tolist()) == sorted(pool.flatten(1).tolist())


def test_more_images_than_a_class_has_are_refused() -> None:
    images, labels = data()
    with pytest.raises(ValueError, match=r"\d+ images, fewer than init.ipc = 50"):
        initial_images("real", images, labels, range(CLASSES), 50, (0, 0))


def test_noise_has_the_mean_and_spread_of_the_classs_channels(rng: torch.Generator) -> None:
    mean, spread = torch.tensor([60.0, 120, 180])[:, None, None], torch.tensor([5.0, 10, 15])[:, None, None]
    images = (torch.randn((500, 3, 8, 8), generator=rng) * spread + mean).round().to(torch.uint8)
    labels = torch.zeros(500, dtype=torch.long)
    drawn = initial_images("noise", images, labels, range(1), 500, (0, 0)).float()
    torch.testing.assert_close(drawn.mean((0, 2, 3)), mean.flatten(), rtol=0, atol=0.5)
    torch.testing.assert_close(drawn.std((0, 2, 3)), spread.flatten(), rtol=0, atol=0.5)


def test_noise_is_clipped_to_bytes_not_wrapped() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(200)[:, None, None, None].expand(-1, 3, 4, 4)
    drawn = initial_images("noise", images, torch.zeros(400, dtype=torch.long), range(1), 400, (0, 0))
    # N(127.5, 127.5): an end is reached by what lies beyond one sigma, 16 %.
    for end in (0, 255):
        assert (drawn == end).float().mean() == pytest.approx(0.16, abs=0.02)
