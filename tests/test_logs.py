"""The log that each unit leaves beside it, and the errors that name it."""

import os
from pathlib import Path

import pytest

from edc_ray import cli, pipeline
from edc_ray.artifacts import Attempt, Store, add_attempt, attempts, log_path, logged
from edc_ray.pipeline import Worker
from tests import tiny

KEY = "0123456789ab"


def test_attempts_are_read_as_they_were_added(store: Store) -> None:
    artifact = store.artifact("recover", KEY)
    assert attempts(artifact, "groups-00000-00003") == [] == logged(artifact)
    lost = Attempt("lost", 3.04, "worker-3", "WorkerLost: its node\nis gone")
    failed = Attempt("failed", 12.0, "gpu-1 (cuda, process 7)", "ValueError: odd: 3")
    for new, details in ((lost, ""), (failed, "Traceback\n  File x\n"), (Attempt("done", 60.0, "a"), "")):
        path = add_attempt(artifact, "groups-00000-00003", new, details)
    found = attempts(artifact, "groups-00000-00003")
    assert [(each.number, each.outcome, each.seconds, each.where, each.why) for each in found] == [
        (1, "lost", 3.0, "worker-3", "WorkerLost: its node is gone"),
        (2, "failed", 12.0, "gpu-1 (cuda, process 7)", "ValueError: odd: 3"),
        (3, "done", 60.0, "a", ""),
    ]
    assert path == log_path(artifact, "groups-00000-00003") and logged(artifact) == ["groups-00000-00003"]
    lines = Path(path).read_text().splitlines()
    assert lines[0] == f"recover-{KEY}, unit groups-00000-00003" and lines[3:5] == [
        "    Traceback",
        "      File x",
    ]
    assert artifact.units() == {}  # it is no unit


@pytest.mark.slow
def test_each_unit_leaves_a_log_beside_it(store: Store) -> None:
    exp, how = tiny.experiment(), tiny.runtime()
    tiny.in_process(store, exp, how)
    for task in pipeline.tasks(exp):
        if not pipeline.skipped(task, how):
            artifact = store.artifact(task.stage, task.key)
            assert logged(artifact) == sorted(artifact.units())
            for unit, found in ((unit, attempts(artifact, unit)) for unit in artifact.units()):
                assert [each.outcome for each in found] == ["done"]
                assert found[0].where.endswith(f"(cpu, process {os.getpid()})")
                assert found[0].seconds == pytest.approx(artifact.receipt(unit).meta["seconds"], abs=0.05)


def test_an_error_names_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [
        "dataset.limit=200", "dataset.size_px=8", "squeeze.epochs=1", "runtime.device=cpu",
        "squeeze.observers=[convnet_w16_d2]", "recover.lr=1e30", "recover.matching.weight=1e30",
    ]  # fmt: skip
    assert cli.main(["condense", "digits/ipc1", *(f"--set={change}" for change in changes)]) == 1
    (path,) = Path("store").glob("recover-*/logs/*.log")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(f"; log: {path.absolute()}\n")
    _, line, *trace = path.read_text().splitlines()
    assert " attempt 1 failed after " in line and "FloatingPointError: the loss of group" in line
    assert trace[0] == "    Traceback (most recent call last):" and trace[-1].startswith(
        "    FloatingPointError"
    )


def test_a_store_that_takes_no_log_hides_no_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exp, how = tiny.experiment(), tiny.runtime()
    (task,) = pipeline.tasks(exp, "ingest")

    def full(relpath: str, data: bytes, first: bool = False) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(store, "put", full)
    with pytest.raises(OSError, match="no space left"):
        list(Worker(store, how).run(task, "all"))
    assert "cannot be written" in caplog.text
