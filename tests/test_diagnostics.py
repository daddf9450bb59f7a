"""Diagnostics: each estimate against a slow obvious one, and the command end to end."""

import itertools
import math
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edc_ray import cli, config, diagnosis, pipeline
from edc_ray.artifacts import Receipt, Store
from edc_ray.config import Diagnose, Experiment, Runtime
from edc_ray.core import stats
from edc_ray.core.diagnostics import features, gradients, hessian, landscape, variance
from edc_ray.core.random import generator
from edc_ray.pipeline import worker
from edc_ray.pipeline.diagnose import DIAGNOSTICS
from edc_ray.pipeline.diagnose.table import points
from edc_ray.pipeline.judge import pages, student_of
from edc_ray.pipeline.types import Job
from tests import tiny


class Net(nn.Module):
    """Smooth and tiny: (n, 1, 2, 2) -> 3 logits, 43 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(images.flatten(1))))


def made() -> tuple[Net, Tensor, Tensor]:
    """A network of fixed weights, 12 images, labels."""
    rng = generator("test diagnostics")
    model = Net().eval()
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=rng)
    return model, torch.randn(12, 1, 2, 2, generator=rng), torch.arange(12) % 3


# --- hessian ------------------------------------------------------------------------------------------------


def weight_loss(model: Net, images: Tensor, labels: Tensor) -> hessian.Loss:
    names = [name for name, _ in model.named_parameters()]

    def loss(tensors: list[Tensor]) -> Tensor:
        logits = functional_call(model, dict(zip(names, tensors, strict=True)), (images,))
        return functional.cross_entropy(logits, labels)

    return loss


def exact(loss: hessian.Loss, at: list[Tensor]) -> Tensor:
    """All of the Hessian, by torch, in float64."""
    shapes, flat = [x.shape for x in at], torch.cat([x.flatten() for x in at])

    def of(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        return loss([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])

    return torch.autograd.functional.hessian(of, flat)


def test_with_every_unit_vector_the_norm_is_that_of_the_exact_hessian() -> None:
    model, images, labels = made()
    loss, at = weight_loss(model, images, labels), [w.detach() for w in model.parameters()]
    want = exact(loss, at)
    assert want.shape == (43, 43)
    units = torch.eye(43) * math.sqrt(43)  # E[v v^T] = I over them
    split = [
        [p.view(w.shape) for p, w in zip(u.split([w.numel() for w in at]), at, strict=True)] for u in units
    ]
    squares = hessian.squared_products([loss], at, split)
    torch.testing.assert_close(squares, 43 * want.square().sum(1), rtol=1e-4, atol=1e-5)
    assert hessian.frobenius(squares)[0] == pytest.approx(float(want.norm()), rel=1e-4)


@pytest.mark.slow
def test_random_vectors_give_it_within_their_standard_error() -> None:
    model, images, labels = made()
    loss, at = weight_loss(model, images, labels), [w.detach() for w in model.parameters()]
    want = float(exact(loss, at).norm())
    off = []
    for seed in range(20):
        vectors = list(hessian.probes(at, 64, generator("test probes", seed)))
        norm, error = hessian.frobenius(hessian.squared_products([loss], at, vectors))
        off.append((norm - want) / error)
    assert 0.6 < torch.tensor(off).std() < 1.6 and abs(sum(off) / 20) < 0.8, off


def test_of_a_quadratic_by_hand() -> None:
    """H = diag(1, 3), of two losses: random signs give ||H v||^2 = 10 whatever they are."""
    squares = hessian.squared_products(
        [lambda x: x[0][0] ** 2 / 2, lambda x: x[0][1] ** 2 * 3 / 2],
        [torch.tensor([5.0, -7.0])],
        list(hessian.probes([torch.zeros(2)], 3, generator("test"))),
    )
    assert squares.tolist() == [10, 10, 10] and hessian.frobenius(squares) == (math.sqrt(10), 0)


def test_the_gap_of_a_quadratic_loss_is_within_its_bound_and_reaches_it() -> None:
    """L = 3 x^2 / 2 + y: from (1, 0) by (2, 1) it grows by 13, of which the slope has 3 * 2 + 1 = 7."""

    def loss(at: list[Tensor]) -> Tensor:
        return 1.5 * at[0].square().sum() + at[1].sum()

    at, other = [torch.tensor([1.0]), torch.tensor([0.0])], [torch.tensor([3.0]), torch.tensor([1.0])]
    assert hessian.second_order([loss], at, other, norm=3.0) == (13, 7 + 3 * (4 + 1) / 2)
    along_x = [other[0], at[1]]
    assert hessian.second_order([loss], at, along_x, norm=3.0) == (12, 12)


# --- gradients ----------------------------------------------------------------------------------------------


def test_a_gradient_in_parts_is_that_of_the_mean_loss() -> None:
    model, images, labels = made()
    rows = torch.tensor([7, 0, 3, 11, 2])
    functional.cross_entropy(model(images[rows]), labels[rows]).backward()
    want = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    got = gradients.gradient(model, model.state_dict(), images, labels, rows, together=2)
    torch.testing.assert_close(got, want)


def test_cosines_of_hand_made_gradients() -> None:
    """Four images with gradients along the axes: a batch of b of them has the cosine sqrt(b / 4) to all."""
    axes = torch.eye(4)

    def of(rows: Tensor) -> Tensor:
        return axes[rows].mean(0)

    goals = [of(torch.arange(4)), torch.tensor([-1.0, -1, -1, -1])]
    rng = generator("test")
    for size in (1, 2, 4):
        found = gradients.batch_cosines(of, [gradients.draw(4, size, rng) for _ in range(5)], goals)
        want = torch.tensor([[math.sqrt(size / 4), -math.sqrt(size / 4)]]).expand(5, 2)
        torch.testing.assert_close(found, want)
    ones = [gradients.draw(4, 1, rng) for _ in range(40)]
    firsts = gradients.batch_cosines(of, ones, list(axes)).sum(0)
    assert firsts.sum() == 40 and (firsts > 0).all()  # every image is drawn


def test_a_balanced_batch_has_as_many_of_each_class_as_can_be() -> None:
    labels = torch.tensor([0] * 20 + [1] * 3 + [2] * 9)
    for size, counts in ((3, [1, 1, 1]), (7, [2, 2, 3]), (9, [3, 3, 3]), (32, [3, 9, 20])):
        drawn = gradients.draw(32, size, generator("test", size), labels)
        assert len(drawn.unique()) == size and sorted(labels[drawn].bincount().tolist()) == counts
    both = {int(labels[gradients.draw(32, 1, generator("test", i), labels)]) for i in range(40)}
    assert both == {0, 1, 2}


# --- features and landscape ---------------------------------------------------------------------------------


def test_distances_to_the_class_by_hand() -> None:
    real = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    found = features.class_distances(
        torch.tensor([[1.0], [3.0], [12.0], [8.0]]),
        torch.tensor([0, 0, 1, 1]),
        real,
        torch.tensor([0, 0, 1, 1]),
    )
    assert found.tolist() == [0, 4, 0, 4]


def test_the_cheapest_way_to_move_is_that_of_all_ways() -> None:
    rng = generator("test transport")
    ours, real = torch.randn(2, 3, generator=rng), torch.randn(6, 3, generator=rng)
    halves = list(itertools.combinations(range(6), 3))
    ways = [
        sum((ours[int(i not in half)] - real[i]).double().square().sum() for i in range(6)) / 6
        for half in halves
    ]
    assert features.transport(ours, real) == pytest.approx(float(min(ways)), rel=1e-5)
    with pytest.raises(ValueError, match="5 real points are no multiple of 2"):
        features.transport(ours, real[:5])


def test_variance_inside_a_class_by_hand() -> None:
    """Two channels; class 0 varies by 1 and 4 where real images do by 4 and 1; class 1 not at all."""

    def moments(*classes: list[list[float]]) -> dict[str, stats.Moments]:
        z = torch.tensor([image for images in classes for image in images]).float()[:, :, None, None]
        labels = torch.tensor([label for label, images in enumerate(classes) for _ in images])
        return {"layer": stats.class_moments(z, labels, 2, None)}

    ours = moments([[0, 0], [2, 4]], [[5, 5], [5, 5]])
    real = moments([[0, 7], [4, 9]], [[0, 0], [2, 2]])
    ratio, share = variance.class_variance(ours, real, ["layer"], torch.tensor([0, 1]))
    assert ratio.tolist() == [[1, 0]] and share.tolist() == [[0.5, 0]]


def test_a_direction_is_as_long_as_the_weights_filter_by_filter() -> None:
    weights = {"conv": torch.randn(3, 2, 2, 2, generator=generator("test")), "bias": torch.ones(3)}
    found = landscape.direction(weights, generator("test", 1))
    torch.testing.assert_close(found["conv"].flatten(1).norm(dim=1), weights["conv"].flatten(1).norm(dim=1))
    assert not found["bias"].any()


def test_a_slice_of_a_bowl_is_a_parabola() -> None:
    weights, way = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}
    other = {"w": torch.tensor([0.0, 2.0])}
    places = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [2.0, 1.0]])
    found = landscape.values(lambda at: at["w"].square().sum(), weights, [way, other], places)
    assert found.tolist() == [1, 0, 8]


# --- the stage ----------------------------------------------------------------------------------------------

FEW = {
    "diagnose.points": 2, "diagnose.groups": 2, "diagnose.probes": 2, "diagnose.images": 20,
    "diagnose.batch_sizes": [4, 16, 1024], "diagnose.draws": 2, "diagnose.steps": 1,
    "recover.flatness.kind": "logits",
}  # fmt: skip
HOW = Runtime(device="cpu", labels="inline")


def experiment(**changes: Any) -> Experiment:
    return config.override(tiny.experiment(), FEW | changes)


def key(experiment: Experiment) -> str:
    return pipeline.tasks(experiment, "diagnose")[-1].key


def test_every_row_can_be_asked_for() -> None:
    field = config.paths(Experiment)["diagnose.what"]
    assert tuple(DIAGNOSTICS) == get_args(field.type)
    asked = {
        e.diagnose.what
        for name in diagnosis.LOOKS
        for look in diagnosis.LOOKS[name]("set", experiment())
        for e in look.experiments()
    }
    assert asked == set(DIAGNOSTICS)


@pytest.mark.parametrize("what", DIAGNOSTICS)
def test_a_field_of_the_look_names_the_look_alone(what: str) -> None:
    base = experiment(**{"diagnose.what": what})
    other: dict[str, Any] = {"batch_sizes": [8], "radius": 0.5, "global_images": 9}
    for name, field in ((f.name, f) for f in Diagnose.__dataclass_fields__.values() if f.name != "what"):
        value = other.get(name) or getattr(base.diagnose, name) + 1
        changed = config.override(base, {f"diagnose.{name}": value})
        assert (key(changed) != key(base)) == config.active(base.diagnose, field), name
        assert pipeline.tasks(changed)[-1].key == pipeline.tasks(base)[-1].key


def test_a_default_look_is_in_no_name() -> None:
    assert "diagnose" not in config.hashed(Experiment())
    assert config.hashed(experiment())["diagnose"]["probes"] == 2


def test_a_look_is_of_the_stage_that_it_does_anew() -> None:
    synthesis, student = ({"diagnose.what": what} for what in ("synthesis_sharpness", "student_sharpness"))
    for path, value in {"recover.lr": 0.01, "squeeze.lr": 0.01, "statistics.patch": 2}.items():
        assert key(experiment(**synthesis)) != key(experiment(**synthesis, **{path: value}))
    assert key(experiment(**synthesis)) == key(experiment(**synthesis, **{"evaluate.zeta": 3.0}))
    assert key(experiment(**student)) != key(experiment(**student, **{"evaluate.zeta": 3.0}))


def line(arm: str, x: float, *values: float) -> diagnosis.Line:
    return diagnosis.Line("gap", "s", arm, x, 0.0, values, 0.0)


@pytest.mark.parametrize(
    ("right", "at", "said"),
    [
        (("b", "s"), "first", "seen: it (-1 +- 0, n = 3)"),
        (("b", "s"), "last", "the contrary was seen: it (2 +- 0, n = 3)"),
        (("b", "s"), "every", "the contrary was seen: it (2 +- 0, n = 3)"),
        (2.5, "last", "not resolved: it (0.5 +- 2.5, n = 3)"),
    ],
)
def test_a_statement_is_seen_where_its_interval_says_so(
    right: tuple[str, str] | float, at: Literal["first", "last", "every"], said: str
) -> None:
    its = [line("a", 9, 2, 3, 4), line("b", 9, 0, 1, 2), line("a", 0, 0, 1, 2), line("b", 0, 1, 2, 3)]
    look = diagnosis.Look(
        "t", "x", "group", {}, statements=(diagnosis.Statement("it", ("a", "s"), right, at),)
    )
    assert diagnosis.seen(look, its) == [said]


def test_few_groups_are_made_up_for_by_several_syntheses() -> None:
    """Arms are paired by seed and group."""
    base = experiment(**{"recover.classes_per_group": 5, "evaluate.seeds": [4, 7], "diagnose.groups": 9})
    for look in diagnosis.LOOKS["theorems"]("set", base):
        for arm in look.arms.values():
            assert [e.init.seed for e in arm] == [4, 7]
    (many,) = diagnosis.LOOKS["initialisation"]("set", experiment(**{"diagnose.groups": 3}))
    assert [len(arm) for arm in many.arms.values()] == [1, 1]


def test_a_schedule_without_zeta_is_looked_at_with_one_that_has_it() -> None:
    _, student = diagnosis.LOOKS["sharpness"]("set", experiment(**{"evaluate.schedule": "multistep"}))
    assert "multistep, has no zeta: here cos" in student.notes[0]
    assert {(e.evaluate.schedule, e.evaluate.zeta) for e in student.experiments()} == {("cos", 1), ("cos", 2)}


def test_points_are_even_and_end_at_the_end() -> None:
    assert points(100, 4) == [25, 50, 75, 100] and points(3, 5) == [1, 2, 3] and points(7, 1) == [7]


def set_file(folder: Path, **changes: Any) -> str:
    """Its store is beside it."""
    made = config.dump(experiment(**changes))
    runtime = {"store": str(folder / "store"), "device": "cpu", "labels": "inline"}
    (folder / "set.yaml").write_text(yaml.safe_dump({"name": "s", "experiment": made, "runtime": runtime}))
    return str(folder / "set.yaml")


@pytest.mark.parametrize(
    ("what", "changes", "said"),
    [
        ("sharpnes", {}, "--what = 'sharpnes': unknown; did you mean sharpness?"),
        ("sharpness", {"recover.iterations": 0}, "has no synthesis to look at"),
        ("initialisation", {"recover.iterations": 0}, "has no synthesis to look at"),
        ("initialisation", {"split.val": 0.0}, "split.val = 0: nothing is held out"),
        ("landscape", {"init.ipc": 100}, "init.ipc = 100"),
        ("landscape", {"diagnose.what": "gradients"}, "diagnose.what = 'gradients': is set by --what"),
        ("gradients", {"diagnose.batch_sizes": []}, "diagnose.batch_sizes = (): needs at least one"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_before_anything_runs(
    what: str, changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["diagnose", set_file(tmp_path, **changes), "--what", what]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set and its store, which the commands share."""
    place = tmp_path_factory.mktemp("diagnose")
    set_file(place)
    return place


def rows(folder: Path, what: str) -> list[dict[str, Any]]:
    (file,) = (folder / "store" / "diagnoses").glob(f"{what}-*.parquet")
    return pq.read_table(file).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("what", diagnosis.LOOKS)
def test_each_look_end_to_end(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files are there, the table has arms and intervals, and the same command again makes nothing."""
    argv = ["diagnose", str(folder / "set.yaml"), "--what", what]
    assert cli.main(argv) == 0
    first, err = capsys.readouterr()
    assert err == "" and "paired" in first and " +- " in first
    (picture,) = (folder / "store" / "diagnoses").glob(f"{what}-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = rows(folder, what)
    assert all(math.isfinite(row["value"]) for row in found)
    assert cli.main(argv) == 0
    again, _ = capsys.readouterr()
    assert "units" not in again and again[again.index("\n\n") :] == first[first.index("\n\n") :]
    CHECKS[what](found)


def check_sharpness(found: list[dict[str, Any]]) -> None:
    """The arms start from the same images with the same vectors; then flatness moves them elsewhere."""
    norms = {
        (row["arm"], row["x"]): row["value"]
        for row in found
        if row["series"] == "matching loss" and row["group"] == 1
    }
    plain, flat = ({x: v for (arm, x), v in norms.items() if kind in arm} for kind in ("none", "logits"))
    assert plain[0] == flat[0] > 0 and plain[3] != flat[3] and set(plain) == {0, 2, 3}
    weights = {row["arm"] for row in found if row["series"] == "cross-entropy, real"}
    assert weights == {"zeta 1", "zeta 2"} and {row["seed"] for row in found} == {0, 1}


def check_gradients(found: list[dict[str, Any]]) -> None:
    """The gradient of all images has the cosine 1 to itself; a batch has less."""
    own = [row for row in found if row["series"].startswith(("real to all", "condensed to all cond"))]
    whole = {name: max(r["x"] for r in own if r["series"] == name) for name in {r["series"] for r in own}}
    assert whole["real to all real, initial"] == 139 and whole["condensed to all condensed, trained"] == 10
    for row in own:
        if row["x"] == whole[row["series"]]:
            assert row["value"] == pytest.approx(1, abs=1e-5)
        else:
            assert row["value"] < 0.999


def check_initialisation(found: list[dict[str, Any]]) -> None:
    """Real images are nearer to their classes than noise is, before the first step."""
    start = [row for row in found if row["quantity"] == "feature distance" and row["x"] == 0]
    apart = {arm: sum(row["value"] for row in start if row["arm"] == arm) for arm in ("real", "noise")}
    assert 0 < apart["real"] < apart["noise"]
    assert {row["x"] for row in found if row["quantity"] == "accuracy on val, %"} == {None}


def check_landscape(found: list[dict[str, Any]]) -> None:
    """A plane of 3 x 3 places for each loss and student."""
    assert {(row["x"], row["y"]) for row in found} == {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)}
    own = [row for row in found if row["series"].startswith("its own") and row["arm"] == "condensed"]
    for seed in (0, 1):
        plane = {(row["x"], row["y"]): row["value"] for row in own if row["seed"] == seed}
        assert len(plane) == 9 and len(set(plane.values())) == 9


def check_theorems(found: list[dict[str, Any]]) -> None:
    """Real images start nearer; no gap and no bound where the average is the images themselves."""
    start = {
        (row["arm"], row["series"]): row["value"] for row in found if row["x"] == 0 and row["group"] == 1
    }
    for where in ("pixels", "features"):
        assert 0 < start["real", where] < start["noise", where]
    gaps = [row for row in found if row["quantity"] == "loss gap"]
    assert len({row["arm"] for row in gaps}) == 2
    assert all((row["value"] == 0) == (row["x"] == 0) for row in gaps)
    arms = {row["arm"] for row in found if row["quantity"] == "class variance"}
    assert arms == {f"class weight {weight}" for weight in (0, 0.5, 1)}


CHECKS = {name.removeprefix("check_"): f for name, f in globals().items() if name.startswith("check_")}


@pytest.mark.slow
def test_what_is_looked_at_is_what_evaluate_judges(tmp_path: Path) -> None:
    """A student with BatchNorm: the averaged weights and buffers, in eval mode, on all real images."""
    changes = {"diagnose.what": "landscape", "diagnose.images": 200, "evaluate.student": "vgg5_w16"}
    wanted = experiment(**changes, **{"evaluate.seeds": [0], "evaluate.ema_horizon": 0.3})
    store = Store(str(tmp_path))
    pipeline.ensure(wanted, store, HOW, pipeline.in_process(store, HOW), upto="diagnose")
    task = pipeline.tasks(wanted, "diagnose")[-1]
    job = Job(task, "student", worker.Inputs(store, HOW, torch.device("cpu")), None, (), 1.0)
    student, real = student_of(job), job.inputs.real(task)
    for _ in student.advance(pages(job, 0, student.total), student.total):
        pass
    logits = student.predict(real.fit)
    want = float(functional.cross_entropy(logits, real.fit_labels))
    table, _ = store.artifact("diagnose", task.key).read_table("student")
    found = {(row["series"], row["x"], row["y"]): row["value"] for row in table.to_pylist()}
    assert found["cross-entropy, real", 0, 0] == pytest.approx(want, rel=1e-5)
    with torch.no_grad():
        raw = float(functional.cross_entropy(student.model.eval()(real.fit[:]), real.fit_labels))
    assert raw != pytest.approx(want, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["synthesis_sharpness", "gradients"])
def test_interrupted_at_every_step_it_says_the_same(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "TELL_SECONDS", 0.0)
    store, wanted = Store(str(tmp_path)), experiment(**{"diagnose.what": what, "evaluate.seeds": [0]})
    pipeline.ensure(wanted, store, HOW, pipeline.in_process(store, HOW), upto="diagnose")
    task = pipeline.tasks(wanted, "diagnose")[-1]
    unit, artifact = pipeline.units(task, HOW)[-1], store.artifact("diagnose", task.key)
    want, _ = artifact.read_table(unit)
    artifact.remove(unit)
    often, pauses = config.override(HOW, {"checkpoint_seconds": 0.0}), 0
    while not artifact.has(unit):
        items = pipeline.Worker(store, often).run(task, unit)
        pauses += not isinstance(next(items), Receipt)
        items.close()  # type: ignore[attr-defined]
    assert pauses == {"synthesis_sharpness": 3, "gradients": 12}[what]
    assert artifact.read_table(unit)[0].equals(want) and want.num_rows
