"""Golden numbers: a stage's version names what it computes, so none of the two changes without the other."""

import json
from typing import Any

import pytest

from edc_ray.pipeline import STAGES
from tests import golden_update

TOLERANCE = 1e-4  # of a tensor's spread; the instruction sets of CPUs differ by up to 2.5e-5, in the student
EXACT = ("ingest", "init")  # bytes, without floating point
CURE = "raise STAGES[{stage!r}].version, then run `python -m tests.golden_update` and commit tests/golden/"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return dict(json.loads(golden_update.FILE.read_text()))


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return golden_update.stages()


def distance(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """The largest difference of two summaries, in standard deviations of the tensor."""
    return max(
        abs(a - b) / (values[1] or 1.0)
        for name, values in one.items()
        for a, b in zip(values, other[name], strict=True)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_what_its_version_says(
    stage: str, golden: dict[str, Any], now: dict[str, Any]
) -> None:
    cure = CURE.format(stage=stage)
    assert stage in golden and golden[stage]["version"] == STAGES[stage].version, f"new version: {cure}"
    assert golden[stage]["values"].keys() == now[stage]["values"].keys(), cure
    found = distance(golden[stage]["values"], now[stage]["values"])
    assert found <= (1e-12 if stage in EXACT else TOLERANCE), (
        f"{stage} or a stage before it computes something else ({found:.1e} of the spread); if meant, {cure}"
    )


def test_no_stage_is_forgotten(golden: dict[str, Any]) -> None:
    assert list(golden) == list(STAGES)


@pytest.mark.slow
def test_a_small_change_of_the_recipe_would_be_noticed(
    now: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that is 1 % larger is seen in all that follows."""
    changes = golden_update.CHANGES | {"squeeze.lr": 0.0505}
    monkeypatch.setattr(golden_update, "CHANGES", changes)
    other = golden_update.stages()
    seen = {stage for stage in STAGES if distance(now[stage]["values"], other[stage]["values"]) > TOLERANCE}
    assert seen == set(STAGES) - {"ingest", "init"}
