"""Diagnostics: each estimate against a slow obvious one, and the command end to end."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edc_ray.core.diagnostics import features, gradients, hessian, landscape
from edc_ray.core.random import generator


class Net(nn.Module):
    """Smooth and tiny: (n, 1, 2, 2) -> 3 logits, 43 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(images.flatten(1))))


def made() -> tuple[Net, Tensor, Tensor]:
    """A network of fixed weights, 12 images, labels."""
    rng = generator("test diagnostics")
    model = Net().eval()
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=rng)
    return model, torch.randn(12, 1, 2, 2, generator=rng), torch.arange(12) % 3


# --- hessian ------------------------------------------------------------------------------------------------


def weight_loss(model: Net, images: Tensor, labels: Tensor) -> hessian.Loss:
    names = [name for name, _ in model.named_parameters()]

    def loss(tensors: list[Tensor]) -> Tensor:
        logits = functional_call(model, dict(zip(names, tensors, strict=True)), (images,))
        return functional.cross_entropy(logits, labels)

    return loss


def exact(loss: hessian.Loss, at: list[Tensor]) -> Tensor:
    """All of the Hessian, by torch, in float64."""
    shapes, flat = [x.shape for x in at], torch.cat([x.flatten() for x in at])

    def of(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        return loss([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])

    return torch.autograd.functional.hessian(of, flat)


def test_with_every_unit_vector_the_norm_is_that_of_the_exact_hessian() -> None:
    model, images, labels = made()
    loss, at = weight_loss(model, images, labels), [w.detach() for w in model.parameters()]
    want = exact(loss, at)
    assert want.shape == (43, 43)
    units = torch.eye(43) * math.sqrt(43)  # E[v v^T] = I over them
    split = [
        [p.view(w.shape) for p, w in zip(u.split([w.numel() for w in at]), at, strict=True)] for u in units
    ]
    squares = hessian.squared_products(loss, at, split)
    torch.testing.assert_close(squares, 43 * want.square().sum(1), rtol=1e-4, atol=1e-5)
    assert hessian.frobenius(squares)[0] == pytest.approx(float(want.norm()), rel=1e-4)


def test_random_vectors_give_it_within_their_standard_error() -> None:
    model, images, labels = made()
    loss, at = weight_loss(model, images, labels), [w.detach() for w in model.parameters()]
    want = float(exact(loss, at).norm())
    off = []
    for seed in range(20):
        vectors = hessian.probes(at, 64, generator("test probes", seed))
        norm, error = hessian.frobenius(hessian.squared_products(loss, at, vectors))
        off.append((norm - want) / error)
    assert 0.6 < torch.tensor(off).std() < 1.6 and abs(sum(off) / 20) < 0.8, off


def test_of_a_quadratic_by_hand() -> None:
    """H = diag(1, 3): random signs give ||H v||^2 = 10 whatever they are."""
    squares = hessian.squared_products(
        lambda x: (x[0] * torch.tensor([1.0, 3.0]) * x[0]).sum() / 2,
        [torch.tensor([5.0, -7.0])],
        hessian.probes([torch.zeros(2)], 3, generator("test")),
    )
    assert squares.tolist() == [10, 10, 10] and hessian.frobenius(squares) == (math.sqrt(10), 0)


# --- gradients ----------------------------------------------------------------------------------------------


def test_a_gradient_in_parts_is_that_of_the_mean_loss() -> None:
    model, images, labels = made()
    rows = torch.tensor([7, 0, 3, 11, 2])
    functional.cross_entropy(model(images[rows]), labels[rows]).backward()
    want = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    got = gradients.gradient(model, model.state_dict(), images, labels, rows, together=2)
    torch.testing.assert_close(got, want)


def test_cosines_of_hand_made_gradients() -> None:
    """Four images with gradients along the axes: a batch of b of them has the cosine sqrt(b / 4) to all."""
    axes = torch.eye(4)

    def of(rows: Tensor) -> Tensor:
        return axes[rows].mean(0)

    goals = [of(torch.arange(4)), torch.tensor([-1.0, -1, -1, -1])]
    for size in (1, 2, 4):
        found = gradients.batch_cosines(of, 4, size, 5, goals, generator("test"))
        want = torch.tensor([[math.sqrt(size / 4), -math.sqrt(size / 4)]]).expand(5, 2)
        torch.testing.assert_close(found, want)
    firsts = gradients.batch_cosines(of, 4, 1, 40, list(axes), generator("test")).sum(0)
    assert firsts.sum() == 40 and (firsts > 0).all()  # every image is drawn


# --- features and landscape ---------------------------------------------------------------------------------


def test_features_are_what_the_last_linear_layer_sees() -> None:
    model, images, _ = made()
    want = torch.tanh(model.first(images.flatten(1)))
    torch.testing.assert_close(features.features(model, images, together=5), want.detach())


def test_distances_to_the_class_by_hand() -> None:
    real = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    found = features.class_distances(
        torch.tensor([[1.0], [3.0], [12.0], [8.0]]),
        torch.tensor([0, 0, 1, 1]),
        real,
        torch.tensor([0, 0, 1, 1]),
    )
    assert found.tolist() == [0, 4, 0, 4]


def test_a_direction_is_as_long_as_the_weights_filter_by_filter() -> None:
    weights = {"conv": torch.randn(3, 2, 2, 2, generator=generator("test")), "bias": torch.ones(3)}
    found = landscape.direction(weights, generator("test", 1))
    torch.testing.assert_close(found["conv"].flatten(1).norm(dim=1), weights["conv"].flatten(1).norm(dim=1))
    assert not found["bias"].any()


def test_a_slice_of_a_bowl_is_a_parabola() -> None:
    weights, way = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}
    other = {"w": torch.tensor([0.0, 2.0])}
    places = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [2.0, 1.0]])
    found = landscape.values(lambda at: at["w"].square().sum(), weights, [way, other], places)
    assert found.tolist() == [1, 0, 8]
