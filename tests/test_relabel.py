"""Labels against one observer and one step after the other."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from edc_ray.config import Relabel
from edc_ray.core import views
from edc_ray.core.random import fork_rng
from edc_ray.core.relabel import FORWARD_IMAGES, Page, batch_statistics, mean_logits, page_steps, page_views
from edc_ray.core.relabel import label_page as label_page_of

CLASSES, SIZE = 3, 8
CFG = Relabel(batch_size=4, page_images=14)  # 3 steps a page
PIXELS = ((0.5,) * 3, (0.25,) * 3)
WAYS = {mix: replace(CFG, mix=mix) for mix in views.MIXES} | {"randaugment": replace(CFG, randaugment_ops=2)}


def label_page(cfg: Relabel, observers: Sequence[nn.Module], images: Tensor, seed: int, page: int) -> Page:
    return label_page_of(cfg, observers, images, PIXELS, seed, page)


def networks() -> list[nn.Sequential]:
    with fork_rng("networks"):
        return [
            nn.Sequential(
                nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, CLASSES)
            ).eval()
            for width in (2, 4)
        ]


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn((10, 3, SIZE, SIZE), generator=rng)


@pytest.mark.parametrize("batch, images, want", [(4, 14, 3), (4, 4, 1), (4, 1, 1), (2, 14, 7)])
def test_a_page_holds_whole_steps_and_at_least_one(batch: int, images: int, want: int) -> None:
    assert page_steps(Relabel(batch_size=batch, page_images=images)) == want


@pytest.mark.parametrize("way", WAYS)
def test_pages_cover_the_steps_without_gap(way: str, images: Tensor) -> None:
    cfg, steps = WAYS[way], 0
    for page in range(4):
        found = label_page(cfg, networks(), images, seed=5, page=page)
        assert found.first_step == steps
        assert [len(soft) for soft in found.logits] == [len(view.ids) for view in found.views]
        for view in found.views:
            want = views.draw(cfg, len(images), SIZE, 5, [steps])[0]
            assert torch.equal(views.apply(view, images, PIXELS), views.apply(want, images, PIXELS))
            assert torch.equal(view.ids, want.ids)
            steps += 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bn", ["running", "batch"])
def test_a_page_equals_a_loop_over_steps_and_observers(
    way: str, bn: Literal["running", "batch"], images: Tensor
) -> None:
    """Raw logits, weighted; of the mixed pixels, never of those before mixing (B20); "batch" normalises as in
    training, whatever else is in eval mode."""
    observers, plain = networks(), replace(WAYS[way], mix="none")
    observers[0].append(nn.Dropout(0.5).eval())
    before = [copy.deepcopy(dict(model.state_dict())) for model in observers]
    cfg = replace(WAYS[way], teacher_bn=bn, observer_weights=(1.0, 3.0))
    found = label_page(cfg, observers, images, seed=5, page=3)
    torch.testing.assert_close([dict(model.state_dict()) for model in observers], before, rtol=0, atol=0)
    other = 0.0
    for step, soft in enumerate(found.logits, start=9):
        for seen in (cfg, plain):
            pixels = views.apply(views.draw(seen, len(images), SIZE, 5, [step])[0], images, PIXELS)
            want = torch.zeros(len(pixels), CLASSES)
            for model, weight in zip(copy.deepcopy(observers), (0.25, 0.75), strict=True):
                model[1].train(bn == "batch")
                want += weight * model(pixels).detach()
            if seen is cfg:
                torch.testing.assert_close(soft.float(), want, rtol=1e-3, atol=1e-3)
        other = max(other, float((soft - want).abs().max()))
    assert soft.dtype == torch.float16 and (other > 0.1) == (cfg.mix != "none")


def test_observers_are_left_in_eval_mode_also_by_an_error() -> None:
    model = networks()[0]
    mean = model[1].running_mean
    with pytest.raises(RuntimeError), batch_statistics([model]):
        assert model[1].running_mean is None
        model(torch.zeros(2, 4, SIZE, SIZE))
    assert model[1].running_mean is mean and "1.running_var" in model.state_dict()


def test_a_page_has_the_same_bits_whoever_labels_it(images: Tensor) -> None:
    pages = [label_page(CFG, networks(), images, seed=5, page=page) for page in (2, 0, 2)]
    assert torch.equal(torch.cat(pages[0].logits), torch.cat(pages[2].logits))
    other = label_page(CFG, networks(), images, seed=6, page=2)
    assert not torch.equal(torch.cat(pages[0].logits), torch.cat(other.logits))
    drawn = page_views(CFG, len(images), SIZE, 5, 2)
    assert all(torch.equal(a.box, b.box) for a, b in zip(pages[0].views, drawn, strict=True))


def test_many_images_are_cut_into_forwards(rng: torch.Generator) -> None:
    sizes: list[int] = []
    observers, pixels = networks(), torch.randn((FORWARD_IMAGES + 5, 3, SIZE, SIZE), generator=rng)
    observers[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    cfg = Relabel(batch_size=FORWARD_IMAGES // 2 + 2, page_images=FORWARD_IMAGES + 5, crop_min=1, mix="none")
    label_page(cfg, observers, pixels, 0, 0)
    assert sizes == [FORWARD_IMAGES, 5]
    found = mean_logits(observers, pixels.split(FORWARD_IMAGES))
    want = (observers[0](pixels) + observers[1](pixels)) / 2
    torch.testing.assert_close(found, want.detach(), rtol=1e-4, atol=1e-5)


def test_no_graph_is_recorded_and_observers_are_left_as_they_are(images: Tensor) -> None:
    """The official code recorded one for every label (B8)."""
    observers = networks()
    before = [{name: value.clone() for name, value in m.state_dict().items()} for m in observers]
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    leaf = images.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = mean_logits(observers, [leaf])
        page = label_page(CFG, observers, images, 0, 0)
    assert not kept
    assert not logits.requires_grad and not any(soft.requires_grad for soft in page.logits)
    torch.testing.assert_close([dict(m.state_dict()) for m in observers], before, rtol=0, atol=0)
    assert torch.equal(images, leaf)


@pytest.mark.parametrize("bias", [float("nan"), 1e6])  # the second is finite, but not in half precision
def test_a_label_that_is_not_finite_is_an_error_with_its_page(bias: float, images: Tensor) -> None:
    observers = networks()
    dict(observers[1].named_parameters())["3.bias"].data.fill_(bias)
    with pytest.raises(FloatingPointError, match="page 2 "):
        label_page(CFG, observers, images, seed=0, page=2)
