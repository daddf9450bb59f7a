"""Names, completion, workers and the in-process mapper, on the smallest experiment that has every stage."""

import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from edc_ray import config
from edc_ray.artifacts import Damaged, Receipt, Store
from edc_ray.config import ConfigError, Experiment, NotThere, Relabel, Runtime, override, paths
from edc_ray.core import data, init, models, relabel
from edc_ray.pipeline import (
    COSTS,
    ENDS,
    STAGES,
    Progress,
    Task,
    Worker,
    arms,
    check,
    commit,
    ensure,
    facts,
    finish,
    graph,
    in_process,
    is_hit,
    manifest,
    missing,
    parents,
    plan,
    refitted,
    reports,
    skipped,
    tasks,
    units,
    whole,
    with_seed,
    worker,
)
from edc_ray.pipeline.pages import STORED, read_page, table_of, view_bytes

TINY = {
    "dataset.limit": 200, "dataset.size_px": 8, "split.val": 0.3,
    "squeeze.observers": ["convnet_w16_d2", "vgg5_w16"], "squeeze.epochs": 2, "statistics.shard_images": 64,
    "recover.iterations": 3, "recover.classes_per_group": 3,
    "relabel.batch_size": 4, "relabel.page_images": 8, "evaluate.student": "convnet_w16_d2",
    "evaluate.epochs": 4, "evaluate.reports": 4,
}  # fmt: skip
UNITS = {
    "ingest": ["all"],
    "squeeze": ["convnet_w16_d2", "vgg5_w16"],
    "statistics": ["shard-00000", "shard-00001", "shard-00002"],
    "init": ["classes-00000"],
    "recover": [f"groups-{i:05d}-{i:05d}" for i in range(4)],  # 3 + 3 + 3 + 1 classes
    "relabel": [f"page-{i:05d}" for i in range(6)],  # 4 epochs of 3 batches, 2 batches a page
    "evaluate": ["student"],
}
STORED_STAGES = [name for name in UNITS if name != "relabel"]  # labels are made inline unless streamed
INLINE, STREAM = Runtime(labels="inline"), Runtime(labels="stream")


def tiny(**changes: Any) -> Experiment:
    """TINY with changes; __ stands for the dot of a path."""
    return override(Experiment(), TINY | {path.replace("__", "."): value for path, value in changes.items()})


def run(
    experiment: Experiment, store: Store, runtime: Runtime = INLINE, upto: str = "evaluate"
) -> list[Task]:
    return ensure(experiment, store, runtime, in_process(store, runtime), upto=upto)


def by_stage(experiment: Experiment, upto: str = "evaluate") -> dict[str, Task]:
    return {task.stage: task for task in tasks(experiment, upto)}


def tensors(store: Store, task: Task, unit: str) -> dict[str, torch.Tensor]:
    return store.artifact(task.stage, task.key).read(unit)[0]


def same_bits(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def snapshot(store: Store) -> dict[str, tuple[int, int]]:
    """Every file with size and time."""
    found = {path: path.stat() for path in Path(store.root).rglob("*") if path.is_file()}
    return {
        str(path.relative_to(store.root)): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()
    }


def unit_file(store: Store, task: Task, unit: str) -> Path:
    return Path(store.root) / store.artifact(task.stage, task.key).units()[unit].path


def flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


class Counting:
    """The in-process mapper, and which units it was asked for."""

    def __init__(self, store: Store, runtime: Runtime = INLINE) -> None:
        self.ran: list[tuple[str, str]] = []
        self._mapper = in_process(store, runtime)

    def __call__(self, task: Task, units: Sequence[str]) -> Iterator[tuple[str, Progress | Receipt]]:
        self.ran += [(task.stage, unit) for unit in units]
        return self._mapper(task, units)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny experiment, run once; only to be read."""
    store = Store(str(tmp_path_factory.mktemp("finished")))
    run(tiny(), store)
    return store


@pytest.fixture
def done(finished: Store, store: Store) -> Store:
    """A copy of it, to be broken."""
    shutil.copytree(finished.root, store.root, dirs_exist_ok=True)
    return store


@pytest.fixture
def told_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Progress for every step."""
    monkeypatch.setattr(worker, "TELL_SECONDS", 0.0)


# --- names: a stage's key changes with what it reads and with nothing else ----------------------------------

INPUTS: dict[str, list[str]] = {
    "ingest": [], "squeeze": ["ingest"], "statistics": ["ingest", "squeeze"], "init": ["ingest"],
    "recover": ["squeeze", "statistics", "init"], "relabel": ["squeeze", "recover"],
    "evaluate": ["ingest", "recover", "relabel"],
}  # fmt: skip
READERS: dict[str, list[str]] = {  # the longest prefix of a path counts
    "dataset": ["ingest"], "dataset.path": [], "init.path": [],
    "split": ["squeeze", "statistics", "init"],
    "squeeze": ["squeeze"], "squeeze.weights": [], "statistics": ["statistics"], "init": ["init"],
    "recover": ["recover"], "relabel": ["relabel"],
    "evaluate": ["evaluate"], "evaluate.seeds": ["relabel", "evaluate"],
    "quirks.swap_class_patch": ["recover"], "quirks.double_conv_targets": ["recover"],
    "quirks.verifier_updates": ["recover"], "quirks.alphabetical_init": ["init"],
    "quirks.alrs_weights_only": ["evaluate"],
    "seed": ["squeeze", "statistics", "init", "recover"],
    "precision": ["squeeze", "statistics", "recover", "relabel", "evaluate"],
}  # fmt: skip
# Without the sections of ENDS, which have tests of their own.
FIELDS = [path for path in paths(Experiment) if path.partition(".")[0] not in ENDS]
OTHER = {
    "dataset.name": "parquet", "dataset.path": "elsewhere", "dataset.limit": 100,
    "squeeze.observers": ["vgg5_w16", "convnet_w16_d2"], "relabel.observers": ["vgg5_w16"],
    "evaluate.seeds": [1], "recover.betas": [0.5, 0.95],
    "dataset.classes": ["1", "0"], "squeeze.weights": "elsewhere", "squeeze.checkpoint_epoch": 1,
    "init.scorers": ["vgg5_w16"], "init.path": "elsewhere", "recover.observers": ["vgg5_w16"],
    "recover.observer_weights": [1.0, 2.0], "recover.matching.families": ["bn"],
    "relabel.observer_weights": [1.0, 2.0], "evaluate.milestones": [0.5], "evaluate.report_epochs": [2],
}  # fmt: skip


def with_descendants(stages: Sequence[str], experiment: Experiment) -> set[str]:
    found = set(stages)
    for stage, row in STAGES.items():
        if found & set(row.inputs(experiment)):
            found.add(stage)
    return found


def readers(path: str) -> list[str]:
    prefixes = [prefix for prefix in READERS if path == prefix or path.startswith(prefix + ".")]
    return READERS[max(prefixes, key=len)]


def another(path: str, experiment: Experiment) -> Any:
    """A legal value that the field does not have."""
    if path in OTHER:
        return OTHER[path]
    field, value = paths(Experiment)[path], attrgetter(path)(experiment)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return next((each for each in get_args(field.type) if each != value), value + "_2")
    low, high = field.metadata["low"], field.metadata["high"]
    if value is None:
        return 1 if int in get_args(field.type) else (low + (high if high is not None else low + 1)) / 2
    candidates = [value + 1, value / 2 if field.type is float else value - 1, high, low]
    return next(
        n for n in candidates if n is not None and n >= low and (high is None or n <= high) and n != value
    )


def activated(experiment: Experiment, path: str) -> Experiment:
    """The experiment with the siblings as the field needs them to have an effect."""
    section = path.rpartition(".")[0]
    needs = {
        f"{section}.{name}": value[0] if isinstance(value, tuple) else value
        for name, value in paths(Experiment)[path].metadata["when"].items()
    }
    return override(experiment, needs)


def keys(experiment: Experiment, content: str = "a") -> dict[str, str]:
    """Of every stage, for data of that content, which is not looked at."""
    found: dict[str, str] = {}
    for stage in STAGES:
        found[stage] = graph.key(stage, experiment, found, content if stage == "ingest" else None)
    return found


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {stage for stage in one if one[stage] != other[stage]}


@pytest.mark.parametrize("path", FIELDS)
def test_a_field_changes_the_keys_of_its_readers_and_their_descendants_only(path: str) -> None:
    base = activated(tiny(), path)
    other = override(base, {path: another(path, base)})
    assert other != base
    assert differing(keys(base), keys(other)) == with_descendants(readers(path), base)


@pytest.mark.parametrize("path", [path for path in FIELDS if paths(Experiment)[path].metadata["when"]])
def test_a_field_without_effect_changes_no_key(path: str) -> None:
    base, (needed, wanted) = tiny(), next(iter(paths(Experiment)[path].metadata["when"].items()))
    sibling = f"{path.rpartition('.')[0]}.{needed}"
    legal = wanted if isinstance(wanted, tuple) else (wanted,)
    if attrgetter(sibling)(base) in legal:
        choices = get_args(paths(Experiment)[sibling].type)
        numbers = {"augment.crop_min": 0.5, "group_images": 3, "ema_rate": 0.9, "report_epochs": [2]}
        names = {"mix": "none", "schedule": "constant", "kind": "noise", ".loss": "hard"}
        other = next((value for end, value in (numbers | names).items() if sibling.endswith(end)), None)
        other = other or next(choice for choice in choices if choice not in legal)
        base = override(base, {sibling: other})
    assert keys(base) == keys(override(base, {path: another(path, base)}))


def test_other_data_change_every_key() -> None:
    assert differing(keys(tiny(), "a"), keys(tiny(), "b")) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_raised_version_changes_the_stage_and_its_descendants(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(tiny())
    monkeypatch.setitem(STAGES, stage, replace(STAGES[stage], version=STAGES[stage].version + 1))
    assert differing(before, keys(tiny())) == with_descendants([stage], tiny())


def test_two_stages_that_read_the_same_have_different_keys() -> None:
    found = keys(tiny())
    assert len(set(found.values())) == len(found) == 7
    assert all(len(key) == 12 and int(key, 16) >= 0 for key in found.values())


def test_the_table_is_the_one_of_the_architecture() -> None:
    assert {name: list(row.inputs(tiny())) for name, row in STAGES.items()} == INPUTS
    declared = {path for row in STAGES.values() for path in row.reads(tiny())}
    assert declared == set(READERS) - {"dataset.path", "init.path", "squeeze.weights"}


NARROW: list[tuple[dict[str, Any], dict[str, list[str]], set[str], set[str]]] = [
    # changes; inputs that differ; fields that count no more; fields that count (of stages but ingest)
    ({"init.kind": "rded"}, {"init": ["ingest", "squeeze"]}, set(), {"precision", "init.mipc"}),
    ({"init.kind": "difficulty"}, {"init": ["ingest", "squeeze"]}, {"init.mipc"}, {"init.scorers"}),
    (
        {"recover.iterations": 0}, {"recover": ["init"]},
        {"statistics.patch", "recover.lr", "recover.classes_per_group", "quirks.swap_class_patch"},
        {"recover.iterations", "recover.format", "squeeze.lr", "relabel.observers"},
    ),
    (
        {"evaluate.loss": "hard"}, {"evaluate": ["ingest", "recover"]},
        {"relabel.observers", "relabel.teacher_bn"}, {"relabel.crop_min", "relabel.batch_size", "squeeze.lr"},
    ),
    (
        {"evaluate.loss": "hard", "recover.iterations": 0},
        {"evaluate": ["ingest", "recover"], "recover": ["init"]},
        {"squeeze.lr", "squeeze.observers", "statistics.patch", "relabel.observers", "recover.lr"},
        {"relabel.crop_min", "relabel.batch_size", "evaluate.lr", "init.ipc", "seed"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "inputs", "idle", "read"), NARROW)
def test_names_hold_only_what_the_experiment_uses(
    changes: dict[str, Any], inputs: dict[str, list[str]], idle: set[str], read: set[str]
) -> None:
    base = override(tiny(), changes)
    assert {name: list(row.inputs(base)) for name, row in STAGES.items()} == INPUTS | inputs
    found = {
        path: {t.key for t in tasks(override(base, {path: another(path, base)}))} for path in idle | read
    }
    key = tasks(base)[-1].key
    assert {path for path in found if key in found[path]} == idle


def test_hard_labels_on_initial_images_need_no_observers(store: Store) -> None:
    experiment = tiny(evaluate__loss="hard", recover__iterations=0, evaluate__seeds=[0, 1])
    assert [task.stage for task in tasks(experiment)] == ["ingest", "init", "recover", "evaluate", "evaluate"]
    assert [row.task.stage for row in plan(experiment, store, STREAM)] == [
        "ingest", "init", "recover", "evaluate", "evaluate",
    ]  # fmt: skip
    check(override(experiment, {"squeeze.weights": "nowhere"}))
    with pytest.raises(NotThere, match=r"squeeze\.weights"):
        check(override(experiment, {"squeeze.weights": "nowhere", "evaluate.loss": "mse"}))
    soft = plan(tiny(recover__iterations=0, recover__classes_per_group=10), store, STREAM)
    assert [row.task.stage for row in soft] == [stage for stage in STAGES if stage != "statistics"]
    assert [row.note for row in soft if row.task.stage == "recover"] == ["the initial images as they are"]


def spied(value: Any, seen: set[str], prefix: str = "") -> Any:
    """An equal config that notes the path of every field that is read."""
    names = {f.name for f in fields(value)}

    def look(self: Any, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name in names and not is_dataclass(found):
            seen.add(config.join(prefix, name))
        return found

    spy = type(type(value).__name__, (type(value),), {"__slots__": (), "__getattribute__": look})
    copy: Any = object.__new__(spy)
    for name in names:
        inner = getattr(value, name)
        path = config.join(prefix, name)
        object.__setattr__(copy, name, spied(inner, seen, path) if is_dataclass(inner) else inner)
    return copy


def ancestry(stage: str) -> set[str]:
    return {stage}.union(*(ancestry(name) for name in INPUTS[stage]))


# Together they make every field active; of each only the stages that differ are looked at.
VARIANTS: list[tuple[dict[str, Any], set[str]]] = [
    ({"recover.flatness.kind": "logits"}, set(STAGES)),
    ({"recover.flatness.kind": "sam"}, {"recover"}),
    ({"recover.matching.class_form": "local", "recover.format": "jpeg"}, {"recover"}),
    ({"statistics.conv_variance": "per_batch"}, {"statistics"}),
    ({"init.replacement": True}, {"init"}),
    ({"init.kind": "rded", "init.mipc": 5, "init.factor": 2}, {"init"}),
    ({"init.kind": "difficulty", "init.quantile": 0.5}, {"init"}),
    ({"evaluate.optimizer": "sgd", "evaluate.schedule": "ssrs", "evaluate.loss": "kl"}, {"evaluate"}),
    ({"evaluate.schedule": "multistep"}, {"evaluate"}),
    ({"evaluate.schedule": "alrs", "evaluate.report_epochs": [1]}, {"evaluate"}),
]


@pytest.mark.slow
def test_a_stage_reads_no_field_that_is_in_no_key_of_it_and_every_field_is_read(
    store: Store, tmp_path: Path
) -> None:
    """Else two different results would have one name; and a dead flag would have many."""
    used: set[str] = set()
    cheap = {"squeeze.epochs": 1, "evaluate.epochs": 1, "evaluate.reports": 1}
    for digit in range(10):
        (tmp_path / "start" / str(digit)).mkdir(parents=True)
        (tmp_path / "start" / str(digit) / "one.png").write_bytes(picture(digit))
    start: dict[str, Any] = {"init.kind": "folder", "init.path": str(tmp_path / "start")}
    for changes, watched_stages in [*VARIANTS, (start, {"init"})]:
        experiment = override(tiny(), cheap | changes)
        found = run(experiment, store, STREAM, upto=max(watched_stages, key=list(STAGES).index))
        for task in (task for task in found if task.stage in watched_stages):
            seen: set[str] = set()
            watched = replace(task, experiment=spied(experiment, seen))
            for unit in units(task, STREAM)[:1] + ["all"] * finish(task):
                assert isinstance(list(Worker(store, STREAM).run(watched, unit))[-1], Receipt)
            above = {task.stage, *dict(task.inputs)}
            declared = {path for stage in above for path in STAGES[stage].reads(experiment)}
            declared |= {"dataset.path", "init.path"}  # the content is in the key instead
            strange = {p for p in seen if not any(p == d or p.startswith(d + ".") for d in declared)}
            assert strange <= {"precision"}, f"{task.stage} reads {strange}"  # the worker sets it for all
            used |= seen
    assert used == set(FIELDS)


# --- tasks --------------------------------------------------------------------------------------------------


def test_tasks_are_unique_and_come_after_what_they_read() -> None:
    found = tasks(tiny(evaluate__seeds=[3, 1, 2]))
    assert len({(task.stage, task.key) for task in found}) == len(found)
    at = {(task.stage, task.key): i for i, task in enumerate(found)}
    for i, task in enumerate(found):
        direct = parents(task, found)
        assert [t.stage for t in direct] == INPUTS[task.stage]
        assert all(at[t.stage, t.key] < i for t in direct)
        assert {stage for stage, _ in task.inputs} == ancestry(task.stage) - {task.stage}
        assert all(pair in at for pair in task.inputs)
    seeds = [(task.stage, task.experiment.evaluate.seeds) for task in found[5:]]
    assert [task.stage for task in found[:5]] == ["ingest", "squeeze", "statistics", "init", "recover"]
    assert seeds == [(stage, (seed,)) for seed in (3, 1, 2) for stage in ("relabel", "evaluate")]


def test_tasks_have_the_keys_of_the_datasets_content() -> None:
    experiment = tiny()
    content = data.fingerprint(experiment.dataset)
    assert {stage: task.key for stage, task in by_stage(experiment).items()} == keys(experiment, content)


def test_tasks_upto_a_stage_are_that_stage_and_its_ancestors() -> None:
    for stage in STAGES:
        found = [task.stage for task in tasks(tiny(), upto=stage)]
        assert set(found) == ancestry(stage) and found[-1] == stage
    assert len(tasks(tiny(evaluate__seeds=[0, 1]), upto="recover")) == 5


def test_experiments_that_differ_in_evaluation_share_one_synthesis() -> None:
    every = [task for lr in (0.001, 0.002, 0.004) for task in tasks(tiny(evaluate__lr=lr))]
    assert len({(task.stage, task.key) for task in every}) == 6 + 3
    seeds = [task for seed in (0, 1) for task in tasks(tiny(evaluate__seeds=[seed]))]
    assert len({(task.stage, task.key) for task in seeds}) == 5 + 2 * 2


def test_a_task_is_small_and_survives_pickling() -> None:
    for task in tasks(tiny()):
        raw = pickle.dumps(task)
        assert pickle.loads(raw) == task and len(raw) < 4096
        assert (task.classes, task.fit, str(task)) == (10, 139, f"{task.stage}-{task.key}")


@pytest.mark.parametrize("stage", UNITS)
def test_units_are_known_before_anything_runs(stage: str) -> None:
    task = by_stage(tiny())[stage]
    assert units(task, INLINE) == UNITS[stage]
    assert finish(task) == (stage in ("squeeze", "statistics", "init", "recover"))


def test_groups_of_one_size_share_a_forward() -> None:
    """Never a ragged one: its moments could not be stacked."""
    task = by_stage(tiny())["recover"]
    for together, want in ((2, ["0-1", "2-2", "3-3"]), (3, ["0-2", "3-3"]), (9, ["0-2", "3-3"])):
        found = units(task, replace(INLINE, groups_per_forward=together))
        assert found == ["groups-{:05d}-{:05d}".format(*map(int, run.split("-"))) for run in want]
    one = by_stage(tiny(recover__classes_per_group=99))["recover"]
    assert units(one, INLINE) == ["groups-00000-00000"]


def test_labels_are_wanted_as_far_as_the_student_goes() -> None:
    task = by_stage(tiny())["relabel"]
    assert [len(units(task, STREAM, until)) for until in (0.01, 0.25, 0.26, 0.5, 0.75, 1.0, 2.0)] == [
        2, 2, 3, 3, 5, 6, 6,
    ]  # fmt: skip


# --- a whole run --------------------------------------------------------------------------------------------


def test_every_stage_is_committed_with_all_that_made_it(finished: Store) -> None:
    for task in tasks(tiny()):
        if skipped(task, INLINE):
            assert store_has_nothing(finished, task)
            continue
        made, row = manifest(task, finished), STAGES[task.stage]
        assert list(made["units"]) == sorted([*UNITS[task.stage], *["all"] * finish(task)])
        for unit, entry in made["units"].items():
            receipt = finished.artifact(task.stage, task.key).receipt(unit)
            assert entry == {k: getattr(receipt, k) for k in ("file", "sha256", "bytes", "meta")}
            assert receipt.meta["seconds"] >= 0 and receipt.meta["core_seconds"] >= 0
        for total in ("seconds", "core_seconds"):
            assert made[total] == pytest.approx(sum(e["meta"][total] for e in made["units"].values()))
        assert (made["stage"], made["key"], made["version"]) == (task.stage, task.key, row.version)
        assert made["inputs"] == dict(task.inputs) and set(made["reads"]) == set(row.reads(tiny()))
        assert {"at", "python", "torch", "numpy"} <= set(made["made"])
        assert config.load(Experiment, made["experiment"]) == task.experiment
        assert all({"host", "device", *COSTS} <= set(entry["meta"]) for entry in made["units"].values())
        assert config.load(Runtime, made["runtime"]) == INLINE
        assert not list((Path(finished.root) / str(task)).glob("checkpoints/*"))


def store_has_nothing(store: Store, task: Task) -> bool:
    return not (Path(store.root) / str(task)).exists()


def test_accuracies_say_on_which_split_they_were_read(finished: Store) -> None:
    found = by_stage(tiny())
    squeeze = facts(found["squeeze"], finished)
    assert set(squeeze["accuracy"]) == {"convnet_w16_d2", "vgg5_w16"}
    assert all(0 <= value <= 1 for value in (*squeeze["accuracy"].values(), squeeze["ensemble"]))
    assert (squeeze["split"], squeeze["judged"], squeeze["chance"]) == ("val", 61, 0.1)
    student = facts(found["evaluate"], finished)
    assert [at for at, _ in reports(found["evaluate"], finished)] == [250, 500, 750, 1000]
    assert student["accuracy"] == reports(found["evaluate"], finished)[-1][1]
    assert (student["split"], student["judged"], student["steps"]) == ("val", 61, 12)
    assert student["label_bytes"] == 4 * 10 * (2 * 10 + 29)
    images = facts(found["recover"], finished)
    assert (images["images"], images["bytes"]) == (10, 10 * 3 * 8 * 8)
    assert finished.read_lines("test_reads.jsonl") == []


def test_the_ensemble_is_the_mean_of_the_logits(finished: Store) -> None:
    task = by_stage(tiny())["squeeze"]
    parts = [tensors(finished, task, name)["logits"] for name in UNITS["squeeze"]]
    torch.testing.assert_close(tensors(finished, task, "all")["logits"], (parts[0] + parts[1]) / 2)


def test_the_second_run_is_all_hits_and_touches_nothing(done: Store) -> None:
    before, mapper, heard = snapshot(done), Counting(done), list[tuple[str, str, Any]]()
    ensure(tiny(), done, INLINE, mapper, lambda task, unit, item: heard.append((task.stage, unit, item)))
    assert heard == [(stage, "", None) for stage in STORED_STAGES]
    assert mapper.ran == [] and snapshot(done) == before


def test_a_listener_hears_every_unit_end(store: Store) -> None:
    heard: list[tuple[str, str]] = []

    def tell(task: Task, unit: str, item: Progress | Receipt | None) -> None:
        if isinstance(item, Receipt):
            assert item.unit == unit
            heard.append((task.stage, unit))

    ensure(tiny(), store, INLINE, in_process(store, INLINE), tell, upto="init")
    every = [(s, u) for s in ("ingest", "init") for u in UNITS[s] + ["all"] * (s == "init")]
    assert heard == every


def test_hits_of_another_experiment_are_used(done: Store) -> None:
    mapper = Counting(done)
    ensure(tiny(evaluate__lr=0.01), done, INLINE, mapper)
    assert mapper.ran == [("evaluate", "student")]


def test_several_seeds_are_several_students_of_the_same_images(done: Store) -> None:
    mapper = Counting(done)
    found = ensure(tiny(evaluate__seeds=[0, 1, 2]), done, INLINE, mapper)
    assert mapper.ran == [("evaluate", "student")] * 2
    students = [task for task in found if task.stage == "evaluate"]
    logits = [tensors(done, task, "student")["logits"] for task in students]
    assert not torch.equal(logits[0], logits[1]) and not torch.equal(logits[1], logits[2])


def test_inline_and_stored_labels_give_one_student(finished: Store, store: Store) -> None:
    run(tiny(), store, STREAM)
    found = by_stage(tiny())
    same_bits(tensors(store, found["evaluate"], "student"), tensors(finished, found["evaluate"], "student"))
    assert reports(found["evaluate"], store) == reports(found["evaluate"], finished)
    assert list(manifest(found["relabel"], store)["units"]) == UNITS["relabel"]
    assert store_has_nothing(finished, found["relabel"])


@pytest.mark.slow
def test_stored_labels_serve_students_of_other_lengths(store: Store) -> None:
    """One artifact that grows: its key knows no student."""
    run(tiny(evaluate__epochs=2, evaluate__reports=1), store, STREAM)
    mapper, task = Counting(store, STREAM), by_stage(tiny())["relabel"]
    assert not is_hit(task, store, STREAM) and missing(task, store, STREAM) == UNITS["relabel"][3:]
    assert is_hit(task, store, STREAM, until=0.5)
    ensure(tiny(), store, STREAM, mapper)
    assert mapper.ran == [("relabel", unit) for unit in UNITS["relabel"][3:]] + [("evaluate", "student")]
    assert is_hit(task, store, STREAM)


def test_groups_in_one_forward_differ_in_rounding_only(done: Store) -> None:
    task = by_stage(tiny())["recover"]
    want = tensors(done, task, "all")
    shutil.rmtree(Path(done.root) / str(task))
    run(tiny(), done, replace(INLINE, groups_per_forward=3), upto="recover")
    assert sorted(manifest(task, done)["units"]) == ["all", "groups-00000-00002", "groups-00003-00003"]
    got = tensors(done, task, "all")
    assert torch.equal(got["labels"], want["labels"])
    difference = (got["images"].int() - want["images"].int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.01


@pytest.mark.parametrize("per_group", [1, 3, 4, 10])
def test_images_are_class_major_for_any_cut_and_those_of_init_without_iterations(
    done: Store, per_group: int
) -> None:
    experiment = tiny(init__ipc=2, recover__iterations=0, recover__classes_per_group=per_group)
    found = {task.stage: task for task in run(experiment, done, upto="recover")}
    got, start = tensors(done, found["recover"], "all"), tensors(done, found["init"], "all")
    assert got["labels"].tolist() == [c for c in range(10) for _ in range(2)]
    same_bits(got, start)
    real = tensors(done, found["ingest"], "all")
    fit, _ = data.split(real["train_labels"], 0.3, 0)
    for image, label in zip(got["images"], got["labels"], strict=True):
        same = (real["train"][fit] == image).flatten(1).all(1)
        assert label in real["train_labels"][fit][same], "an image of its class, from the training part"


def test_observers_choose_initial_images_from_the_training_part(done: Store) -> None:
    """As core.init does with images of the training part, and with the observers that are named."""
    for scorers in (["vgg5_w16"], ["vgg5_w16", "convnet_w16_d2"]):
        experiment = tiny(init__kind="rded", init__mipc=8, init__factor=2, init__scorers=scorers, seed=0)
        found = {task.stage: task for task in run(experiment, done, upto="init")}
        raw, meta = done.artifact("ingest", found["ingest"].key).read("all")
        fit, _ = data.split(raw["train_labels"], 0.3, 0)
        images, labels = raw["train"][fit], raw["train_labels"][fit]
        nets = [models.build(name, 10, 8, 0).eval() for name in scorers]
        for name, net in zip(scorers, nets, strict=True):
            saved = tensors(done, found["squeeze"], name)
            net.load_state_dict({k.removeprefix("model."): v for k, v in saved.items() if k != "logits"})
        for label in range(10):
            one = images[labels == label]
            norm = (meta["mean"], meta["std"])
            score = partial(init.cross_entropies, nets, label, 8, norm, 1024)
            pool = init.Pool(len(one), one.__getitem__, score)
            want = init.class_images(experiment.init, pool, 0, label)
            assert torch.equal(tensors(done, found["init"], "all")["images"][label : label + 1], want)


def test_each_groups_images_are_its_own(finished: Store) -> None:
    """The whole is the groups in their order, and iterations moved them all."""
    found = by_stage(tiny())
    parts = [tensors(finished, found["recover"], unit)["images"] for unit in UNITS["recover"]]
    whole_, start = tensors(finished, found["recover"], "all"), tensors(finished, found["init"], "all")
    assert torch.equal(torch.cat(parts), whole_["images"]) and [len(part) for part in parts] == [3, 3, 3, 1]
    assert (whole_["images"] != start["images"]).flatten(1).any(1).all()


def test_nothing_held_out_is_judged_on_test_and_noted_once(store: Store) -> None:
    experiment = tiny(split__val=0.0)
    for _ in range(2):
        found = {task.stage: task for task in run(experiment, store)}
        lines = store.read_lines("test_reads.jsonl")
        assert [line["key"] for line in lines] == [found["squeeze"].key, found["evaluate"].key]
        assert all(line["dataset"] == "digits" and line["at"] and line["why"] for line in lines)
    assert facts(found["squeeze"], store)["split"] == facts(found["evaluate"], store)["split"] == "test"
    assert facts(found["evaluate"], store)["judged"] == 539
    assert all(task.fit == 200 for task in found.values())


def test_threads_are_the_runtimes_while_it_runs(done: Store) -> None:
    task, before = by_stage(tiny())["init"], torch.get_num_threads()
    items = Worker(done, replace(INLINE, threads=before + 1)).run(task, "classes-00000")
    next(items)
    assert torch.get_num_threads() == before + 1
    items.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before


# --- other datasets -----------------------------------------------------------------------------------------


def picture(index: int) -> bytes:
    raw = torch.randint(256, (10, 10, 3), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
    sink = io.BytesIO()
    Image.fromarray(raw.numpy()).save(sink, "png")
    return sink.getvalue()


def write_parquet(folder: Path, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for part, count in (("train", 12), ("test", 4)):
        images = [picture(first + i) for i in range(count)]
        table = pa.table({"image": images, "label": [i % 2 for i in range(count)]})
        pq.write_table(table, folder / f"{part}.parquet")


def write_image_folder(folder: Path, first: int = 0) -> None:
    for part, count in (("train", 12), ("test", 4)):
        for i in range(count):
            file = folder / part / "ab"[i % 2] / f"{i:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(first + i))


WRITERS: dict[str, Callable[..., None]] = {"parquet": write_parquet, "image_folder": write_image_folder}


def of_files(name: str, folder: Path) -> Experiment:
    changes = {"dataset.name": name, "dataset.path": str(folder), "dataset.limit": None}
    return override(tiny(squeeze__observers=["convnet_w16_d2"], evaluate__epochs=1), changes)


@pytest.mark.parametrize("name", WRITERS)
def test_files_run_end_to_end_and_their_content_is_in_every_key(
    name: str, tmp_path: Path, store: Store
) -> None:
    for folder, first in (("one", 0), ("copy", 0), ("other", 1)):
        WRITERS[name](tmp_path / folder, first)
    check(of_files(name, tmp_path / "one"))
    found = run(of_files(name, tmp_path / "one"), store)
    assert (found[0].classes, found[0].fit) == (2, 8)
    assert len(tensors(store, found[4], "all")["images"]) == 2
    mapper = Counting(store)
    ensure(of_files(name, tmp_path / "copy"), store, INLINE, mapper)
    assert mapper.ran == []
    other = tasks(of_files(name, tmp_path / "other"))
    assert not {task.key for task in found} & {task.key for task in other}


# --- interruptions ------------------------------------------------------------------------------------------


def interrupted(store: Store, runtime: Runtime, task: Task, unit: str) -> int:
    """Run a unit with a new worker for every item it yields; returns how many there were."""
    for workers in range(1, 100):
        items = Worker(store, runtime).run(task, unit)
        item = next(items)
        items.close()  # type: ignore[attr-defined]
        if isinstance(item, Receipt):
            return workers
    raise AssertionError("no end")


CASES = [
    ("squeeze", "convnet_w16_d2", "none", 3),
    pytest.param("squeeze", "vgg5_w16", "none", 3, marks=pytest.mark.slow),
    pytest.param("recover", "groups-00000-00000", "none", 4, marks=pytest.mark.slow),
    pytest.param("recover", "groups-00003-00003", "logits", 4, marks=pytest.mark.slow),
    ("recover", "groups-00001-00001", "sam", 4),
    ("evaluate", "student", "none", 13),
]


@pytest.mark.parametrize(("stage", "unit", "flatness", "yields"), CASES)
def test_interrupted_at_every_step_equals_uninterrupted(
    stage: str, unit: str, flatness: str, yields: int, done: Store, tmp_path: Path, told_all: None
) -> None:
    experiment = tiny(recover__flatness__kind=flatness)
    task = by_stage(experiment)[stage]
    run(experiment, done)
    other = Store(str(tmp_path / "other"))
    for each in tasks(experiment):
        if each.stage not in (stage, "relabel"):
            shutil.copytree(Path(done.root) / str(each), Path(other.root) / str(each))
    assert interrupted(other, replace(INLINE, checkpoint_seconds=0.0), task, unit) == yields
    same_bits(tensors(other, task, unit), tensors(done, task, unit))
    want = done.artifact(stage, task.key).read(unit)[1]
    got = other.artifact(stage, task.key).read(unit)[1]
    assert {k: v for k, v in got.items() if k not in COSTS} == {
        k: v for k, v in want.items() if k not in COSTS
    }
    assert not list((Path(other.root) / str(task) / "checkpoints").iterdir())


def test_a_student_of_stored_labels_can_be_interrupted_after_its_last_step(
    done: Store, told_all: None
) -> None:
    """When no page is left that it could ask for."""
    often, task = replace(STREAM, checkpoint_seconds=0.0), by_stage(tiny())["evaluate"]
    want = tensors(done, task, "student")
    run(tiny(), done, STREAM, upto="relabel")
    shutil.rmtree(Path(done.root) / str(task))
    assert interrupted(done, often, task, "student") == 13
    same_bits(tensors(done, task, "student"), want)


def test_without_a_checkpoint_a_unit_starts_again(done: Store, told_all: None) -> None:
    task, runtime = by_stage(tiny())["recover"], replace(INLINE, checkpoint_seconds=3600.0)
    want = tensors(done, task, "groups-00000-00000")
    shutil.rmtree(Path(done.root) / str(task))
    items = Worker(done, runtime).run(task, "groups-00000-00000")
    assert [next(items) for _ in range(2)] == [Progress(1, 3), Progress(2, 3)]
    items.close()  # type: ignore[attr-defined]
    assert store_has_nothing(done, task)
    assert len(list(Worker(done, runtime).run(task, "groups-00000-00000"))) == 4
    same_bits(tensors(done, task, "groups-00000-00000"), want)


def test_a_worker_that_is_kept_gives_the_bits_of_a_new_one(done: Store) -> None:
    """What it remembers of earlier units is no state: units in any order, and twice."""
    task = by_stage(tiny())["recover"]
    want = {unit: tensors(done, task, unit) for unit in UNITS["recover"]}
    shutil.rmtree(Path(done.root) / str(task))
    kept = Worker(done, INLINE)
    for unit in [*reversed(UNITS["recover"]), UNITS["recover"][2]]:
        list(kept.run(task, unit))
        same_bits(tensors(done, task, unit), want[unit])


@pytest.mark.parametrize("runtime", [INLINE, STREAM], ids=["inline", "stream"])
def test_a_student_stops_at_a_share_and_goes_on(done: Store, runtime: Runtime, told_all: None) -> None:
    found = by_stage(tiny())
    task, labels = found["evaluate"], found["relabel"]
    want, curve = tensors(done, task, "student"), reports(task, done)
    shutil.rmtree(Path(done.root) / str(task))
    mapper, artifact = in_process(done, runtime), done.artifact(task.stage, task.key)

    def label(until: float) -> int:
        wanted = missing(labels, done, runtime, until) if runtime is STREAM else []
        list(mapper(labels, wanted))
        return len(wanted)

    assert label(0.5) == (3 if runtime is STREAM else 0)
    for _ in range(2):  # also when it is there already
        items = list(Worker(done, runtime).run(task, "student", until=0.5))
        assert all(isinstance(item, Progress) for item in items)
        assert items[-1].reports == curve[:2]  # type: ignore[union-attr]
        assert artifact.units() == {} and artifact.manifest() is None
        assert artifact.load_checkpoint("student") is not None
        assert missing(task, done, runtime) == ["student"]
    assert label(1.0) == (3 if runtime is STREAM else 0)
    *_, last = Worker(done, runtime).run(task, "student")
    assert isinstance(last, Receipt) and artifact.load_checkpoint("student") is None
    commit(task, done, runtime)
    assert reports(task, done) == curve
    same_bits(tensors(done, task, "student"), want)


# --- lost and damaged ---------------------------------------------------------------------------------------


def test_a_run_that_was_killed_builds_only_what_is_missing(done: Store) -> None:
    found = by_stage(tiny())
    for stage in ("recover", "statistics"):
        (Path(done.root) / str(found[stage]) / "manifest.json").unlink()
    unit_file(done, found["recover"], "groups-00002-00002").unlink()
    unit_file(done, found["recover"], "all").unlink()
    mapper = Counting(done)
    ensure(tiny(), done, INLINE, mapper)
    assert mapper.ran == [("recover", "groups-00002-00002"), ("recover", "all")]
    assert manifest(found["statistics"], done) and manifest(found["recover"], done)


@pytest.mark.parametrize("stage", STORED_STAGES)
def test_a_stage_without_manifest_does_not_exist_and_its_units_are_kept(stage: str, done: Store) -> None:
    task, mapper = by_stage(tiny())[stage], Counting(done)
    before = snapshot(done)
    path = Path(done.root) / str(task) / "manifest.json"
    path.unlink()
    assert not is_hit(task, done, INLINE) and missing(task, done, INLINE) == []
    ensure(tiny(), done, INLINE, mapper)
    assert mapper.ran == [] and is_hit(task, done, INLINE)
    assert {f: s for f, s in snapshot(done).items() if not f.endswith(f"{task}/manifest.json")} == {
        f: s for f, s in before.items() if not f.endswith(f"{task}/manifest.json")
    }


READ_BY = [  # (stage, unit, a change that reads it, what is built)
    ("ingest", "all", {"init__seed": 1}, ["init", "recover", "evaluate"]),
    ("squeeze", "vgg5_w16", {"evaluate__lr": 0.01}, ["evaluate"]),
    ("statistics", "all", {"recover__lr": 0.01}, ["recover", "evaluate"]),
    ("init", "all", {"recover__lr": 0.01}, ["recover", "evaluate"]),
    ("recover", "all", {"evaluate__lr": 0.01}, ["evaluate"]),
]


@pytest.mark.parametrize("harm", ["damaged", pytest.param("gone", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("stage", "unit", "change", "built"),
    [
        pytest.param(*row, id=row[0], marks=() if row[0] in ("squeeze", "init") else pytest.mark.slow)
        for row in READ_BY
    ],
)
def test_a_bad_unit_is_found_when_it_is_read_and_built_again(
    stage: str, unit: str, change: dict[str, Any], built: list[str], harm: str, done: Store
) -> None:
    task, mapper = by_stage(tiny())[stage], Counting(done)
    want, path = tensors(done, task, unit), unit_file(done, task, unit)
    below = {name: state for name, state in snapshot(done).items() if str(task) not in name}
    if harm == "gone":
        path.unlink()
    else:
        flip_byte(path)
    ensure(tiny(**change), done, INLINE, mapper)
    assert mapper.ran.count((stage, unit)) == 1
    others = {name for name, each in mapper.ran if (name, each) != (stage, unit)}
    assert others == set(built), "nothing else of what was there is made again"
    same_bits(tensors(done, task, unit), want)
    assert is_hit(task, done, INLINE)
    assert below.items() <= snapshot(done).items()


def test_a_bad_part_is_found_when_it_is_folded(done: Store) -> None:
    task, mapper = by_stage(tiny())["recover"], Counting(done)
    flip_byte(unit_file(done, task, "groups-00001-00001"))
    for path in (unit_file(done, task, "all"), Path(done.root) / str(task) / "manifest.json"):
        path.unlink()
    ensure(tiny(), done, INLINE, mapper)
    assert mapper.ran == [("recover", "all"), ("recover", "groups-00001-00001"), ("recover", "all")]


def test_a_bad_manifest_is_written_again(done: Store) -> None:
    mapper = Counting(done)
    for task in (by_stage(tiny())[stage] for stage in ("recover", "evaluate")):
        (Path(done.root) / str(task) / "manifest.json").write_text("{")
    ensure(tiny(), done, INLINE, mapper)
    assert mapper.ran == [] and all(is_hit(t, done, INLINE) for t in tasks(tiny()) if t.stage != "relabel")


def test_a_disk_that_damages_everything_is_an_error(done: Store) -> None:
    """Not an endless loop."""

    def mapper(task: Task, units: Sequence[str]) -> Iterator[tuple[str, Progress | Receipt]]:
        raise Damaged(task.stage, task.key, "all", "somewhere", "has another checksum")
        yield

    with pytest.raises(Damaged, match="has another checksum"):
        ensure(tiny(evaluate__lr=0.01), done, INLINE, mapper)


# --- not finite ---------------------------------------------------------------------------------------------


def test_an_exploding_observer_is_named_with_its_epoch_and_what_was_finished_stays(store: Store) -> None:
    experiment, mapper = tiny(squeeze__lr=1e20), Counting(store)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"convnet_w16_d2 is not finite in epoch 0"):
            ensure(experiment, store, INLINE, mapper)
    assert mapper.ran == [("ingest", "all"), *[("squeeze", unit) for unit in UNITS["squeeze"]] * 2]
    assert is_hit(by_stage(experiment)["ingest"], store, INLINE)


def test_exploding_images_are_named_with_group_and_iteration(done: Store) -> None:
    with pytest.raises(FloatingPointError, match=r"group 0 is not finite at iteration 0"):
        run(tiny(recover__matching__weight=1e38, recover__matching__first_multiplier=1e38), done)


@pytest.mark.parametrize("page_images", [8, 2048], ids=["many pages", "one page"])
def test_an_exploding_student_never_passes(done: Store, page_images: int) -> None:
    """Also when its only page of labels is never read to the end."""
    experiment = tiny(evaluate__lr=1e20, relabel__page_images=page_images)
    with pytest.raises(
        FloatingPointError, match=r"student.* not finite|of the student at step 3 are not finite"
    ):
        run(experiment, done)
    assert not is_hit(by_stage(experiment)["evaluate"], done, INLINE)


# --- before anything runs -----------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str, object, str]] = [
    ({"dataset.name": "digit"}, "dataset.name", "digit", "did you mean digits?"),
    (
        {"squeeze.observers": ["convnet_w16_d2", "vgg5"]},
        "squeeze.observers.1",
        "vgg5",
        "did you mean vgg5_w16",
    ),
    ({"evaluate.student": "resnet81"}, "evaluate.student", "resnet81", "did you mean resnet18"),
    ({"recover.matching.loss": "l2_square"}, "recover.matching.loss", "l2_square", "did you mean l2_squared"),
    ({"relabel.mix": "cutmx"}, "relabel.mix", "cutmx", "did you mean cutmix?"),
    (
        {"relabel.teacher_bn": "batch", "relabel.observers": ["convnet_w16_d2"]},
        "relabel.teacher_bn",
        "batch",
        "no BatchNorm in convnet_w16_d2",
    ),
    ({"evaluate.loss": "MSE"}, "evaluate.loss", "MSE", "legal: cosine, dist, hard, kl, mse"),
    ({"evaluate.schedule": "Linear"}, "evaluate.schedule", "Linear", "did you mean linear?"),
    ({"init.kind": "reel"}, "init.kind", "reel", "did you mean real?"),
    ({"init.ipc": 500}, "init.ipc", 500, "must be <= 12: the smallest class keeps 12 training images"),
    (
        {"init.kind": "rded", "init.factor": 2, "init.ipc": 4},
        "init.ipc",
        4,
        "must be <= 3: each image is made of init.factor^2 = 4 of the 12 that are scored",
    ),
    (
        {"init.kind": "rded", "init.factor": 2, "init.mipc": 3},
        "init.ipc",
        1,
        "init.mipc = 3, the smallest class",
    ),
    ({"init.kind": "difficulty", "init.replacement": True, "init.ipc": 13}, "init.ipc", 13, "must be <= 12"),
    ({"dataset.limit": 5}, "init.ipc", 1, "must be <= 0: the smallest class keeps 0"),
    ({"split.val": 0.9, "dataset.limit": 20}, "init.ipc", 1, "must be <= 0"),
    ({"dataset.path": "x"}, "dataset.path", "x", "must be null"),
    ({"dataset.name": "parquet"}, "dataset.path", None, "no such folder"),
    ({"dataset.name": "parquet", "dataset.path": "/nowhere"}, "dataset.path", "/nowhere", "no such folder"),
    (
        {"dataset.name": "image_folder", "dataset.path": "/nowhere"},
        "dataset.path",
        "/nowhere",
        "train/CLASS/",
    ),
    ({"evaluate.student": "too_deep"}, "dataset.size_px", 8, "must be >= 32 px"),
    ({"squeeze.observers": ["vgg5_w16", "flat"]}, "squeeze.observers.1", "flat", "there is nothing to match"),
    ({"evaluate.student": "short"}, "evaluate.student", "short", "must give (2, 10)"),
    ({"evaluate.student": "timm/resnet_18"}, "evaluate.student", "timm/resnet_18", "did you mean timm/"),
    ({"squeeze.weights": "timm"}, "squeeze.weights", "timm", "needs observers named timm/NAME"),
]


@pytest.mark.parametrize(
    ("changes", "path", "value", "legal"), REFUSED, ids=[next(iter(row[0])) for row in REFUSED]
)
def test_what_the_tables_do_not_allow_is_refused_before_anything_runs(
    changes: dict[str, Any],
    path: str,
    value: object,
    legal: str,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(models.MODELS, "too_deep", partial(models.small._convnet, width=4, depth=5))
    for name, lacks in (("flat", 0), ("short", 1)):
        flat = partial(lambda less, k, s: nn.Sequential(nn.Flatten(), nn.Linear(3 * s * s, k - less)), lacks)
        monkeypatch.setitem(models.MODELS, name, flat)
    experiment = override(tiny(), changes)
    with pytest.raises(ConfigError) as caught:
        check(experiment)
    error = caught.value
    assert (error.path, error.value) == (path, value) and legal in error.legal
    assert snapshot(store) == {}


def test_the_largest_legal_ipc_runs(store: Store) -> None:
    experiment = tiny(init__ipc=12)
    check(experiment)
    task = run(experiment, store, upto="init")[-1]
    assert len(tensors(store, task, "all")["images"]) == 120


def test_the_plan_says_what_is_there_and_writes_nothing(done: Store, tmp_path: Path) -> None:
    empty = Store(str(tmp_path / "empty"))
    before = plan(tiny(), empty, STREAM)
    assert [row.task.stage for row in before] == list(UNITS)
    assert all((row.hit, row.missing) == (False, row.units) for row in before)
    assert [row.units for row in before] == [len(names) for names in UNITS.values()]
    assert not Path(empty.root).exists()
    files = snapshot(done)
    after = {row.task.stage: row for row in plan(tiny(), done, INLINE)}
    assert [stage for stage, row in after.items() if row.hit] == STORED_STAGES
    assert all(row.missing == 0 for row in after.values()) and "inline" in after["relabel"].note
    task = by_stage(tiny())["recover"]
    (Path(done.root) / str(task) / "manifest.json").unlink()
    unit_file(done, task, "groups-00000-00000").unlink()
    row = next(row for row in plan(tiny(), done, INLINE) if row.task == task)
    assert (row.hit, row.units, row.missing) == (False, 4, 1)
    assert snapshot(done).keys() < files.keys()


def test_the_plan_says_where_there_is_nothing_to_shard(store: Store) -> None:
    notes = {row.task.stage: row.note for row in plan(tiny(recover__classes_per_group=10), store, STREAM)}
    assert "one group" in notes["recover"] and "recover.classes_per_group" in notes["recover"]
    assert not any(row.note for row in plan(tiny(), store, STREAM))


# --- baselines ----------------------------------------------------------------------------------------------


def test_the_arms_of_a_claim_share_the_recipe() -> None:
    found = arms(tiny())
    assert list(found) == ["condensed", "random_real", "t0"] and found["condensed"] == tiny()
    for name in ("random_real", "t0"):
        alike = override(found[name], {"recover.iterations": 3, "init.seed": 0})
        assert alike == tiny() and found[name].recover.iterations == 0
    assert found["t0"].init == tiny().init and found["random_real"].init.seed >= 500_000
    assert list(arms(tiny(recover__iterations=0))) == ["condensed", "random_real"], "t0 is the same thing"
    noise = arms(tiny(init__kind="noise"))
    assert (noise["random_real"].init.kind, noise["t0"].init.kind) == ("real", "noise")


def test_a_repetition_shares_the_observers_and_a_refit_does_not() -> None:
    base = tiny()
    again = differing(keys(base), keys(with_seed(base, 7)))
    assert again == {"init", "recover", "relabel", "evaluate"}
    assert refitted(base).split.val == 0 and "squeeze" in differing(keys(base), keys(refitted(base)))


def test_the_student_on_all_data_is_trained_as_an_observer_where_that_has_a_recipe() -> None:
    chosen = {f"{section}.{name}": ["vgg5_w16"] for section, name in (
        ("relabel", "observers"), ("recover", "observers"), ("init", "scorers"),
    )}  # fmt: skip
    weighted = chosen | {"relabel.observer_weights": [2.0], "recover.observer_weights": [2.0]}
    given = {"squeeze.weights": "folder", "squeeze.checkpoint_epoch": 1}
    found = whole(override(tiny(), weighted | given))
    assert found and found.squeeze == replace(tiny().squeeze, observers=("convnet_w16_d2",), weights="folder")
    other = whole(override(tiny(), weighted | given | {"evaluate.student": "resnet10_w16"}))
    assert other and other.squeeze == replace(tiny().squeeze, observers=("resnet10_w16",))
    untrained = {"squeeze.weights": "folder", "squeeze.epochs": 0}
    assert whole(override(tiny(), untrained)) is not None  # an observer itself, as it is
    assert whole(override(tiny(), untrained | {"evaluate.student": "resnet10_w16"})) is None


# --- pages --------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    batch=st.integers(2, 12),
    images=st.integers(1, 30),
    page_images=st.integers(1, 40),
    classes=st.integers(1, 5),
    page=st.integers(0, 3),
    mix=st.sampled_from(["none", "cutmix", "mixup"]),
    ops=st.integers(0, 2),
)
def test_a_page_comes_back_as_it_was(
    batch: int, images: int, page_images: int, classes: int, page: int, mix: str, ops: int
) -> None:
    cfg = Relabel(batch_size=batch, page_images=page_images, mix=mix, randaugment_ops=ops)
    drawn = relabel.page_views(cfg, images, 1024, 0, page)
    rng = torch.Generator().manual_seed(page)
    logits = tuple(torch.randn(len(view.ids), classes, generator=rng).half() for view in drawn)
    made = relabel.Page(page * relabel.page_steps(cfg), drawn, logits)
    table = table_of(made)
    got = read_page(table)
    assert got.first_step == made.first_step and table.num_rows == relabel.page_steps(cfg)
    for one, other in zip((*got.views, *got.logits), (*drawn, *logits), strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == torch.float16 and torch.equal(one, other)  # type: ignore[arg-type]
            continue
        for name in STORED:
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    count = sum(len(view.ids) for view in drawn)
    rows = table.drop_columns(["step"]).to_pylist()
    assert sum(len(value) for row in rows for value in row.values()) == count * (
        view_bytes(cfg) + 2 * classes
    )


class Listening(Store):
    """Knows what it was asked for."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def get(self, relpath: str) -> bytes | None:
        self.asked.append(relpath)
        return super().get(relpath)


def test_a_student_looks_once_for_all_its_pages(done: Store) -> None:
    """A look reads the manifest and lists the folder, and there may be thousands of pages."""
    run(tiny(), done, STREAM, upto="relabel")
    found, store = by_stage(tiny()), Listening(done.root)
    store.artifact("evaluate", found["evaluate"].key).remove("student")
    list(Worker(store, STREAM).run(found["evaluate"], "student"))
    asked = [path for path in store.asked if path.startswith(f"relabel-{found['relabel'].key}/")]
    assert asked[0].endswith("/manifest.json")
    assert [path.split("/")[1].split(".")[0] for path in asked[1:]] == UNITS["relabel"]


def test_a_damaged_page_is_found_by_its_student(done: Store) -> None:
    found, mapper = by_stage(tiny()), Counting(done, STREAM)
    run(tiny(), done, STREAM, upto="relabel")
    shutil.rmtree(Path(done.root) / str(found["evaluate"]))
    flip_byte(unit_file(done, found["relabel"], "page-00004"))
    ensure(tiny(), done, STREAM, mapper)
    assert mapper.ran == [("evaluate", "student"), ("relabel", "page-00004"), ("evaluate", "student")]
    assert json.loads((Path(done.root) / "store.json").read_text()) == {"schema": 1}
