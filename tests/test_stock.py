"""`edc-ray store`: what lies there, whether it is whole, and the removal of what no sweep needs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from edc_ray import cli, config, pipeline, space, specs
from edc_ray.artifacts import Store, every_artifact
from tests import tiny

HOW = tiny.runtime()


def experiment(iterations: int, lr: float) -> config.Experiment:
    return tiny.experiment(evaluate__seeds=[0], recover__iterations=iterations, evaluate__lr=lr)


TRIALS = {  # sweep -> (recover.iterations, evaluate.lr) of its trials
    "one": ((3, 2e-3), (3, 4e-3)),
    "two": ((3, 2e-3), (2, 5e-3)),
}


def trial(iterations: int, lr: float) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE, value=0.5, params={"recover.iterations": iterations, "evaluate.lr": lr},
        distributions={"recover.iterations": IntDistribution(0, 9), "evaluate.lr": FloatDistribution(0, 1)},
    )  # fmt: skip


def add_sweep(store: Store, name: str, *trials: FrozenTrial) -> str:
    """The folder of a sweep, as `sweep.run` leaves it; returns its file, beside the store."""
    search = {"evaluate.lr": {"low": 1e-3, "high": 1e-2}, "recover.iterations": {"low": 0, "high": 9}}
    (Path(store.root).parent / name).mkdir(exist_ok=True)
    file = tiny.sweep_file(
        Path(store.root).parent / name, name=name, search=search, runtime__store=store.root, confirm__seeds=0
    )
    settings, base = specs.load_file(file)
    facts = {"sweep": config.dump(settings), "base": config.dump(base)}
    folder = Path(store.folder(f"sweeps/{name}"))
    (folder / "sweep.json").write_text(json.dumps(facts))
    space.open_study(folder).add_trials(trials)
    return file


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The artifacts of both sweeps' trials, and an experiment of no sweep."""
    made = Store(str(tmp_path_factory.mktemp("stock") / "store"))
    for chosen in {*TRIALS["one"], *TRIALS["two"], (0, 1e-3)}:
        tiny.in_process(made, experiment(*chosen), HOW)
    for name, trials in TRIALS.items():
        add_sweep(made, name, *(trial(*chosen) for chosen in trials))
    return made


@pytest.fixture
def store(built: Store, tmp_path: Path) -> Store:
    shutil.copytree(Path(built.root).parent, tmp_path / "all")
    return Store(str(tmp_path / "all" / "store"))


def folders(*chosen: tuple[int, float]) -> set[str]:
    """Of the stored artifacts of these trials."""
    return {
        str(task)
        for each in chosen
        for task in pipeline.tasks(experiment(*each))
        if not pipeline.skipped(task, HOW)
    }


def there(store: Store) -> set[str]:
    return {artifact.folder for artifact in every_artifact(store)}


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str], str]:
    code = cli.main(["store", *argv])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


# --- ls, verify ---------------------------------------------------------------------------------------------


def test_ls_counts_by_stage(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    task = pipeline.tasks(experiment(*TRIALS["one"][0]), "statistics")[-1]
    (Path(store.root) / str(task) / "manifest.json").unlink()
    code, lines, _ = command(capsys, "ls", store.root)
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert code == 0 and [*rows] == ["stage", *(s for s in pipeline.STAGES if s != "relabel"), "together"]
    assert rows["statistics"][:3] == ["1", "1", "3"]  # two shards and their fold
    assert rows["recover"][:2] == ["3", "0"] and rows["evaluate"][:3] == ["4", "0", "4"]
    files = [
        path for folder in there(store) for path in (Path(store.root) / folder).rglob("*") if path.is_file()
    ]
    total = sum(path.stat().st_size for path in files)
    assert abs(float(rows["together"][3]) * {"kB": 1e3, "MB": 1e6}[rows["together"][4]] / total - 1) < 0.06


def test_verify_lists_what_is_damaged(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, err = command(capsys, "verify", store.root)
    assert (
        code == 0 and lines[-1].endswith("files of finished artifacts were read, 0 are damaged") and not err
    )
    squeeze, statistics = (
        pipeline.tasks(experiment(*TRIALS["one"][0]), stage)[-1] for stage in ("squeeze", "statistics")
    )
    (unit,) = Path(store.root).glob(f"{squeeze}/vgg5_w16.*")
    unit.write_bytes(unit.read_bytes()[:-1] + b"\0\0")
    (Path(store.root) / str(statistics) / "manifest.json").write_text("{}")
    code, lines, err = command(capsys, "verify", store.root)
    assert code == 1 and len(lines) == 3 and "makes them again" in err
    assert any(f"{squeeze}, unit vgg5_w16" in line and str(unit) in line for line in lines)
    assert any(f"{statistics}, unit manifest" in line for line in lines)
    assert lines[-1].endswith(" 2 are damaged")


@pytest.mark.parametrize("act", ["ls", "verify"])
def test_what_is_no_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], act: str) -> None:
    code, _, err = command(capsys, act, str(tmp_path))
    assert code == 2 and "is no store" in err and not list(tmp_path.iterdir())


# --- gc -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["folder", "file"])
def test_gc_removes_what_no_kept_sweep_needs(
    store: Store, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    keep = store.path("sweeps/one")
    if by == "file":
        keep = add_sweep(store, "one")
    before, stays = there(store), folders(*TRIALS["one"])
    rubbish = before - stays
    assert rubbish == folders((2, 5e-3), (0, 1e-3)) - stays and len(rubbish) == 4
    code, lines, _ = command(capsys, "gc", store.root, "--keep", keep)
    assert code == 0 and {line.split(":")[0] for line in lines[:-1]} == rubbish
    assert lines[-1].endswith("would be removed: --yes does it") and there(store) == before
    code, lines, _ = command(capsys, "gc", store.root, "--keep", keep, "--yes")
    assert code == 0 and lines[-1].endswith("were removed") and there(store) == before - rubbish
    for chosen in TRIALS["one"]:
        assert all(
            row.hit for row in pipeline.plan(experiment(*chosen), store, HOW) if row.units and not row.note
        )
    assert (Path(store.root) / "sweeps/two/study.journal").exists(), "what was found out stays"


def test_gc_keeps_what_is_planned_and_what_several_need(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    study = space.open_study(Path(store.path("sweeps/one")))
    study.enqueue_trial({"recover.iterations": 0, "evaluate.lr": 1e-3})
    keep = [store.path("sweeps/one"), store.path("sweeps/two")]
    code, lines, _ = command(capsys, "gc", store.root, "--yes", "--keep", *keep)
    assert code == 0 and "; 0, 0 bytes, were removed" in lines[-1] and len(lines) == 1


def test_gc_leaves_a_running_sweep_alone(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with store.alone("sweeps/two/driver.lock"):
        code, lines, _ = command(capsys, "gc", store.root, "--keep", store.path("sweeps/one"), "--yes")
    assert code == 0 and "sweeps/two is running: what it needs stays" in lines
    assert there(store) >= folders(*TRIALS["one"], *TRIALS["two"]) and len(lines) == 4  # (0, 1e-3) went


def test_gc_refuses_what_it_cannot_tell(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, kept = there(store), store.path("sweeps/one")
    other = Store(str(tmp_path / "other"))
    other.put("a", b"")
    for argv, why in (
        ((other.root, "--keep", kept), f"must be in the store {other.root}"),
        ((store.root, "--keep", store.path("sweeps/none")), "is not of a sweep"),
        ((store.root, "--keep", str(tmp_path / "none.yaml")), "no such file"),
    ):
        code, _, err = command(capsys, "gc", *argv, "--yes")
        assert code == 2 and why in err
    store.put("ladders/steps/table.md", b"")
    with store.alone("ladders/steps/driver.lock"):
        code, _, err = command(capsys, "gc", store.root, "--keep", kept, "--yes")
    assert code == 2 and "must have the file of the ladder steps, which is running" in err
    assert there(store) == before


def test_gc_keeps_the_rows_of_a_ladder_and_a_best_file(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, fields = Path(store.root).parent, tiny.CHANGES | {"evaluate.seeds": [0]}
    files: dict[str, dict[str, Any]] = {
        "ladder": {"name": "steps", "seeds": 2, "experiment": fields, "rows": {"a": {}}},
        "best": {"experiment": fields | {"recover.iterations": 2, "evaluate.lr": 5e-3}},
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content | {"runtime": {"store": store.root}}))
    with store.alone("sweeps/one/driver.lock"), store.alone("ladders/steps/driver.lock"):
        argv = [str(folder / f"{name}.yaml") for name in files]
        code, lines, err = command(capsys, "gc", store.root, "--keep", *argv, "--yes")
    assert (code, err) == (0, "") and folders((2, 5e-3), *TRIALS["one"]) <= there(store)
    assert "ladders/steps is running: what it needs stays" in lines
