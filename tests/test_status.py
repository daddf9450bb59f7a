"""`edc-ray status` from a folder and from a Broker."""

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import ray
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from edc_ray import cli, config, pipeline, space, specs, status
from edc_ray.artifacts import Store
from edc_ray.distributed.service import start_broker
from tests import tiny

GOOD, BAD, NEXT = 3e-3, 1e30, 5e-3  # learning rates of three trials


# --- a folder -----------------------------------------------------------------------------------------------


def trial(lr: float, state: TrialState, value: float | None = None) -> FrozenTrial:
    made = create_trial(
        state=state, value=value, params={"evaluate.lr": lr},
        distributions={"evaluate.lr": FloatDistribution(1e-3, 1e30, log=True)},
    )  # fmt: skip
    made.datetime_start = datetime(2026, 1, 1)
    made.datetime_complete = made.datetime_start + timedelta(seconds=30) if state.is_finished() else None
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The artifacts of a good trial, and the log of a bad one."""
    made = Store(str(tmp_path_factory.mktemp("status") / "store"))
    tiny.in_process(made, tiny.experiment(evaluate__seeds=[0], evaluate__lr=GOOD), tiny.runtime())
    with pytest.raises(FloatingPointError):
        tiny.in_process(made, tiny.experiment(evaluate__seeds=[0], evaluate__lr=BAD), tiny.runtime())
    return made


def folder_of(store: Store, *trials: FrozenTrial, images: str = "", **changes: object) -> str:
    """The folder of a sweep with these trials, as `sweep.run` leaves it. images: a folder of them."""
    file = tiny.sweep_file(Path(store.root).parent, runtime__store=store.root, **changes)
    settings, base = specs.load_file(file)
    facts = {"sweep": config.dump(settings), "base": config.dump(base)}
    facts["base"]["dataset"] |= {"name": "image_folder", "path": images} if images else {}
    folder = Path(store.folder(f"sweeps/tiny-{len(list(Path(store.root).glob('sweeps/*')))}"))
    (folder / "sweep.json").write_text(json.dumps(facts))
    space.open_study(folder).add_trials(trials)
    return str(folder)


def rows(lines: list[str]) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in lines if line.split()[0] in pipeline.STAGES}


def test_a_sweep_that_runs(store: Store) -> None:
    good, bad = trial(GOOD, TrialState.COMPLETE, 0.5), trial(BAD, TrialState.FAIL)
    lines = status.of_folder(folder_of(store, good, bad, trial(NEXT, TrialState.RUNNING)))
    assert lines[0].startswith("sweep tiny-0: 2 of 4 trials ended; the last one began or ended ")
    assert lines[1:3] == ["trials: 1 complete, 1 fail, 1 running", "best: trial 0, 50.00 % on val"]
    assert lines[3] == (
        "left: 2 trials, about 30 s (30 s each, as the last 1, 2 at once), then the confirmation"
    )
    found = rows(lines)
    assert found["recover"] == ["1/1", "4/4", "0"] and "relabel" not in found  # inline
    assert found["evaluate"] == ["1/2", "1/2", "1"]
    (error,) = lines[lines.index("last errors:") + 1 :]
    assert re.search(r"  \S+  evaluate-\w{12}, unit student: attempt 1 failed: FloatingPointError: ", error)
    assert Path(error.partition("; log: ")[2]).read_text().startswith("evaluate-")


def test_a_sweep_without_a_finished_trial(store: Store) -> None:
    lines = status.of_folder(folder_of(store, trial(NEXT, TrialState.RUNNING)))
    assert "left: 4 trials; no trial has come to its end, so nobody knows how long" in lines
    assert not [line for line in lines if line.startswith("best")]


def test_the_confirmation_is_left(store: Store) -> None:
    lines = status.of_folder(folder_of(store, trial(GOOD, TrialState.COMPLETE, 0.5), budget={"trials": 1}))
    assert rows(lines)["evaluate"][0] == "1/7"  # two seeds of three arms
    assert not [line for line in lines if line.startswith(("left:", "finished"))]


def test_a_finished_sweep(store: Store) -> None:
    """One that confirms nothing."""
    good = trial(GOOD, TrialState.COMPLETE, 0.5)
    folder = folder_of(store, good, budget={"trials": 1}, confirm={"seeds": 0})
    lines = status.of_folder(folder)
    assert f"finished: `edc-ray report {folder}`" in lines and {row[2] for row in rows(lines).values()} == {
        "0"
    }


def test_without_the_data_the_trials_are_told(store: Store) -> None:
    lines = status.of_folder(folder_of(store, trial(GOOD, TrialState.COMPLETE, 0.5), images="/nowhere"))
    assert lines[2].startswith("best: trial 0") and lines[-1].startswith("stages: unknown here: dataset.path")


def test_status_reads_only(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(store, trial(GOOD, TrialState.COMPLETE, 0.5))
    before = {path: path.stat().st_mtime_ns for path in Path(store.root).rglob("*")}
    assert cli.main(["status", folder]) == 0
    assert capsys.readouterr().out.startswith(f"sweep {Path(folder).name}: 1 of 4 trials ended")
    assert {path: path.stat().st_mtime_ns for path in Path(store.root).rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "either a sweep's folder or --address"),
        (["there", "--address"], "either"),
        (["."], "no sweep.json"),
    ],
)
def test_bad_input(
    words: list[str],
    why: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status", *words]) == 2
    assert why in capsys.readouterr().err


# --- a Broker -----------------------------------------------------------------------------------------------


def test_of_broker() -> None:
    lines = status.of_broker({
        "name": "quick", "store": "/there", "seconds": 100.0, "slots": 8, "workers": 2, "leases": 1,
        "busy": ["recover-a/groups-0", "evaluate-b/student"], "labelling": 3, "best": 0.5,
        "todo": {"recover": 6, "evaluate": 1}, "done": {"recover": 4, "ingest": 1},
        "events": {"stage_hit": 3, "unit_retried": 1}, "errors": [{"at": "now", "why": "it broke"}],
    })  # fmt: skip
    assert lines == [
        "job quick, for 1.7 min: store /there",
        "ledger: 2 of 8 workers, 2 busy, 3 pages in a label job; leases of trials: 1",
        "stage        units done    left",
        "ingest                1       0",
        "recover               4       6   about 2.5 min",
        "evaluate              0       1",
        "running: recover-a/groups-0, evaluate-b/student",
        "best so far 50.00 % on val; hits: 3, built: 0, units queued again: 1",
        "last errors:",
        "  now  it broke",
    ]
    assert status.of_broker({"name": "x", "error": "gone"}) == ["x does not answer: gone"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_cluster_is_asked(store: Store, tmp_path: Path) -> None:
    """In a process of its own, as a person does."""
    (tmp_path / "mine").mkdir()
    broker = start_broker(str(tmp_path), tiny.runtime(), "asked", best=0.25)
    broker.status(timeout=60)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "edc_ray.cli", "status", "--address", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    ray.kill(broker.actor)
    assert done.returncode == 0, done.stderr
    job, ledger, best = done.stdout.splitlines()[:3]
    assert job.startswith("job asked, for ") and job.endswith(f"store {tmp_path}")
    assert ledger == "ledger: 0 of 2 workers, 0 busy; leases of trials: 0"
    assert best == "best so far 25.00 % on val; hits: 0, built: 0, units queued again: 0"


@pytest.mark.ray
def test_no_cluster_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edc_ray.cli", "status", "--address", "127.0.0.1:1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "must be of a Ray cluster that runs" in done.stderr
