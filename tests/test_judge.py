"""Labels and students through their stages: every field counts, and which accuracy does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edc_ray import report
from edc_ray.artifacts import Receipt, Store
from edc_ray.config import Experiment, Runtime, override
from edc_ray.core.fit import top1
from edc_ray.pipeline import Worker, arms, ensure, facts, in_process, refitted, tasks, whole
from tests.test_pipeline import TINY

INLINE, STREAM = Runtime(labels="inline", device="cpu"), Runtime(labels="stream", device="cpu")
QUICK = TINY | {
    "squeeze.epochs": 1,
    "evaluate.epochs": 2,
    "evaluate.reports": 1,
    "evaluate.lr": 0.01,
    "evaluate.student": "vgg5_w16",
}


def quick(**changes: Any) -> Experiment:
    """Two epochs of three steps; __ stands for the dot of a path."""
    return override(Experiment(), QUICK | {path.replace("__", "."): v for path, v in changes.items()})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With observers and condensed images; students are added."""
    store = Store(str(tmp_path_factory.mktemp("judge")))
    ensure(quick(), store, INLINE, in_process(store, INLINE), upto="recover")
    return store


Judged = tuple[Tensor, dict[str, Any]]  # the student's logits, and the facts about it
Judge = Callable[..., Judged]


@pytest.fixture(scope="module")
def judge(store: Store) -> Judge:
    worker = Worker(store, INLINE)

    def run(**changes: Any) -> Judged:
        task = tasks(quick(**changes))[-1]
        *_, last = worker.run(task, "student")
        assert isinstance(last, Receipt)
        tensors, meta = store.artifact(task.stage, task.key).read("student")
        return tensors["logits"], meta

    return run


SGD, MULTISTEP = {"evaluate__optimizer": "sgd"}, {"evaluate__schedule": "multistep"}
EFFECTS: list[tuple[dict[str, Any], str, Any]] = [  # (what makes the field active, field, another value)
    ({}, "relabel__observers", ["vgg5_w16"]),
    ({}, "relabel__observer_weights", [1, 3]),
    ({}, "relabel__teacher_bn", "batch"),
    ({}, "relabel__batch_size", 5),
    ({}, "relabel__randaugment_ops", 1),
    ({"relabel__randaugment_ops": 2}, "relabel__randaugment_magnitude", 14),
    ({}, "relabel__crop_min", 0.9),
    ({}, "relabel__flip", False),
    ({}, "relabel__mix", "mixup"),
    ({}, "relabel__mix", "none"),
    ({}, "relabel__mix_probability", 0.2),
    ({}, "evaluate__student", "convnet_w16_d2"),
    ({}, "evaluate__epochs", 3),
    ({}, "evaluate__optimizer", "sgd"),
    ({}, "evaluate__lr", 0.02),
    (SGD, "evaluate__momentum", 0.5),
    ({}, "evaluate__weight_decay", 0.5),
    *[({}, "evaluate__schedule", name) for name in ("linear", "constant", "multistep")],
    ({}, "evaluate__zeta", 1.0),
    ({"evaluate__schedule": "ssrs"}, "evaluate__fall", 0.3),
    (MULTISTEP | {"evaluate__milestones": [0.5]}, "evaluate__gamma", 0.1),
    (MULTISTEP, "evaluate__milestones", [0.5]),
    *[({}, "evaluate__loss", name) for name in ("kl", "cosine", "dist", "hard")],
    ({"evaluate__loss": "kl"}, "evaluate__temperature", 2.0),
    ({}, "evaluate__ce_weight", 0.5),
    ({"evaluate__ce_weight": 0.5}, "evaluate__ce_label", "mixed"),
    ({}, "evaluate__ema_horizon", 0.5),
    ({}, "evaluate__ema_rate", 0.9),
    ({"evaluate__ema_rate": 0.9}, "evaluate__ema_bias_correction", False),
    ({"evaluate__ema_rate": 0.9}, "evaluate__ema_buffers", False),
    ({}, "evaluate__seeds", [1]),
]


@pytest.mark.slow
def test_every_field_changes_the_student(judge: Judge) -> None:
    known: dict[str, Tensor] = {}
    for active, path, value in EFFECTS:
        if str(active) not in known:
            known[str(active)] = judge(**active)[0]
        found = judge(**active, **{path: value})[0]
        assert not torch.equal(found, known[str(active)]), f"{path} = {value} does nothing"


# --- which accuracy counts ----------------------------------------------------------------------------------

UNSTEADY = {
    "evaluate__epochs": 8, "evaluate__reports": 8, "evaluate__ema_horizon": 0.0, "evaluate__lr": 0.05,
    "evaluate__seeds": [1],
}  # fmt: skip


@pytest.mark.slow
def test_the_best_on_val_counts_where_it_is_asked_for(judge: Judge, store: Store) -> None:
    """With its logits; the curve is what would count if the training ended there."""
    last_logits, last = judge(**UNSTEADY)
    raw = [value for _, value in last["reports"]]
    assert last["accuracy"] == raw[-1] < max(raw), "a case that tells the two apart"
    logits, best = judge(**UNSTEADY, evaluate__select="best_val")
    assert best["accuracy"] == max(raw)
    assert [value for _, value in best["reports"]] == [max(raw[: i + 1]) for i in range(8)]
    labels = Worker(store, INLINE)._inputs.judge(tasks(quick())[-1]).labels
    assert top1(logits, labels) == max(raw) and top1(last_logits, labels) == raw[-1]


@pytest.mark.slow
def test_the_best_on_val_survives_an_interruption(judge: Judge, store: Store) -> None:
    """Also when it was read before it."""
    want, told = judge(**UNSTEADY, evaluate__select="best_val")
    best = next(at for at, value in told["reports"] if value == told["accuracy"])
    task = tasks(quick(**UNSTEADY, evaluate__select="best_val"))[-1]
    artifact = store.artifact(task.stage, task.key)
    artifact.remove("student")
    for until in (best / 1000, 1 - 1e-3, 1.0):
        *_, last = Worker(store, INLINE).run(task, "student", until)
    assert isinstance(last, Receipt)
    logits, again = artifact.read("student")
    assert torch.equal(logits["logits"], want) and again["reports"] == told["reports"]


def test_a_refit_reads_test_once_and_selects_nothing() -> None:
    """best_val is refused where nothing is held out; explicit epochs would be as many looks at test."""
    refit = refitted(quick(evaluate__select="best_val", evaluate__report_epochs=[1, 2]))
    assert (refit.evaluate.select, refit.evaluate.report_epochs, refit.evaluate.reports) == ("last", None, 1)


@pytest.mark.slow
def test_a_maximum_over_looks_at_test_is_only_a_diagnostic(tmp_path: Path) -> None:
    """B25: the official accuracy is the maximum over the reports on test; here the last one is."""
    store, changes = Store(str(tmp_path)), UNSTEADY | {"split__val": 0.0, "recover__iterations": 0}
    mapper = in_process(store, INLINE)
    experiment = quick(**changes, evaluate__report_epochs=[2, 4, 5])
    for arm in arms(experiment).values():
        ensure(arm, store, INLINE, mapper)
    student = whole(experiment)
    assert student
    ensure(student, store, INLINE, mapper, upto="squeeze")
    chosen = facts(tasks(experiment)[-1], store)
    read = [value for _, value in chosen["reports"]]
    assert [at for at, _ in chosen["reports"]] == [250, 500, 625, 1000]
    assert chosen["split"] == "test" and chosen["maximum_over_reports_on_test"] == max(read)
    said = "\n".join(report.condensed(experiment, store)).split("diagnostic, not an accuracy")
    assert f"{100 * max(read):.2f}" in said[1]
    evenly = facts(ensure(quick(**changes), store, INLINE, mapper)[-1], store)
    assert "maximum_over_reports_on_test" not in evenly
    assert chosen["accuracy"] == read[-1] == evenly["accuracy"]


# --- hard labels --------------------------------------------------------------------------------------------


def test_hard_labels_need_no_observer_and_no_label(store: Store, judge: Judge) -> None:
    changes = {"evaluate__loss": "hard", "recover__iterations": 0}
    assert [task.stage for task in tasks(quick(**changes))] == ["ingest", "init", "recover", "evaluate"]
    ensure(quick(**changes), store, INLINE, in_process(store, INLINE), upto="recover")
    logits, told = judge(**changes)
    assert told["label_bytes"] == 0 and logits.isfinite().all()
    assert not torch.equal(judge(**changes, relabel__mix="none")[0], logits), "views are drawn all the same"
    assert torch.equal(judge(**changes, evaluate__ce_weight=0.3)[0], logits)


@pytest.mark.parametrize("way", [{"relabel__mix": "mixup"}, {"relabel__randaugment_ops": 2}])
def test_stored_labels_give_the_same_student(
    way: dict[str, Any], judge: Judge, tmp_path: Path, store: Store
) -> None:
    experiment = quick(**way, relabel__teacher_bn="batch", evaluate__ce_label="mixed")
    task = ensure(experiment, store, STREAM, in_process(store, STREAM))[-1]
    found = store.artifact(task.stage, task.key).read("student")[0]["logits"]
    store.artifact(task.stage, task.key).remove("student")
    want = judge(**way, relabel__teacher_bn="batch", evaluate__ce_label="mixed")[0]
    assert torch.equal(found, want)
