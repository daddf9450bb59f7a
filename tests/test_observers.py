"""Which observer looks when, at which crop, with what memory: recovery against a loop written out by hand."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.config import Experiment, Recover, override
from edc_ray.core import matching, models, views
from edc_ray.core.random import generator
from edc_ray.core.recover import (
    Chain,
    Group,
    Problem,
    State,
    begin,
    crop_min,
    cut,
    local_picks,
    loop,
    problem,
    random_crops,
    synthesize,
)
from edc_ray.core.recover.loss import kept_layers
from tests.test_recover import CLASSES, IPC, MEAN, PATCH, STD, copied, networks, real_moments, start

BASE = {
    "statistics.patch": PATCH, "init.ipc": IPC, "recover.iterations": 7, "recover.classes_per_group": CLASSES,
    "recover.lr": 0.1, "recover.crop_min": 1.0, "recover.flip": False, "recover.matching.weight": 0.5,
    "recover.format": "float16",
}  # fmt: skip


def experiment(**changes: Any) -> Experiment:
    """One group without crops; __ stands for the dot of a path."""
    names = {path.replace("__", "."): value for path, value in changes.items()}
    observers = {"squeeze.observers": ["vgg5_w16", "convnet_w32"]}  # only their number counts here
    return override(Experiment(), BASE | observers | names)


def make(exp: Experiment, groups: Sequence[Group] = (), observers: Sequence[nn.Module] = ()) -> Problem:
    observers = observers or networks()
    groups = groups or cut(exp.recover, CLASSES, IPC)
    return problem(exp, groups, observers, real_moments(observers), (MEAN, STD), torch.device("cpu"))


class Memory:
    """The running statistics as method.md 2.6 has them, one list an observer."""

    def __init__(self, exp: Experiment, observers: int) -> None:
        self.cfg = exp.recover.matching
        self.average: list[Tensor | None] = [None] * observers
        self.visits, self.turns = [0] * observers, 0

    def visit(self, k: int, now: Tensor) -> Tensor:
        m, before = self.cfg.momentum, self.average[k]
        new = (1 - m) * now.detach() + (0 if before is None else m * before)
        self.average[k], self.visits[k] = new, self.visits[k] + 1
        return new / (1 - m ** self.visits[k]) if self.cfg.bias_correction else new


def slopes(p: Problem, states: Iterator[State], exp: Experiment, memory: Memory) -> Iterator[tuple[Any, Any]]:
    """(gradient by hand, gradient found) of every iteration, each at the images that are there."""
    cfg, count = exp.recover, len(p.observers)
    state = next(states, None)
    weights = cfg.observer_weights or [1.0] * count
    images = begin(p, start()[: p.labels.numel()]).images.detach()
    while state is not None:
        leaf, total = images.clone().requires_grad_(), torch.zeros(())
        visited = range(count) if cfg.visit == "all" else [memory.turns % count]
        for k in visited:
            logits, now = look(p, k, leaf)
            value = memory.visit(k, now) + now - now.detach()
            far = sum(matching.loss(value, p.targets[k], cfg.matching, dropped(p, k, state.iteration - 1)))
            loss = functional.cross_entropy(logits, p.labels[0]) + cfg.matching.weight * far
            total = total + weights[k] * count / sum(weights) * loss / len(visited)
        if exp.quirks.verifier_updates and (state.iteration - 1) % 3 == 0:
            memory.visit(0, look(p, 0, images)[1])
        memory.turns += 1
        yield torch.autograd.grad(total, leaf)[0], state.images.grad
        images = state.images.detach().clone()
        state = next(states, None)


def look(p: Problem, k: int, images: Tensor) -> tuple[Tensor, Tensor]:
    return matching.measure(p.observers[k], images, models.layers(p.observers[k]), 1, PATCH)


def dropped(p: Problem, k: int, iteration: int) -> Tensor | None:
    layers = models.layers(p.observers[k])
    names = [generator("drop", *p.seeds, group.index, iteration, k) for group in p.groups]
    draws = torch.stack([torch.rand(len(layers), generator=name) for name in names])
    keep = draws >= p.cfg.matching.drop_rate
    for i, layer in enumerate(layers):
        if layer.kind == "bn":
            keep[:, i] = True
    return keep


VISITS: list[Any] = [
    {},
    {"recover__matching__bias_correction": False},
    pytest.param({"recover__matching__momentum": 0.0}, marks=pytest.mark.slow),
    pytest.param({"recover__visit": "all"}, marks=pytest.mark.slow),
    pytest.param({"recover__observer_weights": [0.0, 3.0]}, marks=pytest.mark.slow),
    {"recover__visit": "all", "recover__observer_weights": [1.0, 3.0]},
    {"recover__matching__drop_rate": 0.5},
    pytest.param({"quirks__verifier_updates": True}, marks=pytest.mark.slow),
    {"quirks__verifier_updates": True, "recover__matching__bias_correction": False, "recover__visit": "all"},
]


@pytest.mark.parametrize("changes", VISITS, ids=lambda c: "-".join(f"{k.split('__')[-1]}={c[k]}" for k in c))
def test_every_gradient_equals_the_one_by_hand(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven iterations over two observers, each with running statistics of its own.

    B5: without bias correction they start from 0. B7: every third iteration here, the first observer's also
    see the images as they are.
    """
    monkeypatch.setattr(loop, "verifier_every", lambda size: 3)
    exp = experiment(**changes)
    p = make(exp)
    states = synthesize(p, begin(p, start()))
    pairs = list(slopes(p, states, exp, Memory(exp, 2)))
    assert len(pairs) == 7
    for want, found in pairs:
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


def test_the_verifier_looks_at_every_hundredth_iteration() -> None:
    """B7; every 20th of 224-px images. It leaves no trace where it is off."""
    assert [loop.verifier_every(size) for size in (32, 64, 224)] == [100, 100, 20]
    found = []
    for quirk in (False, True):
        p = make(experiment(quirks__verifier_updates=quirk, recover__iterations=2))
        state = begin(p, start())
        list(synthesize(p, state))
        found.append(state.visits)
    assert found == [[1, 1], [2, 1]]


def test_official_statistics_start_at_nothing() -> None:
    """B5: after n visits the official value is (1 - 0.8^n) of the statistics; ours is their mean."""
    values = []
    for correct in (False, True):
        cfg = experiment(recover__matching__bias_correction=correct).recover.matching
        average, of = torch.zeros(1, 2), torch.tensor([[2.0, -4.0]])
        for n in range(1, 6):
            average, value = matching.straight_through(average, of, cfg, n)
        values.append(value)
    torch.testing.assert_close(values[0], values[1] * (1 - 0.8**5))
    torch.testing.assert_close(values[1], of)


# --- groups that take over (B6) -----------------------------------------------------------------------------


def chained(exp: Experiment, saved: dict[str, Tensor] | None = None) -> Chain:
    groups = cut(exp.recover, CLASSES, IPC)
    turns = [groups] if exp.recover.matching.reset else [[group] for group in groups]
    return Chain([partial(make, exp, turn) for turn in turns], start(), saved)


CARRIED = {"recover__matching__reset": False, "recover__classes_per_group": 2}


@pytest.mark.slow
def test_official_groups_take_over_the_running_statistics_and_the_turn() -> None:
    """B6: the second of two groups goes on where the first ended: memory, visits and the next observer."""
    exp = experiment(**CARRIED)
    first, second = ([group] for group in cut(exp.recover, CLASSES, IPC))
    memory, before = Memory(exp, 2), None
    p = make(exp, first)
    before = begin(p, start()[:6])
    list(slopes(p, synthesize(p, before), exp, memory))
    assert memory.turns == 7 and before.visits == memory.visits == [4, 3]
    q = make(exp, second)
    state = begin(q, start()[6:], before=before)
    gradients = []
    for now in synthesize(q, state):
        assert now.images.grad is not None
        gradients.append(now.images.grad.clone())
    leaf = begin(q, start()[6:]).images.detach().clone().requires_grad_()
    logits, now_ = look(q, 1, leaf)  # 7 iterations before: it is the second observer's turn
    value = memory.visit(1, now_) + now_ - now_.detach()
    loss = functional.cross_entropy(logits, q.labels[0]) + 0.5 * matching.loss(
        value, q.targets[1], q.cfg.matching
    )
    (want,) = torch.autograd.grad(loss.sum(), leaf)
    torch.testing.assert_close(gradients[0], want, rtol=1e-4, atol=1e-6)

    chain = chained(exp)
    assert list(chain.steps()) == list(range(1, 15))
    std, mean = torch.tensor(STD)[:, None, None], torch.tensor(MEAN)[:, None, None]
    want = (state.images.detach() * std + mean).clamp(0, 1)
    torch.testing.assert_close(chain.images[6:].float(), want, rtol=0, atol=1e-3)
    alone = chained(experiment(recover__classes_per_group=2))
    list(alone.steps())
    torch.testing.assert_close(chain.images[:6], alone.images[:6], rtol=0, atol=2e-3)
    assert not torch.allclose(chain.images[6:], alone.images[6:], atol=1e-2)
    assert chain.bytes == chain.images.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("changes", [CARRIED, {"recover__flatness__kind": "statistics"}])
def test_an_interrupted_chain_gives_the_same_bits(changes: dict[str, Any]) -> None:
    exp = experiment(**changes, recover__iterations=3)
    whole = chained(exp)
    steps = len(list(whole.steps()))
    assert steps == (6 if changes is CARRIED else 3)
    for stop in range(1, steps + 1):
        part = chained(exp)
        list(islice(part.steps(), stop))
        again = chained(exp, copied(part.pack()))
        assert list(again.steps()) == list(range(stop + 1, steps + 1))
        assert torch.equal(again.images, whole.images) and again.bytes == whole.bytes


# --- crops --------------------------------------------------------------------------------------------------


def test_the_smallest_crop_follows_a_half_cosine() -> None:
    """CDA: from crop_min_start to crop_min over the iterations."""
    cfg = Recover(crop_min=0.2, crop_min_start=1.0, iterations=8)
    want = [0.2 + 0.8 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]
    assert [crop_min(cfg, t) for t in range(8)] == pytest.approx(want)
    assert (want[0], want[4]) == pytest.approx((1.0, 0.6))
    assert {crop_min(replace(cfg, crop_min_start=None), t) for t in range(8)} == {0.2}


def test_crops_are_drawn_for_a_group_or_for_each_image() -> None:
    """By hand, from a generator that seeds, group and iteration name."""
    for crop, draws in (("batch", 1), ("image", 2 * IPC)):
        exp = experiment(
            recover__crop=crop, recover__classes_per_group=2, recover__flip=True, recover__crop_min=0.2,
            recover__crop_min_start=0.9, init__seed=5,
        )  # fmt: skip
        box, flip = random_crops(make(exp), 3, 8)
        for index in range(2):
            rng = generator("recover", 0, 5, index, 3)
            least = 0.2 + 0.7 * (1 + math.cos(math.pi * 3 / 7)) / 2
            want = views.random_boxes(draws, 8, least, rng), torch.rand(draws, generator=rng) < 0.5
            part = slice(index * 2 * IPC, (index + 1) * 2 * IPC)
            assert torch.equal(box[part], want[0].expand(2 * IPC, 4))
            assert torch.equal(flip[part], want[1].expand(2 * IPC))


# --- what is dropped, and what is drawn ---------------------------------------------------------------------


def test_convolutions_drop_out_as_often_as_asked_and_batchnorms_never() -> None:
    exp = experiment(recover__matching__drop_rate=0.3, recover__classes_per_group=1)
    p = make(exp)
    masks = torch.stack([mask for t in range(300) if (mask := kept_layers(p, 0, t)) is not None])
    assert masks.shape == (300, CLASSES, 2)  # a convolution and a BatchNorm
    assert masks[:, :, 1].all() and float(masks[:, :, 0].float().mean()) == pytest.approx(0.7, abs=0.04)
    assert masks[:, :, 0].any(0).all() and not masks[:, :, 0].all(0).any()
    alone = make(exp, cut(exp.recover, CLASSES, IPC)[2:3])
    mask = kept_layers(alone, 0, 9)
    assert mask is not None and torch.equal(mask[0], masks[9, 2])


def test_local_images_are_of_the_groups_labels_and_repeat_only_where_they_must() -> None:
    labels = torch.tensor([2, 0, 1, 0, 1, 2, 0, 1, 1, 1])  # 3, 5 and 2 of each class
    group = Group(1, range(3, 6), 2)  # one image of class 1 and two of class 2
    picks = local_picks(labels, group, 3, (0, 0))
    counts = picks.bincount(minlength=10)
    assert labels[picks].bincount().tolist() == [0, 3, 6]
    assert counts[labels == 1].max() == 1 and counts[labels == 2].tolist() == [3, 3]
    assert torch.equal(picks, local_picks(labels, group, 3, (0, 0)))
    others = [((0, 1), group), ((1, 0), group), ((0, 0), replace(group, index=2))]
    assert any(not torch.equal(picks, local_picks(labels, other, 3, seeds)) for seeds, other in others)


def test_an_observer_without_a_matched_layer_has_only_its_cross_entropy() -> None:
    """BatchNorm alone is matched: the second network has none, and that is an error only if no other has."""
    exp = experiment(recover__matching__families=["bn"])
    p = make(exp)
    state = begin(p, start())
    states = synthesize(p, state)
    next(states)
    leaf = state.images.detach().clone().requires_grad_()
    after = next(states)
    (want,) = torch.autograd.grad(functional.cross_entropy(p.observers[1](leaf), p.labels[0]), leaf)
    torch.testing.assert_close(after.images.grad, want, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="nothing to match"):
        make(exp, observers=networks()[1:])
    make(
        experiment(recover__matching__families=["bn"], recover__matching__weight=0.0),
        observers=networks()[1:],
    )
