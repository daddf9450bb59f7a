"""Ladders: pairing, what is told of the differences, bad files; and one run on Ray."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scipy import stats

from edc_ray import cli, ladder, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Ladder, Row, load
from tests import tiny

ROWS: dict[str, Any] = {
    "real": {"set": {"recover.iterations": 0}, "paper": 0.4},
    "moved": {"set": {}, "against": ["real"], "paper": 0.6},
    "again": {"base": "moved", "fresh": True, "against": ["moved"]},
}


def file(folder: Path, **changes: Any) -> str:
    data: dict[str, Any] = {
        "name": "small",
        "experiment": tiny.CHANGES | {"evaluate.seeds": [0], "split.val": 0.0, "evaluate.reports": 1},
        "rows": ROWS,
        "seeds": 2,
        "runtime": {"store": str(folder / "store"), "workers": 1, "cpus_per_worker": 0.5, "device": "cpu"},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data | changes, sort_keys=False))
    return str(path)


def test_rows_share_everything_but_what_they_change(tmp_path: Path) -> None:
    ready = ladder.prepare(file(tmp_path), [])
    arms = {name: [pipeline.tasks(e) for e in ready.arm(name)] for name in ROWS}
    keys = {name: [{task.stage: task.key for task in tasks} for tasks in arm] for name, arm in arms.items()}
    for i in range(2):
        one, other, fresh = (keys[name][i] for name in ROWS)
        assert one["init"] == other["init"] != fresh["init"]
        assert len({each["squeeze"] for each in (one, other, fresh)}) == 1
        assert one["recover"] != other["recover"]
    assert [e.evaluate.seeds for e in ready.arm("real")] == [e.evaluate.seeds for e in ready.arm("moved")]
    assert {e.evaluate.seeds for e in ready.arm("moved")}.isdisjoint(
        e.evaluate.seeds for e in ready.arm("again")
    )


@pytest.mark.parametrize(
    ("changes", "path", "legal"),
    [
        ({"rows": {}}, "rows", "at least one"),
        ({"rows": {"a": {"base": "b"}, "b": {}}}, "rows.a.base", "an earlier row (there is none)"),
        ({"rows": {"a": {}, "b": {"against": ["c"]}}}, "rows.b.against", "an earlier row (a)"),
        ({"rows": {"a": {"agianst": []}}}, "rows.a.agianst", "did you mean against?"),
        ({"rows": {"a": {"set": {"recover.lrr": 1}}}}, "rows.a.set.recover.lrr", "did you mean recover.lr"),
        ({"rows": {"a": {"set": {"init.ipc": 999}}}}, "rows.a.set.init.ipc", "must be <="),
        ({"seeds": 1}, "seeds", "must be >= 2"),
        ({"name": "a/b"}, "name", "letters"),
        ({"experiment": {"init.kind": "reel"}}, "experiment.init.kind", "did you mean real?"),
    ],
)
def test_a_bad_file_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], path: str, legal: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ladder.prepare(file(tmp_path, **changes), [])
    assert caught.value.path == path and legal in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_plan_counts_what_is_there_and_condense_refuses_a_ladder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(tmp_path)
    assert cli.main(["plan", path]) == 0
    assert "0 of 2 there" in capsys.readouterr().out and not (tmp_path / "store").exists()
    assert cli.main(["condense", path]) == 2
    assert "is a ladder" in capsys.readouterr().err


def test_one_process_at_a_time_runs_a_ladder(tmp_path: Path) -> None:
    ready = ladder.prepare(file(tmp_path), [])
    with ready.store.alone("ladders/small/driver.lock"), pytest.raises(ConfigError, match="another process"):
        ladder.run(ready)


def told(**accuracies: list[float]) -> dict[str, Any]:
    row = {"synthesis": 1.0, "student": 2.0, "steps": 3, "split": "test", "judged": 4}
    rows = {name: row | {"accuracies": values} for name, values in accuracies.items()}
    observers = [{"accuracy": {"a": 0.5}, "ensemble": 0.6, "split": "test"}]
    return {"rows": rows, "observers": observers, "test_reads": 7}


def test_the_table_says_what_is_not_resolved() -> None:
    spec = Ladder(rows={name: load(Row, row) for name, row in ROWS.items()}, seeds=3)
    facts = told(real=[0.1, 0.3, 0.2], moved=[0.2, 0.4, 0.31], again=[0.4, 0.1, 0.3])
    lines = ladder.table(facts, spec)
    (clear,) = (line for line in lines if line.startswith("| moved - real"))
    (unclear,) = (line for line in lines if line.startswith("| again - moved"))
    half = 4.302653 * math.sqrt(1 / 3e4) / math.sqrt(3)  # t(0.975, 2) times the standard error
    assert f"{100 * 0.31 / 3:.2f} +- {100 * half:.2f} | 20.0 | yes" in clear
    assert "not resolved" in unclear and "+20" not in unclear


def test_the_smallest_detectable_difference_is_detected_as_often_as_promised() -> None:
    """By simulation: normal differences whose mean is what `detectable` says for their true spread."""
    n, runs, rng = 12, 20_000, torch.Generator().manual_seed(0)
    unit = [(i - (n - 1) / 2) for i in range(n)]
    spread = math.sqrt(sum(x * x for x in unit) / (n - 1))
    least = ladder.detectable([x / spread for x in unit])
    drawn = torch.randn(runs, n, generator=rng) + least
    t = drawn.mean(1) / (drawn.std(1) / math.sqrt(n))
    power = float((t.abs() > stats.t.ppf(0.975, n - 1)).float().mean())
    assert abs(power - ladder.POWER) < 0.02


@pytest.mark.ray
def test_a_ladder_runs_and_the_second_time_finds_everything_there(tmp_path: Path) -> None:
    """In processes of their own: another test's Ray may be running in this one."""
    path = file(tmp_path)
    first = tiny.sweep(path)
    assert "6 of 6 evaluations to make" in first and "| moved - real |" in first
    folder = tmp_path / "store" / "ladders" / "small"
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [(row["row"], row["repetition"]) for row in rows] == [(name, i) for name in ROWS for i in (0, 1)]
    ready = ladder.prepare(path, [])
    exact = [pipeline.facts(pipeline.tasks(e)[-1], Store(ready.store.path())) for e in ready.arm("moved")]
    assert [row["accuracy"] for row in rows[2:4]] == [each["accuracy"] for each in exact]
    before = (folder / "table.md").read_text()
    assert "0 of 6 evaluations to make" in tiny.sweep(path)
    assert (folder / "table.md").read_text() == before
