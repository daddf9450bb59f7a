"""What a plan takes: rates of a store's own manifests, scaled to what is to do; else unknown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edc_ray import cli, estimate, pipeline, specs
from edc_ray.artifacts import Store, every_artifact
from edc_ray.config import Budget, ConfigError, Confirm, Experiment, Knob, Runtime, Sweep
from edc_ray.pipeline import Task
from edc_ray.rates import Rates, duration, planned, size
from tests import tiny

INLINE, STREAM = tiny.runtime(), tiny.runtime(labels="stream")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(str(tmp_path_factory.mktemp("estimate") / "store"))
    tiny.in_process(made, tiny.experiment(evaluate__seeds=[0]), STREAM)
    return made


def by_stage(exp: Experiment) -> dict[str, Task]:
    return {task.stage: task for task in pipeline.tasks(exp)}


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (99, "99 s"), (100, "1.7 min"), (7200, "2 h"), (1e6, "12 days")]
)
def test_duration(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 bytes"), (100, "0.1 kB"), (6.04e9, "6 GB"), (1e15, "1e+03 TB")]
)
def test_size(count: float, told: str) -> None:
    assert size(count) == told


# --- rates --------------------------------------------------------------------------------------------------


def test_what_was_made_has_the_work_that_was_planned(store: Store) -> None:
    """Each manifest's work against the task it was made for: two ways to the same number."""
    rates = Rates(store)
    for stage, task in by_stage(tiny.experiment(evaluate__seeds=[0])).items():
        rate = rates.of(task, STREAM, "cpu")
        assert rate is not None and rate.work == planned(task, STREAM) > 0, stage
        manifest = store.artifact(task.stage, task.key).manifest()
        assert manifest is not None and rate.units == len(manifest["units"])
        assert rate.seconds == pytest.approx(manifest["seconds"]) and rate.memory > 2**20
        assert rate.bytes == sum(unit["bytes"] for unit in manifest["units"].values())
    assert rates.peak("cpu") > 2**20 and rates.peak("H200") == 0


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("recover", {"recover__flatness__kind": "sam"}), ("recover", {"squeeze__observers": ["vgg5_w16"]}),
        ("recover", {"dataset__limit": 100}), ("evaluate", {"evaluate__student": "vgg5_w16"}),
    ],
)  # fmt: skip
def test_rates_of_other_work_do_not_count(store: Store, stage: str, changes: dict[str, Any]) -> None:
    assert Rates(store).of(by_stage(tiny.experiment(**changes))[stage], STREAM, "cpu") is None


def test_rates_are_of_a_kind_of_device_and_of_labels(store: Store) -> None:
    rates, task = Rates(store), by_stage(tiny.experiment())["evaluate"]
    assert rates.of(task, STREAM, "") is None and rates.of(task, STREAM, "H200") is None
    assert rates.of(task, INLINE, "cpu") is None  # then the student labels too
    assert rates.devices(task, STREAM) == ["cpu"]


def test_an_estimate_is_in_proportion(store: Store) -> None:
    """Ten times the iterations and half the images of a known artifact: five times its seconds."""
    known = by_stage(tiny.experiment(evaluate__seeds=[0]))["recover"]
    more = by_stage(tiny.experiment(recover__iterations=30, init__ipc=2))["recover"]
    rate = Rates(store).of(known, STREAM, "cpu")
    assert rate is not None
    items = [estimate.Item(more, 0.5, 2.0), estimate.Item(more, 1.0, 4.0)]
    row = estimate.rows(items, Rates(store), STREAM, "cpu")["recover"]
    assert row.seconds == pytest.approx(1.5 * 10 * 2 * rate.seconds) and (row.units, row.unknown) == (6, 0)
    assert estimate.image_bytes(items) == 1.5 * 10 * 2 * 3 * 8 * 8


def test_the_bytes_of_labels_are_those_that_the_students_tell(store: Store) -> None:
    task = by_stage(tiny.experiment(evaluate__seeds=[0]))["evaluate"]
    labels = by_stage(tiny.experiment(evaluate__seeds=[0]))["relabel"]
    assert estimate.label_bytes([estimate.Item(labels, 1, 3)]) == pipeline.facts(task, store)["label_bytes"]


# --- what is to do ------------------------------------------------------------------------------------------


def test_an_experiment_has_its_baselines_to_do(store: Store) -> None:
    exp, settings = tiny.experiment(evaluate__seeds=[0]), Sweep(runtime=replace(STREAM, store=store.root))
    units = {stage: 0.0 for stage in pipeline.STAGES}
    for item in estimate.todo(settings, exp, store):
        units[item.task.stage] += item.units
    assert (units["ingest"], units["statistics"], units["evaluate"]) == (0, 0, 2)  # of random_real and t0
    assert units["squeeze"] == 2  # the student on the whole data, and its fold


def test_half_an_artifact_is_half_the_work(tmp_path: Path) -> None:
    store, exp = Store(str(tmp_path)), tiny.experiment(evaluate__seeds=[0])
    pipeline.ensure(exp, store, STREAM, pipeline.in_process(store, STREAM), upto="squeeze")
    task = pipeline.tasks(exp, "statistics")[-1]
    list(pipeline.in_process(store, STREAM)(task, ["shard-00001"]))
    (item,) = (i for i in estimate.todo(Sweep(runtime=STREAM), exp, store) if i.task.stage == "statistics")
    assert (item.copies, item.units) == (0.5, 2.0)  # a shard and the fold


def test_a_sweep_has_its_trials_and_its_confirmation_to_do(store: Store) -> None:
    file = tiny.sweep_file(Path(store.root).parent, runtime__store=store.root, runtime__labels="stream")
    settings, base = specs.load_file(file)
    units = {stage: 0.0 for stage in pipeline.STAGES}
    for item in estimate.todo(settings, base, store):
        units[item.task.stage] += item.units
    # Trials; two seeds of three arms; the four recipes for random_real, as all trials share their images.
    assert units["evaluate"] == 4 + 2 * 3 + 4 and units["ingest"] == 0
    assert units["squeeze"] == 3 and units["statistics"] == 4  # refitted: nothing held out, so all anew


@pytest.mark.parametrize("files", [[], ["study.journal"]])
def test_a_sweep_that_died_before_its_study_has_all_to_do(tmp_path: Path, files: list[str]) -> None:
    """It has said that it is there; Optuna makes its file before the study."""
    settings, base = specs.load_file(tiny.sweep_file(tmp_path))
    store = Store(settings.runtime.store)
    before = estimate.todo(settings, base, store)
    for file in ("sweep.json", *files):
        store.put(f"sweeps/tiny/{file}", b"")
    assert estimate.todo(settings, base, store) == before != []


# --- lines --------------------------------------------------------------------------------------------------


def test_lines_say_what_is_known_and_what_is_not(store: Store) -> None:
    settings = Sweep(runtime=replace(STREAM, store=store.root))
    told = estimate.lines(settings, tiny.experiment(evaluate__seeds=[0], recover__iterations=30), store)
    assert told[0] == "estimate, with baselines:"
    stages = {line.split()[0]: line for line in told}
    assert stages["evaluate"].endswith("of a worker (measured on cpu, units: 1)")
    assert stages["recover"].endswith("units: 4); without rate: 4 units")  # of the two baselines
    assert any(line.startswith("together: ") and "with 2; without" in line for line in told)
    assert any(line.startswith("disk: ") and " are free there" in line for line in told)
    assert told[-1].startswith("peak memory of a worker: ") and told[-1].endswith("on cpu)")


def test_an_empty_store_knows_nothing(tmp_path: Path) -> None:
    told = estimate.lines(Sweep(), tiny.experiment(), Store(str(tmp_path)))
    assert all(line.endswith("no rate measured yet") for line in told if line.split()[0] in pipeline.STAGES)
    assert "together: unknown" in told and told[-1] == "peak memory of a worker: not measured yet"


# --- clusters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["8", "xH200", "0xH200", "8 H200", "8xH200;"])
def test_a_cluster_has_a_count_and_a_kind(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 8xH200"):
        estimate.parse_cluster(text)


@pytest.fixture
def measured(store: Store, tmp_path: Path) -> Store:
    """The store as two workers with half an H200 each would have left it: 36 seconds a unit of recover."""
    for artifact in every_artifact(store):
        manifest = artifact.manifest()
        assert manifest is not None
        manifest["runtime"]["gpus_per_worker"] = 0.5
        for unit in manifest["units"].values():
            unit["meta"] |= {"device": "NVIDIA H200", "seconds": 36.0 if artifact.stage == "recover" else 0.0}
        copy = Store(str(tmp_path)).artifact(artifact.stage, artifact.key)
        for file in artifact.units().values():
            data = store.get(file.path)
            assert data is not None
            copy.store.put(file.path, data)
        copy.commit(manifest)
    return Store(str(tmp_path))


def plan_of(store: Store, cluster: str, **runtime: Any) -> list[str]:
    more = {f"runtime__{name}": value for name, value in runtime.items()}
    knobs = {"search": {"recover.matching.weight": {"low": 1e-3, "high": 1, "log": True}}, "concurrent": 3}
    file = tiny.sweep_file(
        Path(store.root).parent, runtime__store=store.root, runtime__labels="stream",
        confirm={"seeds": 0}, budget={"trials": 10}, **knobs, **more,
    )  # fmt: skip
    settings, base = specs.load_file(file)
    return estimate.on_cluster(settings, base, store, cluster)


def test_a_cluster_and_what_limits_it(measured: Store) -> None:
    told = plan_of(measured, "2xH200", gpus_per_worker=0.5, workers=64)
    assert told[0] == (
        "on 2 x H200: 4 workers at once; the GPUs are the limit, 0.5 GPU each (runtime.gpus_per_worker); "
        "runtime.workers = 64"
    )
    rows = {
        line.split()[0]: line.split(None, 4)[1:] for line in told[2:] if line.split()[0] in pipeline.STAGES
    }
    # 10 syntheses of 3 groups and a fold, 36 s with half a GPU each
    assert rows["recover"] == ["40", "4", f"{40 * 18 / 3600:.2g}", "the workers"]
    assert rows["evaluate"][:2] == ["10", "3"] and rows["evaluate"][3] == "3 trials at once (concurrent = 3)"
    assert rows["relabel"][1:] == ["1", "0", "runtime.label_workers = 1"]
    assert "ingest" not in rows  # there already
    assert told[-2] == "together: 0.2 GPU-hours that are known, so at least 6 min on 2 GPUs"


def test_more_gpus_than_workers(measured: Store) -> None:
    told = plan_of(measured, "8xH200", gpus_per_worker=2.0, workers=3)
    assert "on 8 x H200: 3 workers at once; runtime.workers = 3 is the limit, of the 4 that" in told[0]


def test_other_gpus_are_unknown(measured: Store) -> None:
    told = plan_of(measured, "8xA100", gpus_per_worker=1.0, workers=8)
    assert not any(line.startswith("together") for line in told)
    (unknown,) = (line for line in told if line.startswith("unknown: "))
    assert unknown.endswith("no rate measured on A100 in this store; there are rates of NVIDIA H200")


def test_without_gpus_the_plan_is_of_processors(store: Store) -> None:
    told = plan_of(store, "8xH200", workers=8)
    assert told[0].endswith("no GPU is used, as runtime.gpus_per_worker = 0")
    assert told[1].startswith("estimate") and told[-1].endswith("on cpu)")


def test_the_command(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny.sweep_file(Path(store.root).parent, runtime__store=store.root, runtime__gpus_per_worker=1.0)
    before = sorted(str(path) for path in Path(store.root).rglob("*"))
    assert cli.main(["plan", "--cluster", "8xH200", file]) == 0
    assert "on 8 x H200: 1 workers at once; runtime.workers = 1 is the limit" in capsys.readouterr().out
    assert cli.main(["plan", "--cluster", "many", file]) == 2
    assert sorted(str(path) for path in Path(store.root).rglob("*")) == before


def test_the_best_again_and_more_students_are_part_of_the_confirmation(store: Store) -> None:
    base = tiny.experiment()
    search = {"evaluate.lr": Knob(low=1e-3, high=1e-2)}
    runtime = replace(Runtime(), store=store.path())

    def units(stage: str, **confirm: int) -> float:
        sweep = Sweep(search=search, budget=Budget(trials=1), confirm=Confirm(**confirm), runtime=runtime)
        return sum(item.units for item in estimate.todo(sweep, base, store) if item.task.stage == stage)

    plain, again = units("evaluate", seeds=3), units("evaluate", seeds=3, best=4)
    assert again - plain == 3 * 4 and units("evaluate", seeds=3, students=3) - plain == 3 * 2
    assert units("squeeze", seeds=3, best=4) == units("squeeze", seeds=3)
    assert (
        units("recover", seeds=3, students=3) == units("recover", seeds=3) < units("recover", seeds=3, best=2)
    )
