"""Statistics and recovery through their stages: every field counts, and units are what they should be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edc_ray.artifacts import Receipt, Store
from edc_ray.config import ConfigError, Experiment, Runtime, override
from edc_ray.core import stats
from edc_ray.pipeline import Worker, check, ensure, facts, in_process, plan, tasks, units
from edc_ray.pipeline.observe import moments_of
from tests.test_pipeline import TINY

INLINE = Runtime(labels="inline", device="cpu")
QUICK = TINY | {
    "squeeze.epochs": 1, "init.ipc": 3, "recover.iterations": 3, "recover.classes_per_group": 5,
    "recover.lr": 0.1, "recover.matching.weight": 1.0, "evaluate.epochs": 1, "evaluate.reports": 1,
}  # fmt: skip


def quick(**changes: Any) -> Experiment:
    """Two groups of 15 images, three iterations; __ stands for the dot of a path."""
    return override(Experiment(), QUICK | {path.replace("__", "."): v for path, v in changes.items()})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With observers, statistics and initial images; condensed ones are added."""
    store = Store(str(tmp_path_factory.mktemp("condense")))
    ensure(quick(), store, INLINE, in_process(store, INLINE), upto="recover")
    return store


Condense = Callable[..., Tensor]


@pytest.fixture(scope="module")
def condense(store: Store) -> Condense:
    """The images of the first unit, by default stored as half floats."""
    worker = Worker(store, INLINE)

    def run(**changes: Any) -> Tensor:
        task = tasks(quick(**({"recover__format": "float16"} | changes)), "recover")[-1]
        unit = units(task, INLINE)[0]
        *_, last = worker.run(task, unit)
        assert isinstance(last, Receipt)
        return store.artifact(task.stage, task.key).read(unit)[0]["images"]

    return run


MATCHING, FLATNESS = "recover__matching__", "recover__flatness__"
UINT8, WEIGHTY = {"recover__format": "uint8"}, {FLATNESS + "weight": 1000.0}
LOGITS, STATISTICS, SAM = ({FLATNESS + "kind": kind} for kind in ("logits", "statistics", "sam"))
EFFECTS: list[tuple[dict[str, Any], str, Any]] = [  # (what makes the field active, field, another value)
    ({}, "recover__iterations", 4),
    ({}, "recover__lr", 0.05),
    ({}, "recover__betas", [0.9, 0.99]),
    ({}, "recover__crop", "image"),
    ({}, "recover__crop_min", 0.9),
    ({}, "recover__crop_min_start", 1.0),
    ({}, "recover__flip", False),
    ({}, "recover__observers", ["convnet_w16_d2"]),
    ({}, "recover__observers", ["vgg5_w16", "convnet_w16_d2"]),
    ({}, "recover__observer_weights", [1.0, 5.0]),
    ({}, "recover__visit", "all"),
    (UINT8, "recover__format", "uint8_truncated"),
    (UINT8, "recover__format", "jpeg"),
    ({"recover__format": "jpeg"}, "recover__jpeg_quality", 20),
    ({}, MATCHING + "weight", 0.01),
    ({}, MATCHING + "class_weight", 0.9),
    *[({}, MATCHING + "class_form", form) for form in ("within_image", "per_class", "local")],
    ({MATCHING + "class_form": "local"}, MATCHING + "local_images", 2),
    *[({}, MATCHING + "loss", loss) for loss in ("l2_squared", "rms")],
    *[({}, MATCHING + "families", families) for families in (["bn"], ["channel"], ["bn", "patch"])],
    ({}, MATCHING + "first_multiplier", 1.0),
    ({}, MATCHING + "drop_rate", 0.5),
    ({"recover__iterations": 5}, MATCHING + "momentum", 0.0),
    ({"recover__iterations": 5}, MATCHING + "bias_correction", False),
    *[(WEIGHTY, FLATNESS + "kind", kind) for kind in ("logits", "statistics", "sam")],
    (WEIGHTY | LOGITS, FLATNESS + "form", "official"),
    (WEIGHTY | LOGITS, FLATNESS + "weight", 10.0),
    (WEIGHTY | LOGITS, FLATNESS + "beta", 0.5),
    (WEIGHTY | LOGITS, FLATNESS + "temperature", 1.0),
    (STATISTICS, FLATNESS + "weight", 2.5),
    (SAM, FLATNESS + "rho", 1.0),
    ({MATCHING + "class_form": "within_image"}, "quirks__swap_class_patch", True),
    ({}, "quirks__double_conv_targets", True),
    ({}, "quirks__verifier_updates", True),
    ({}, "init__seed", 1),
]


@pytest.mark.slow
def test_every_field_changes_the_images(condense: Condense, store: Store) -> None:
    """The seed of the draws changes the initial images, too."""
    known: dict[str, Tensor] = {}
    for active, path, value in EFFECTS:
        if path == "init__seed":
            ensure(quick(**{path: value}), store, INLINE, in_process(store, INLINE), upto="init")
        if str(active) not in known:
            known[str(active)] = condense(**active)
        found = condense(**active | {path: value})
        assert not torch.equal(found, known[str(active)]), f"{path} = {value} does nothing"


# --- groups -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_groups_of_images_may_cut_a_class_in_halves(store: Store) -> None:
    """30 images in groups of 8: the last has 6; in class-major order again."""
    experiment = quick(recover__group_images=8)
    task = ensure(experiment, store, INLINE, in_process(store, INLINE), upto="recover")[-1]
    assert units(task, INLINE) == [f"groups-{i:05d}-{i:05d}" for i in range(4)]
    together = Runtime(labels="inline", groups_per_forward=3)
    assert units(task, together) == ["groups-00000-00002", "groups-00003-00003"]
    found = store.artifact(task.stage, task.key).read("all")[0]
    assert found["labels"].tolist() == [c for c in range(10) for _ in range(3)] and len(found["images"]) == 30
    init = next(t for t in tasks(experiment, "recover") if t.stage == "init")
    before = store.artifact("init", init.key).read("all")[0]["images"]
    moved = (found["images"].int() - before.int()).abs().float().flatten(1).mean(1)
    other = (found["images"].int() - before.roll(3, 0).int()).abs().float().flatten(1).mean(1)
    assert (0 < moved).all() and moved.mean() < other.mean(), "each is still nearest to its own start"


CARRIED = {MATCHING + "reset": False, "recover__group_images": 8}


@pytest.mark.slow
def test_groups_that_take_over_are_one_unit_and_resume_to_the_same_bits(store: Store) -> None:
    """B6: official groups share running statistics, so they run one after another, whatever the runtime."""
    experiment = quick(**CARRIED)
    task = tasks(experiment, "recover")[-1]
    assert units(task, Runtime(groups_per_forward=3)) == units(task, INLINE) == ["groups-00000-00003"]
    (row,) = (row for row in plan(experiment, store, INLINE) if row.task.stage == "recover")
    assert "recover.matching.reset" in row.note
    (unit,) = units(task, INLINE)
    artifact = store.artifact(task.stage, task.key)
    *_, last = Worker(store, INLINE).run(task, unit)
    assert isinstance(last, Receipt)
    want = artifact.read(unit)[0]["images"]
    artifact.remove(unit)
    for cut in (1, 2, 7):  # killed after so many iterations, again and again
        worker = Worker(store, Runtime(labels="inline", device="cpu", checkpoint_seconds=0))
        for done, _ in enumerate(worker.run(task, unit)):
            if done == cut:
                break
    *_, last = Worker(store, INLINE).run(task, unit)
    assert isinstance(last, Receipt) and torch.equal(artifact.read(unit)[0]["images"], want)
    plain = quick(recover__group_images=8)
    alone = ensure(plain, store, INLINE, in_process(store, INLINE), upto="recover")[-1]
    found = store.artifact("recover", alone.key).read("all")[0]["images"]
    assert torch.equal(found[:8], want[:8]) and not torch.equal(found[8:], want[8:])


# --- what is stored -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("uint8", "uint8_truncated", "jpeg")),
        "float16",
    ],
)
@pytest.mark.parametrize("iterations", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_students_learn_from_the_stored_format(kind: str, iterations: int, store: Store) -> None:
    experiment = quick(recover__format=kind, recover__iterations=iterations, evaluate__epochs=1)
    found = {task.stage: task for task in ensure(experiment, store, INLINE, in_process(store, INLINE))}
    task = found["recover"]
    images = store.artifact(task.stage, task.key).read("all")[0]["images"]
    assert images.dtype == (torch.float16 if kind == "float16" else torch.uint8)
    size = facts(task, store)["bytes"]
    assert size < images.nbytes * 5 if kind == "jpeg" else size == images.nbytes
    assert 0 <= facts(found["evaluate"], store)["accuracy"] <= 1
    start = store.artifact("init", found["init"].key).read("all")[0]["images"]
    if iterations == 0 and kind.startswith("uint8"):
        assert torch.equal(images, start)
    if iterations == 0 and kind == "float16":
        assert torch.equal((images.float() * 255).round(), start.float())


# --- statistics ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_averages_over_batches_are_merged_over_shards_and_forwards(store: Store) -> None:
    """By hand from the units: the sums of 64-image shards in batches of 20."""
    changes = {"statistics__conv_variance": "per_batch", "statistics__batch_size": 20}
    found = []
    for forward in (4 * 256, 4 * 30):  # in one forward, and in forwards of one batch
        runtime = Runtime(labels="inline", device="cpu", forward_images=forward)
        task = tasks(quick(**changes), "statistics")[-1]
        for unit in [*units(task, runtime), "all"]:
            list(Worker(store, runtime).run(task, unit))
        artifact = store.artifact(task.stage, task.key)
        total = moments_of(artifact.read("all")[0])
        parts = [moments_of(artifact.read(unit)[0]) for unit in units(task, runtime)]
        for where, sums in total.items():
            for kind in ("channel", "patch") if sums.patch is not None else ("channel",):
                each = [stats.whole(part[where], kind)[1] * part[where].count.sum() for part in parts]
                mean = torch.stack(each).sum(0) / sums.count.sum()
                torch.testing.assert_close(stats.whole(sums, kind)[1], mean)
                assert (
                    stats.whole(sums, kind)[1] <= stats.pooled(sums, stats.shares(sums), kind)[1] + 1e-9
                ).all()
        found.append(artifact.read("all")[0])
        for unit in [*units(task, runtime), "all"]:
            artifact.remove(unit)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_variance_of_convolutions_counts_and_its_batches_too(store: Store) -> None:
    images = []
    for changes in (
        {},
        {"statistics__conv_variance": "per_batch", "statistics__batch_size": 32},
        {"statistics__conv_variance": "per_batch", "statistics__batch_size": 4},
        {"statistics__patch": 16},
    ):
        task = ensure(quick(**changes), store, INLINE, in_process(store, INLINE), upto="recover")[-1]
        images.append(store.artifact("recover", task.key).read("all")[0]["images"])
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


# --- before anything runs -----------------------------------------------------------------------------------


def test_a_matcher_without_a_layer_in_any_observer_is_refused() -> None:
    """SRe2L needs BatchNorm; one observer with it is enough, and none is needed where nothing is matched."""
    convnets = {"squeeze__observers": ["convnet_w16_d2"], MATCHING + "families": ["bn"]}
    for changes in (convnets, {"recover__observers": ["convnet_w16_d2"], MATCHING + "families": ["bn"]}):
        with pytest.raises(
            ConfigError, match=r"recover\.matching\.families.*convnet_w16_d2.*have convolutions"
        ):
            check(quick(**changes))
    with pytest.raises(ConfigError, match=r"finds no layer"):
        check(quick(**convnets | {MATCHING + "weight": 0.0} | STATISTICS))
    for fine in ({MATCHING + "weight": 0.0}, {"recover__iterations": 0}):
        check(quick(**convnets | fine))
    check(quick(**{MATCHING + "families": ["bn"]}))
