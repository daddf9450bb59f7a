"""The contract of every row of MODELS, and the published sizes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from edc_ray.config import ConfigError
from edc_ray.core.models import MODELS, build, capture, layers
from edc_ray.core.random import fork_rng, generator

CLASSES, SIZE = 3, 16

# name: parameters with 10 and with 100 classes at 32 px, conv and bn layers (method.md 1.2)
SIZES = {
    "convnet_w128": (0.32e6, 0.50e6, 3, 0),
    "convnet_w32": (0.025e6, 0.071e6, 3, 0),
    "convnet_d1": (0.33e6, 3.28e6, 1, 0),
    "convnet_d2": (0.23e6, 0.97e6, 2, 0),
    "resnet18": (11.17e6, 11.22e6, 20, 20),
    "resnet50": (23.52e6, 23.71e6, 53, 53),
    "resnet101": (42.51e6, 42.70e6, 104, 104),
    "mobilenet_v2_half": (0.70e6, 0.81e6, 53, 53),
    "wrn_16_2": (0.69e6, 0.70e6, 16, 13),
    "shufflenet_v2_x0_5": (0.35e6, 0.44e6, 56, 56),
}


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn((2, 3, SIZE, SIZE), generator=rng)


@contextmanager
def copies(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What `capture` must give, the slow way: a copy of each input before its layer runs."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0].clone()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    yield found
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", MODELS)
def test_each_declared_layer_is_captured_and_nothing_overwrites_it(name: str, images: Tensor) -> None:
    model = build(name, CLASSES, SIZE, seed=0)
    with torch.no_grad(), copies(model) as want, capture(model) as inputs:
        assert model(images).shape == (2, CLASSES)
    declared = layers(model)
    assert [layer.name for layer in declared] == list(want)
    assert {layer.name: layer.channels for layer in declared} == {k: z.shape[1] for k, z in inputs.items()}
    torch.testing.assert_close(inputs, want, rtol=0, atol=0)
    modules = dict(model.named_modules())
    for layer in declared:
        assert isinstance(modules[layer.name], nn.Conv2d if layer.kind == "conv" else nn.BatchNorm2d)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_layer_is_a_convolution_that_sees_the_image(name: str, images: Tensor) -> None:
    model = build(name, CLASSES, SIZE, seed=0).eval()
    with torch.no_grad(), capture(model) as inputs:
        model(images)
    first = layers(model)[0]
    assert first.kind == "conv" and first.name == next(iter(inputs))
    assert torch.equal(inputs[first.name], images)


@pytest.mark.parametrize("name", MODELS)
def test_image_gradients_are_finite(name: str, images: Tensor) -> None:
    model = build(name, CLASSES, SIZE, seed=0).eval().requires_grad_(False)
    images.requires_grad_()
    with capture(model) as inputs:
        logits = model(images)
    (logits.logsumexp(1).sum() + sum(z.mean() for z in inputs.values())).backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_and_nothing_else_decides_the_weights(name: str) -> None:
    before = torch.get_rng_state()
    one = build(name, CLASSES, SIZE, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # whatever others draw meanwhile
    again, other = build(name, CLASSES, SIZE, seed=1), build(name, CLASSES, SIZE, seed=2)
    torch.testing.assert_close(again.state_dict(), one, rtol=0, atol=0)
    drawn = [key for key, weight in one.items() if weight.ndim > 1]
    assert drawn and all(not torch.equal(other.state_dict()[key], one[key]) for key in drawn)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [8, 33])
def test_odd_sizes_work(name: str, size: int) -> None:
    with torch.device("meta"):  # shapes only
        assert MODELS[name](CLASSES, size)(torch.empty(2, 3, size, size)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name: str) -> None:
    ten, hundred, convs, norms = SIZES[name]
    for classes, want in ((10, ten), (100, hundred)):
        with torch.device("meta"):
            model = MODELS[name](classes, 32)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(want, rel=0.02)
        kinds = [layer.kind for layer in layers(model)]
        assert (kinds.count("conv"), kinds.count("bn")) == (convs, norms)


def test_capture_leaves_no_hooks() -> None:
    model = build("resnet10_w16", CLASSES, SIZE, seed=0)
    with pytest.raises(RuntimeError), capture(model) as inputs:
        model(torch.zeros(2, 1, SIZE, SIZE))
    inputs.clear()
    model(torch.zeros(2, 3, SIZE, SIZE))
    assert not inputs


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean resnet18"):
        build("resnet-18", CLASSES, SIZE, seed=0)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be >= 8 px") as caught:
        build("convnet_w32", CLASSES, 7, seed=0)
    assert caught.value.path == "dataset.size_px"


def test_a_generator_is_known_by_its_name() -> None:
    draws = [
        torch.rand(4, generator=generator(*parts)).tolist()
        for parts in (("a", 1), ("a", 1), ("a", 2), ("b", 1))
    ]
    assert draws[0] == draws[1] and draws[0] != draws[2] != draws[3] != draws[0]
    # Golden: another hash would silently give every artifact other numbers under the same name.
    assert generator("recover", 0, 1).initial_seed() == 7899288101472691332


def test_fork_rng_draws_like_the_generator_and_restores_also_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), fork_rng("x", 1):
        assert torch.equal(torch.rand(3), torch.rand(3, generator=generator("x", 1)))
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
