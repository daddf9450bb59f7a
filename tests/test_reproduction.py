"""benchmarks/cifar10_reproduction.py: its arms, its verdicts, and a small run to the end and over again."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import cifar10_reproduction as reproduction
from tests.layouts import jpeg


@pytest.mark.parametrize("seed", [0, 1])
def test_no_two_arms_are_the_same(seed: int) -> None:
    made = reproduction.arms(10, {}, seed)
    assert all(a != b for i, a in enumerate(made.values()) for b in list(made.values())[:i])
    assert {e.evaluate.seeds for e in made.values()} == {(seed,)}
    assert made["t0"].init == made["fixed"].init != made["random_real"].init
    for name in ("official_fixed_teachers", "paper_fixed_teachers"):
        assert made[name].squeeze == made["fixed"].squeeze
        assert made[name].recover == made[name.partition("_")[0]].recover


@pytest.mark.parametrize(
    "mean, half, said",
    [
        (79.1, 0.4, "matched"), (79.1, 0.6, "not resolved"), (78.0, 0.3, "below"), (80.2, 0.3, "above"),
        (78.5, 0.3, "not resolved"),
    ],
)  # fmt: skip
def test_matched_is_a_whole_interval_near_the_target(mean: float, half: float, said: str) -> None:
    assert reproduction.verdict(mean, half, 79.1) == said


def test_differences_are_paired_by_seed() -> None:
    facts = {"fixed": {"accuracy": {0: 0.5, 1: 0.6, 2: 0.9}}, "t0": {"accuracy": {0: 0.4, 1: 0.5}}}
    assert reproduction.steps(facts) == ["fixed - t0: 10.00 +- 0.00 (n = 2)"]


@pytest.mark.slow
def test_a_small_run_ends_goes_on_and_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, each in (("train", 60), ("test", 10)):
        labels = [i % 10 for i in range(10 * each)]
        images = [jpeg(label, i // 10, 32) for i, label in enumerate(labels)]
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{part}.parquet")
    assert reproduction.coded(str(tmp_path)) == "JPEG"
    command = [str(tmp_path), "--tiny", "--seeds", "2", "--device", "cpu"]
    command += ["--store", str(tmp_path / "store"), "--json", str(tmp_path / "facts.json")]
    assert reproduction.main([*command, "--minutes", "0"]) == 3
    assert reproduction.main(command) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert set(facts) == set(reproduction.ARMS) and all(len(f["accuracy"]) == 2 for f in facts.values())
    capsys.readouterr()
    assert reproduction.main(command) == 0
    assert json.loads((tmp_path / "facts.json").read_text()) == facts
    assert "evaluate student" not in capsys.readouterr().out  # nothing was made again
