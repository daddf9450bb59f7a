"""Schedules, averages, losses against formulas; observers and students against themselves interrupted."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn

from edc_ray.config import Augment, Evaluate, Relabel, Squeeze
from edc_ray.core import views
from edc_ray.core.fit import TEST_IMAGES, pack, parameter_groups, predict, top1, unpack
from edc_ray.core.losses import student_loss
from edc_ray.core.random import fork_rng
from edc_ray.core.relabel import Page, label_page, page_steps
from edc_ray.core.schedules import SCHEDULES
from edc_ray.core.squeeze import fit_observer
from edc_ray.core.train import Averages, Student, report_steps, stop_step, total_steps

CLASSES, SIZE, IMAGES = 3, 8, 10


def network(seed: int = 0, dropout: float = 0.2) -> nn.Sequential:
    """With BatchNorm and dropout: buffers and randomness must survive an interruption too."""
    with fork_rng("network", seed):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(36, CLASSES),
        )


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def exact(a: object, b: object) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# --- schedules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zeta", [1.0, 1.5, 2.0, 4.0])
def test_schedules_start_at_one_and_never_rise(name: str, zeta: float) -> None:
    found = [SCHEDULES[name](epoch, 40, zeta) for epoch in range(40)]
    assert found[0] == 1 and all(0 <= after <= before for before, after in pairwise(found))


@pytest.mark.parametrize(
    "name, zeta, half, end",
    [
        ("cos", 1.0, 0.5, 0.0),
        ("cos", 2.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5),
        ("linear", 1.0, 0.5, 0.0),
        ("linear", 2.0, 0.75, 0.5),
        ("constant", 1.0, 1.0, 1.0),
    ],
)
def test_schedules_at_the_half_and_at_the_end(name: str, zeta: float, half: float, end: float) -> None:
    schedule = SCHEDULES[name]
    assert schedule(50, 100, zeta) == pytest.approx(half)
    assert schedule(100, 100, zeta) == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize("name, zeta, mean", [("cos", 2, 0.819), ("linear", 2, 0.751), ("cos", 1, 0.5)])
def test_schedules_have_the_published_means(name: str, zeta: float, mean: float) -> None:
    found = sum(SCHEDULES[name](epoch, 300, zeta) for epoch in range(300)) / 300
    assert found == pytest.approx(mean, abs=0.002)


# --- small pieces -------------------------------------------------------------------------------------------


def test_only_weights_with_more_than_one_dimension_decay() -> None:
    model = network()
    decayed, kept = parameter_groups(model, 0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def of(group: dict[str, object]) -> set[str]:
        parameters = group["params"]
        assert isinstance(parameters, list)
        return {names[id(parameter)] for parameter in parameters}

    assert of(decayed) == {"0.weight", "5.weight"} and decayed["weight_decay"] == 0.3
    assert of(kept) == {"0.bias", "1.weight", "1.bias", "5.bias"} and kept["weight_decay"] == 0


def test_the_students_loss_is_its_formula(rng: torch.Generator) -> None:
    """Mean of squares over all entries, and the logarithm of the chance of the hard label."""
    logits, soft = torch.randn((4, 3), generator=rng), torch.randn((4, 3), generator=rng)
    hard = torch.tensor([0, 2, 1, 1])
    squares = sum(float((logits[i, c] - soft[i, c]) ** 2) for i in range(4) for c in range(3)) / 12
    chances = [float(logits[i].exp()[y] / logits[i].exp().sum()) for i, y in enumerate(hard.tolist())]
    want = squares - 0.3 * sum(map(math.log, chances)) / 4
    assert float(student_loss(logits, soft, hard, 0.3)) == pytest.approx(want, rel=1e-5)


def test_top1_is_a_fraction() -> None:
    logits = torch.tensor([[1.0, 2, 0], [3, 2, 0], [0, 0, 1], [1, 0, 0]])
    assert top1(logits, torch.tensor([1, 0, 2, 2])) == 0.75


def test_predicting_in_parts_changes_nothing() -> None:
    model, images = network().eval(), torch.ones(TEST_IMAGES + 3, 3, SIZE, SIZE)
    found = predict(model, images)
    assert not found.requires_grad
    torch.testing.assert_close(found, model(images[:1]).detach().expand(len(images), -1))


# --- averages -----------------------------------------------------------------------------------------------


def set_all(model: nn.Module, value: float) -> None:
    for tensor in model.state_dict().values():
        tensor.fill_(value)


@pytest.mark.parametrize("horizon", [0.0, 0.1, 0.5])
def test_averages_are_weighted_means_of_all_steps(horizon: float) -> None:
    """Closed form: weights r^(n-i) over their sum, r = exp(-1 / (horizon * steps)); buffers as well."""
    model, values = network(), [3.0, -1.0, 4.0, 1.0, 5.0]
    averages = Averages.of(model, horizon, 20)
    rate = math.exp(-1 / (horizon * 20)) if horizon else 0.0
    for n, value in enumerate(values, 1):
        set_all(model, value)
        averages.update(model)
        weights = [rate ** (n - i) for i in range(1, n + 1)]
        want = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        found = averages.value(n)
        assert {"0.weight", "1.running_mean", "1.running_var"} <= set(found)
        assert all(tensor.is_floating_point() for tensor in found.values())  # no num_batches_tracked
        for tensor in found.values():
            torch.testing.assert_close(tensor, torch.full_like(tensor, want))
    if not horizon:
        exact(found, {name: model.state_dict()[name] for name in found})


# --- observers ----------------------------------------------------------------------------------------------

SQUEEZE = Squeeze(observers=("x",), epochs=4, batch_size=16, lr=0.1, augment=Augment(pad_px=1, flip=False))


def toy(rng: torch.Generator, count: int = 60) -> tuple[Tensor, Tensor]:
    """Class c has a bright band in rows 2c, 2c + 1."""
    labels = torch.arange(count) % CLASSES
    images = torch.randn((count, 3, SIZE, SIZE), generator=rng) * 0.5
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 * label : 2 * label + 2] += 1.5
    return images, labels


def fit(model: nn.Module, data: tuple[Tensor, Tensor], **change: object) -> None:
    for _ in fit_observer(replace(SQUEEZE, **change), model, *data, (0, "x")):  # type: ignore[arg-type]
        pass


def observer() -> nn.Module:
    with fork_rng("observer"):
        conv = nn.Conv2d(3, 8, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, CLASSES))


def test_an_observer_learns_and_ends_in_eval_mode(rng: torch.Generator) -> None:
    train, test = toy(rng), toy(rng)
    model = observer()
    state = torch.get_rng_state()
    fit(model, train, lr=0.02)
    assert not model.training and torch.equal(torch.get_rng_state(), state)
    assert top1(predict(model, test[0]), test[1]) > 0.85


def test_an_observers_learning_rate_follows_its_schedule(rng: torch.Generator) -> None:
    """Without momentum and decay, one batch an epoch: the weights move by rate * gradient."""
    data, model = toy(rng), observer()
    settings = {
        "momentum": 0.0,
        "weight_decay": 0.0,
        "batch_size": 60,
        "augment": Augment(pad_px=0, flip=False),
    }
    cfg = replace(SQUEEZE, schedule="linear", zeta=2.0, **settings)  # type: ignore[arg-type]
    rates = []
    before = copied(model.state_dict())
    for _ in fit_observer(cfg, model, *data, (0, "x")):
        (slope,) = (p.grad for name, p in model.named_parameters() if name == "4.weight")
        step = before["4.weight"] - model.state_dict()["4.weight"]
        assert slope is not None
        rates.append(float((step * slope).sum() / slope.square().sum()))
        before = copied(model.state_dict())
    assert rates == pytest.approx([0.1 * (1 - e / 8) for e in range(4)], rel=1e-3)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_an_observer_resumes_at_every_epoch_to_the_bit(stop: int, rng: torch.Generator) -> None:
    data, whole = toy(rng), observer()
    fit(whole, data)
    for epoch, checkpoint in fit_observer(SQUEEZE, observer(), *data, (0, "x")):
        if epoch == stop:
            saved = copied(checkpoint())
            break
    before = copied(saved)
    for _ in range(2):  # twice from one checkpoint: it is only read
        model = observer()
        epochs = [epoch for epoch, _ in fit_observer(SQUEEZE, model, *data, (0, "x"), saved)]
        assert epochs == list(range(stop + 1, 5))
        exact(dict(model.state_dict()), dict(whole.state_dict()))
        assert not model.training
        exact(saved, before)


def test_seed_and_name_drive_an_observers_training(rng: torch.Generator) -> None:
    data, found = toy(rng), []
    for seeds in ((0, "x"), (1, "x"), (0, "y"), (0, "x")):
        model = observer()
        for _ in fit_observer(replace(SQUEEZE, epochs=1), model, *data, seeds):
            pass
        found.append(model.state_dict()["4.weight"])
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_an_observers_loss_that_is_not_finite_is_an_error_with_its_name(rng: torch.Generator) -> None:
    images, labels = toy(rng)
    images[3] = math.nan
    with pytest.raises(FloatingPointError, match="loss of x is not finite in epoch 0"):
        fit(observer(), (images, labels))


def test_packed_optimizers_come_back(rng: torch.Generator) -> None:
    """More than ten parameters: their numbers must not be taken for each other's beginnings."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1))
    model(torch.randn((3, 2), generator=rng)).sum().backward()
    optimizer.step()
    saved = copied(pack(model, optimizer))
    other = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    fresh = torch.optim.AdamW(parameter_groups(other, 0.1))
    unpack(other, fresh, saved)
    exact(pack(other, fresh), saved)


# --- reports ------------------------------------------------------------------------------------------------


@hypothesis.given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 50), st.floats(0, 1.5))
def test_reports_are_evenly_spaced_and_a_stop_is_one_of_them(
    epochs: int, per_epoch: int, reports: int, until: float
) -> None:
    cfg = Evaluate(epochs=epochs, reports=reports)
    total, steps = total_steps(cfg, per_epoch), report_steps(cfg, per_epoch)
    assert total == epochs * per_epoch and steps[-1] == total and steps[0] >= 1
    assert len(steps) == min(reports, total) and steps == sorted(set(steps))
    gaps = [after - before for before, after in pairwise([0, *steps])]
    assert max(gaps) - min(gaps) <= 1
    stop = stop_step(cfg, per_epoch, until)
    assert stop in steps and stop >= min(until, 1) * total - 1e-6
    assert all(step < min(until, 1) * total for step in steps if step < stop)


# --- students -----------------------------------------------------------------------------------------------

RELABEL = Relabel(batch_size=4, page_images=8)  # 3 steps an epoch, 2 a page
EVALUATE = Evaluate(epochs=4, lr=0.01, schedule="linear", ema_horizon=0.2, ce_weight=0.3)  # 12 steps


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn((IMAGES, 3, SIZE, SIZE), generator=rng)


LABELS = torch.arange(IMAGES) % CLASSES


def pages(images: Tensor, step: int = 0) -> Iterator[Page]:
    """From the page of this step on, without end."""
    page = step // page_steps(RELABEL)
    while True:
        yield label_page(RELABEL, [network(7).eval()], images, 0, page)
        page += 1


def student(images: Tensor, saved: dict[str, Tensor] | None = None, cfg: Evaluate = EVALUATE) -> Student:
    return Student(cfg, network(), images, LABELS, 3, 0, saved)


@pytest.mark.parametrize("stop", range(1, 13))
def test_a_student_resumes_at_every_step_to_the_bit(stop: int, images: Tensor) -> None:
    whole = student(images)
    assert list(whole.advance(pages(images), 12)) == list(range(1, 13))
    first = student(images)
    assert list(first.advance(pages(images), stop)) == list(range(1, stop + 1))
    saved = copied(first.pack())
    before = copied(saved)
    for _ in range(2):  # twice from one checkpoint: it is only read
        again = student(images, saved)
        assert again.step == stop
        assert list(again.advance(pages(images, stop), 12)) == list(range(stop + 1, 13))
        exact(again.pack(), whole.pack())
        exact(saved, before)
    assert torch.equal(again.predict(images), whole.predict(images))


def test_a_student_takes_no_page_that_it_does_not_need(images: Tensor) -> None:
    taken: list[int] = []

    def counted() -> Iterator[Page]:
        for page in pages(images):
            taken.append(page.first_step)
            yield page

    source, learner = counted(), student(images)
    assert list(learner.advance(source, 4)) == [1, 2, 3, 4] and taken == [0, 2]
    assert not list(learner.advance(source, 4)) and taken == [0, 2]
    assert list(learner.advance(source, 5)) == [5] and taken == [0, 2, 4]


def test_the_first_steps_equal_adamw_by_hand(images: Tensor) -> None:
    """Plain torch on the drawn views: mixed pixels, un-mixed labels, the epoch's rate, the average."""
    cfg = replace(EVALUATE, ema_horizon=0.1, weight_decay=0.2)
    model, teacher = network(dropout=0).train(), network(7).eval()
    learner = Student(cfg, network(dropout=0), images, LABELS, 3, 0)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.2), lr=1.0)
    rate, sums = math.exp(-1 / 1.2), None
    for step, _ in enumerate(learner.advance(pages(images), 8)):
        view = views.draw(RELABEL, IMAGES, SIZE, 0, step)
        pixels = views.apply(view, images)
        logits, soft = model(pixels), teacher(pixels).detach().half().float()
        entropy = nn.functional.cross_entropy(logits, LABELS[view.ids])
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - (step // 3) / (2.0 * 4))
        optimizer.zero_grad()
        ((logits - soft).square().mean() + 0.3 * entropy).backward()
        optimizer.step()
        now = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
        sums = (
            {k: rate * sums[k] + (1 - rate) * v for k, v in now.items()}
            if sums
            else {k: (1 - rate) * v for k, v in now.items()}
        )
        torch.testing.assert_close(
            dict(learner.model.state_dict()), dict(model.state_dict()), rtol=1e-4, atol=1e-5
        )
        average = {k: v / (1 - rate ** (step + 1)) for k, v in sums.items()}
        model_of_averages = network()
        model_of_averages.load_state_dict(average, strict=False)
        want = model_of_averages.eval()(images)
        torch.testing.assert_close(learner.predict(images), want, rtol=1e-4, atol=1e-4)


def test_dropout_is_drawn_anew_for_each_seed_and_step(images: Tensor) -> None:
    def masks(seed: int) -> list[Tensor]:
        found: list[Tensor] = []
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * SIZE**2, CLASSES))
        model[1].register_forward_hook(lambda _, args, out: found.append((out == 0) & (args[0] != 0)))
        for _ in Student(EVALUATE, model, images, LABELS, 3, seed).advance(pages(images), 2):
            pass
        return found

    (first, second), again, (other, _) = masks(0), masks(0), masks(1)
    exact([first, second], again)
    assert not torch.equal(first, second) and not torch.equal(first, other)


def test_predicting_leaves_the_student_as_it_is(images: Tensor) -> None:
    quiet, asked = student(images), student(images)
    for _ in quiet.advance(pages(images), 7):
        pass
    for _ in asked.advance(pages(images), 7):
        assert not asked.predict(images).requires_grad
        assert asked.model.training
    exact(asked.pack(), quiet.pack())


def test_without_a_horizon_the_raw_weights_are_read(images: Tensor) -> None:
    learner = student(images, cfg=replace(EVALUATE, ema_horizon=0.0))
    for _ in learner.advance(pages(images), 5):
        pass
    found = learner.predict(images)
    assert torch.equal(found, predict(learner.model.eval(), images))


def test_a_students_training_leaves_its_inputs_and_the_global_generator(images: Tensor) -> None:
    before, state = images.clone(), torch.get_rng_state()
    for _ in student(images).advance(pages(images), 3):
        pass
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("until", [2, 3, 12])  # the end of a page, its middle, the end of the training
def test_a_students_loss_that_is_not_finite_is_an_error_before_it_stops(until: int, images: Tensor) -> None:
    """Also for a caller who asks for no more than the last step."""
    learner = student(images)
    steps = learner.advance(pages(images), until)
    with pytest.raises(FloatingPointError, match=f"not finite before step {until}"):
        for step in steps:
            if step == until - 1:
                with torch.no_grad():
                    next(learner.model.parameters()).fill_(math.nan)
            if step == until:
                break
