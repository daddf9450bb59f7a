"""Each kind of injection once, and whether the harness of tests/chaos would notice a loss."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from edc_ray.artifacts import Store
from tests.chaos import verdict
from tests.chaos.__main__ import bound, deal, summary, table
from tests.chaos.inject import KINDS, Reference, plan
from tests.chaos.nodes import ROOT
from tests.chaos.watch import Watch

KEY = "0123456789ab"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the reference, which the first run makes."""
    return tmp_path_factory.mktemp("chaos") / "undisturbed"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "kinds"), [(1, ["worker", "label", "broker", "trial"]), (10, ["node", "driver", "head"])]
)
def test_nothing_is_lost(tmp_path: Path, undisturbed: Path, seed: int, kinds: list[str]) -> None:
    out, what = tmp_path / "injections.jsonl", ["--seed", str(seed), "--kinds", ",".join(kinds)]
    command = [sys.executable, "-m", "tests.chaos", *what, "--reference", str(undisturbed), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {json.loads(line)["kind"] for line in out.read_text().splitlines()} == set(kinds)


# --- would it notice? ---------------------------------------------------------------------------------------


def write(store: Path, value: float = 1.0, seconds: float = 2.0, unit: str = "all") -> None:
    """A committed artifact of one number."""
    artifact = Store(str(store)).artifact("init", KEY)
    receipt = artifact.write(unit, {"x": torch.tensor([value])}, {"seconds": seconds, "core_seconds": 1.0})
    facts = {"file": receipt.file, "sha256": receipt.sha256, "bytes": receipt.bytes, "meta": receipt.meta}
    artifact.commit({"units": {unit: facts}})


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """Ours and the reference, with equal bits that took other times."""
    write(tmp_path / "ours", seconds=2.0)
    write(tmp_path / "reference", seconds=3.0)
    return tmp_path / "ours", tmp_path / "reference"


def test_other_times_are_no_other_bits(stores: tuple[Path, Path]) -> None:
    assert not verdict._of_bits(*stores) and not verdict._of_files(stores[0], Watch(stores[0]))


def test_other_bits_and_units_are_seen(stores: tuple[Path, Path]) -> None:
    ours, reference = stores
    write(ours, unit="more")
    write(reference, unit="gone")
    name = f"init-{KEY}"
    assert verdict._of_bits(ours, reference) == [f"{name}/gone is missing", f"{name}/more is too many"]
    write(ours.with_name("other"), value=1.5)
    assert f"{name}/all has other bits" in verdict._of_bits(ours.with_name("other"), reference)


def test_a_unit_made_again_is_seen(stores: tuple[Path, Path]) -> None:
    write(stores[0], seconds=4.0)
    assert verdict._of_files(stores[0], Watch(stores[0])) == [f"init-{KEY}/all was made 2 times"]


def test_a_file_that_is_replaced_is_seen(stores: tuple[Path, Path]) -> None:
    watch = Watch(stores[0])
    watch.look()
    write(stores[0], seconds=2.0)  # the same bytes under the same name
    (file,) = stores[0].glob("*/all.*")
    assert verdict._of_files(stores[0], watch) == [f"{file} was replaced"]


@pytest.mark.parametrize(
    ("work", "end", "fine"),
    [([1.0, 2.0, 2.9], 3.5, True), ([1.0, 2.0, 1.0], 3.5, False), ([1.0, 2.0], 1.9, False)],
)
def test_a_unit_that_begins_anew_in_spite_of_checkpoints_is_seen(
    tmp_path: Path, work: list[float], end: float, fine: bool
) -> None:
    artifact, watch = Store(str(tmp_path)).artifact("evaluate", KEY), Watch(tmp_path)
    for each in work:
        artifact.save_checkpoint("student", {"x": torch.zeros(1)}, {"seconds": each})
        watch.look()
    faults = watch.restarted({(f"evaluate-{KEY}", "student"): end}, interval=1.0)
    assert [f.split(" ")[0] for f in faults] == ([] if fine else [f"evaluate-{KEY}/student"])


# --- moments, and what is said of them ----------------------------------------------------------------------


def test_moments_repeat_and_come_before_the_end(tmp_path: Path) -> None:
    stages = ["ingest", "squeeze", "relabel", "relabel", "evaluate", "evaluate"]
    reference = Reference(tmp_path, tuple((10.0 + i, stage) for i, stage in enumerate(stages)), 20.0)
    for seed in range(50):
        moments = plan(seed, KINDS, reference)
        assert moments == plan(seed, KINDS, reference) and len(moments) == len(KINDS)
        assert [m.units for m in moments] == sorted(m.units for m in moments)
        assert all(m.units < len(stages) and (m.kind != "label" or m.units < 4) for m in moments)


def test_kinds_are_dealt_evenly() -> None:
    dealt = [kinds for _, kinds in itertools.islice(deal(0), 15)]
    counts = Counter(itertools.chain(*dealt))
    assert sum(counts.values()) == 60 and min(counts.values()) >= 8


def test_the_bound_is_the_rule_of_three_until_something_is_lost() -> None:
    assert bound(0, 60) == 0.05 and bound(0, 1) == 1.0 == bound(2, 2)
    assert 0.07 < bound(1, 60) < 0.08


def test_a_run_that_lost_something_is_told() -> None:
    of = {"units": 3, "after": 9.0, "unsaved": 0.5, "run_seconds": 80.0, "replay": "again", "commit": "c"}
    fine = of | {"seed": 1, "kind": "node", "faults": []}
    bad = of | {"seed": 2, "kind": "head", "faults": ["all was made 2 times"]}
    assert "| 2 | head@3 | 80 | 0.5 | all was made 2 times | `again` |" in table([fine, bad])
    assert "2 injections in 2 runs, 1 of them" in summary([fine, bad])
    assert "| head | 1 | 1 | 0.5 |" in summary([fine, bad])
