"""Schedules against their formulas, their published means and a naive recursion."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from edc_ray.config import Evaluate, Squeeze
from edc_ray.core.schedules import SCHEDULES, multiplier


def rates(schedule: str, epochs: int = 300, **settings: Any) -> list[float]:
    cfg = Evaluate(schedule=schedule, epochs=epochs, **settings)
    return [multiplier(cfg, epoch) for epoch in range(epochs)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zeta", [1.0, 1.5, 4.0])
def test_they_start_at_one_and_never_rise(name: str, zeta: float) -> None:
    found = rates(name, 40, zeta=zeta)
    assert found[0] == 1 and all(0 <= after <= before for before, after in pairwise(found))


@pytest.mark.parametrize(
    "name, settings, half, end",
    [
        ("cos", {"zeta": 1.0}, 0.5, 0.0),
        ("cos", {"zeta": 2.0}, 0.5 * (1 + math.cos(math.pi / 4)), 0.5),
        ("linear", {"zeta": 1.0}, 0.5, 0.0),
        ("linear", {"zeta": 2.0}, 0.75, 0.5),
        ("constant", {}, 1.0, 1.0),
        ("ssrs", {"zeta": 2.0}, 0.5 * (1 + math.cos(math.pi / 4)), 0.0),
        ("multistep", {"gamma": 0.3, "milestones": (0.5, 0.7)}, 0.3, 0.09),
        ("alrs", {"gamma": 0.3}, 1.0, 1.0),
    ],
)
def test_at_the_half_and_at_the_end(name: str, settings: dict[str, Any], half: float, end: float) -> None:
    cfg = Evaluate(schedule=name, epochs=100, **settings)
    assert multiplier(cfg, 50) == pytest.approx(half)
    assert multiplier(cfg, 100) == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize(
    "name, zeta, mean",
    [("cos", 2, 0.819), ("linear", 2, 0.751), ("ssrs", 2, 0.734), ("cos", 1, 0.5), ("multistep", 1, 0.869)],
)
def test_they_have_the_published_means(name: str, zeta: float, mean: float) -> None:
    assert sum(rates(name, zeta=zeta)) / 300 == pytest.approx(mean, abs=0.002)


def test_ssrs_drops_after_five_sixths() -> None:
    """From 0.629 to 0.105 for zeta = 2, then straight to 0 (method.md 5.4); or after another share."""
    found = rates("ssrs", zeta=2.0)
    assert found[:251] == rates("cos", zeta=2.0)[:251]
    assert found[250] == pytest.approx(0.629, abs=1e-3)
    line = [found[251] * (300 - e) / 49 for e in range(251, 300)]
    assert found[251:] == pytest.approx(line) and found[251] == pytest.approx(0.629 * 49 / 300, abs=1e-3)
    assert rates("ssrs", zeta=2.0, fall=0.5)[:151] == rates("cos", zeta=2.0)[:151]
    assert rates("ssrs", zeta=2.0, fall=0.5)[151] < 0.5


@pytest.mark.parametrize("epochs", [1000, 300, 60])
def test_multistep_steps_at_its_milestones_to_the_epoch(epochs: int) -> None:
    found = rates("multistep", epochs)
    steps = [e for e in range(1, epochs) if found[e] != found[e - 1]]
    assert steps == [epochs * 8 // 10, epochs * 9 // 10, epochs * 95 // 100]
    assert found[-1] == 0.125


def test_what_the_official_imagenet_script_ran_is_not_what_it_named() -> None:
    """B1: `--ls-type cos` fell through to the linear schedule. Here each name is what it says."""
    assert rates("linear", 4, zeta=2.0) == [1, 0.875, 0.75, 0.625]
    assert rates("cos", 4, zeta=2.0) == pytest.approx([1, 0.962, 0.854, 0.691], abs=1e-3)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.lists(st.floats(0.001, 8), max_size=12), st.floats(0.5, 1))
def test_alrs_is_a_naive_recursion(losses: list[float], gamma: float) -> None:
    losses += [loss * 1.01 for loss in losses[-1:]] * 2  # at least two calm epochs, if there are any
    cfg, rate, last = Evaluate(schedule="alrs", epochs=20, gamma=gamma), 1.0, math.inf
    for epoch, loss in enumerate(losses):
        assert multiplier(cfg, epoch, losses[:epoch]) == pytest.approx(rate)
        if abs(last - loss) < 0.02 and abs(last - loss) / loss < 0.02:
            rate *= gamma
        last = loss


def test_squeeze_and_evaluate_share_the_rows() -> None:
    for name in ("cos", "linear", "constant"):
        squeeze = replace(Squeeze(epochs=9, zeta=1.5), schedule=name)
        assert [multiplier(squeeze, epoch) for epoch in range(9)] == rates(name, 9, zeta=1.5)
