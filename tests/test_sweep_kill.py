"""`kill -9` of a sweep's driver: the same command again finishes it, and makes nothing twice."""

import os
import signal
from pathlib import Path

import pytest
from optuna.trial import TrialState

from edc_ray import space
from tests import tiny

pytestmark = pytest.mark.ray
TRIALS = 4


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every finished unit and manifest in the store, with what tells that it was replaced."""
    found = {}
    for path in (folder / "store").glob("*-*/*"):
        if path.suffix in (".safetensors", ".parquet", ".json"):
            stat = path.stat()
            found[str(path)] = (stat.st_ino, stat.st_mtime_ns)
    return found


def units(folder: Path) -> list[str]:
    """artifact/unit of every unit file, without the hash of its bytes: one made twice is there twice."""
    paths = [path for path in (folder / "store").glob("*-*/*") if path.suffix in (".safetensors", ".parquet")]
    return sorted(f"{path.parent.name}/{path.name.split('.')[0]}" for path in paths)


def curves(folder: Path) -> list[tuple[str, dict[int, float]]]:
    """Knobs and accuracies of all trials that have reported."""
    trials = space.read_study(folder / "store/sweeps/tiny").trials
    return [(str(sorted(t.params.items())), t.intermediate_values) for t in trials if t.intermediate_values]


def kill_at(file: str, moment: str) -> None:
    """Start the sweep and kill -9 its driver as soon as it prints a line that begins so."""
    with tiny.sweeping(file) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.startswith(moment):
                os.kill(driver.pid, signal.SIGKILL)
                break
        else:
            pytest.fail(f"no line {moment}")


@pytest.mark.parametrize(
    ("moments", "seeds"),
    [
        pytest.param(["trial 1/"], 0, id="searching"),
        pytest.param(["confirming"], 2, id="confirming", marks=pytest.mark.slow),
        pytest.param(["sweep ", "trial 2/", "  t0, seed"], 2, id="thrice", marks=pytest.mark.slow),
    ],
)
def test_a_killed_sweep_goes_on_where_it_stood(tmp_path: Path, moments: list[str], seeds: int) -> None:
    file, before, told = tiny.sweep_file(tmp_path, confirm={"seeds": seeds}), dict[str, tuple[int, int]](), []
    for moment in moments:
        kill_at(file, moment)
        now = files(tmp_path)
        assert before.items() <= now.items()
        before = now
        told += curves(tmp_path) if (tmp_path / "store/sweeps/tiny/study.journal").exists() else []
    tiny.sweep(file)
    assert before.items() <= files(tmp_path).items()  # nothing was replaced,
    assert len(units(tmp_path)) == len(set(units(tmp_path)))  # and nothing made twice
    study = space.read_study(tmp_path / "store/sweeps/tiny")
    assert len(space.finished(study)) == TRIALS == len(study.get_trials(states=(TrialState.COMPLETE,)))
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    finals = {str(sorted(t.params.items())): t.intermediate_values for t in space.finished(study)}
    for knobs, curve in told:
        assert curve.items() <= finals[knobs].items()
