"""Applications of a condensed set: attacks, ranks, memories, pruning; the stage and the command."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from edc_ray import applications, cli, config, given, pipeline
from edc_ray.artifacts import Store
from edc_ray.claim import Interval
from edc_ray.config import Apply, Experiment, Runtime
from edc_ray.core import fit, models
from edc_ray.core.applications import continual, nas, robustness, slimming
from edc_ray.report.applications import _bars, _natural, rho
from tests import tiny
from tests.test_pipeline import spied

RUNTIME = Runtime(labels="inline", device="cpu")
NORMAL = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.5, 0.2)}
MEAN, STD = (torch.tensor(values)[:, None, None] for values in NORMAL.values())


def pixels(images: Tensor) -> Tensor:
    """In [0, 1], of normalised images."""
    return images * STD + MEAN


# --- robustness ---------------------------------------------------------------------------------------------


@pytest.fixture
def linear(rng: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of two classes, and normalised images of pixels in [0, 1]."""
    head = nn.Linear(12, 2, bias=False)
    head.weight.data = torch.randn(2, 12, generator=rng)
    model = nn.Sequential(nn.Flatten(), head).requires_grad_(False)
    return model, (torch.rand(6, 3, 2, 2, generator=rng) - MEAN) / STD, torch.tensor([0, 1, 0, 1, 0, 1])


def test_fgsm_of_a_linear_model_by_hand(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    """The gradient of the loss has the sign of the other class's weights less the own ones."""
    model, images, labels = linear
    box = robustness.Box(**NORMAL, epsilon=0.1)
    (weight,) = model.parameters()
    ahead = (weight[1 - labels] - weight[labels]).sign().reshape(6, 3, 2, 2)
    want = (pixels(images) + 0.1 * ahead).clamp(0, 1)
    torch.testing.assert_close(pixels(robustness.fgsm(model, images, labels, box)), want)
    loss = nn.functional.cross_entropy
    assert (
        loss(model(robustness.fgsm(model, images, labels, box)), labels) > loss(model(images), labels) + 0.01
    )


@pytest.mark.parametrize("steps", [1, 40])
def test_pgd_stays_in_the_ball_and_the_pixel_range(
    steps: int, linear: tuple[nn.Module, Tensor, Tensor], rng: torch.Generator
) -> None:
    """After many steps it is at the worst corner, where FGSM of a linear model is at once."""
    model, images, labels = linear
    box = robustness.Box(**NORMAL, epsilon=0.07)
    found = robustness.pgd(model, images, labels, box, steps, 0.1, rng)
    moved = pixels(found) - pixels(images)
    assert float(moved.abs().max()) <= 0.07 + 1e-6 and float(moved.abs().max()) > 0.03
    assert float(pixels(found).min()) >= -1e-6 and float(pixels(found).max()) <= 1 + 1e-6
    at_corner = torch.allclose(found, robustness.fgsm(model, images, labels, box), atol=1e-5)
    assert at_corner == (steps == 40)


def test_accuracies_are_those_of_the_attacked_images(
    linear: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts too; a wider box is never better."""
    model, images, labels = linear
    labels = model(images).argmax(1)  # all right without an attack
    boxes = [robustness.Box(**NORMAL, epsilon=e) for e in (1e-6, 0.05, 1.0)]
    whole = robustness.accuracies(model, images, labels, boxes, 20, 0.2, 0)
    found = {(name, epsilon): value for name, epsilon, value in whole}
    assert found["clean", 0.0] == found["fgsm", 1e-6] == found["pgd", 1e-6] == 1
    assert found["fgsm", 1.0] == found["pgd", 1.0] == 0
    attacked = robustness.fgsm(model, images, labels, boxes[1])
    assert found["fgsm", 0.05] == pytest.approx(float((model(attacked).argmax(1) == labels).float().mean()))
    monkeypatch.setattr(robustness, "TOGETHER", 4)
    parts = robustness.accuracies(model, images, labels, boxes, 20, 0.2, 0)
    assert [row for row in parts if row[0] != "pgd"] == [row for row in whole if row[0] != "pgd"]


# --- architecture search ------------------------------------------------------------------------------------


def test_every_architecture_is_another_and_learns() -> None:
    """At least 20, at the smallest size; with gradients everywhere and weights of the seed alone."""
    assert len(nas.SPACE) >= 20
    shapes = set()
    for name in nas.SPACE:
        model = nas.build(name, 3, 8, 0)
        logits = model(torch.linspace(0, 1, 2 * 192).reshape(2, 3, 8, 8))
        logits.square().sum().backward()
        assert logits.shape == (2, 3)
        assert all(p.grad is not None for p in model.parameters())
        shapes.add(str(model))
    assert len(shapes) == len(nas.SPACE)
    one, same, other = (nas.build("w4_d1_batch_relu", 3, 8, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert isinstance(nas.build("convnet_w16_d2", 3, 8, 0), nn.Sequential)


def test_spearman_by_hand() -> None:
    """1 - 6 * sum d^2 / (n (n^2 - 1)) without ties; with them, the correlation of the mean ranks."""
    assert nas.spearman([0.1, 0.2, 0.3, 0.9], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert nas.spearman([1, 2, 3], [9, 8, 1]) == pytest.approx(-1)
    tied = nas.spearman([5, 5, 6, 7, 5], [1, 2, 3, 4, 9])  # ranks 2, 2, 4, 5, 2
    assert tied == pytest.approx(np.corrcoef([2, 2, 4, 5, 2], [1, 2, 3, 4, 5])[0, 1])
    assert math.isnan(nas.spearman([1, 1, 1], [1, 2, 3]))


def test_the_bootstrap_has_the_spread_of_a_mean() -> None:
    values = [float(i % 10) for i in range(400)]
    low, high = nas.bootstrap(lambda ids: sum(values[i] for i in ids) / len(ids), len(values))
    half = 1.96 * np.std(values) / 20
    assert [low, high] == pytest.approx([4.5 - half, 4.5 + half], abs=0.05)


def test_ranks_of_hand_made_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nas, "DRAWS", 200)
    found = nas.ranks(
        {
            "a": {"condensed": [0.3, 0.3], "random_real": [0.1, 0.1], "all": [0.9, 0.9]},
            "b": {"condensed": [0.2, 0.2], "random_real": [0.2, 0.2], "all": [0.8, 0.8]},
            "c": {"condensed": [0.1, 0.4], "random_real": [0.3, 0.3], "all": [0.7, 0.7]},
        }
    )
    arms, over = found["arms"], found["over"]
    assert list(arms) == ["condensed", "random_real"]
    assert arms["condensed"]["rho"] == pytest.approx(0.5)  # ranks 3, 1, 2 against 3, 2, 1
    assert arms["condensed"]["chosen"] == ["a", 0.9]
    assert arms["random_real"]["rho"] == pytest.approx(-1) and arms["random_real"]["chosen"] == ["c", 0.7]
    assert found["ceiling"] == pytest.approx(1)
    assert over["rho"] == pytest.approx(1.5) and over["low"] <= 1.5 <= over["high"]
    low, high = nas.bootstrap(
        lambda ids: (
            nas.spearman([(0.3, 0.2, 0.25)[i] for i in ids], [-i for i in ids])
            - nas.spearman(list(ids), [-i for i in ids])
        ),
        3,
    )
    assert (over["low"], over["high"]) == pytest.approx((low, high))
    assert rho(arms["random_real"]) == "-1.00 [-1.00, -1.00]"


def test_the_arms_of_a_difference_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms that rank alike differ by nothing, however wide their own intervals are."""
    monkeypatch.setattr(nas, "DRAWS", 200)
    found = nas.ranks(
        {
            str(i): {"condensed": [value], "random_real": [value], "all": [0.1 * i]}
            for i, value in enumerate((0.3, 0.1, 0.4, 0.15, 0.5))
        }
    )
    assert found["over"] == {"rho": 0, "low": 0, "high": 0} and found["ceiling"] is None
    assert found["arms"]["condensed"]["high"] - found["arms"]["condensed"]["low"] > 0.5


# --- class-incremental learning -----------------------------------------------------------------------------


def test_all_classes_come_and_none_twice() -> None:
    assert continual.seen_after(10, 5) == [2, 4, 6, 8, 10]
    assert continual.seen_after(10, 3) == [4, 7, 10]
    assert sorted(continual.arrival(10, 0).tolist()) == list(range(10))
    assert not torch.equal(continual.arrival(10, 0), continual.arrival(10, 1))


def test_labels_count_among_the_classes_seen() -> None:
    found = continual.relabelled(torch.tensor([7, 3, 0, 7, 5]), torch.tensor([5, 7]))
    assert found.tolist() == [1, -1, -1, 1, 0]


def test_the_labels_of_a_memory_are_those_of_the_classes_seen() -> None:
    found = continual.cut([torch.tensor([[0.1, 0.2, 0.3, 0.4]])], torch.tensor([3, 1]))
    assert [each.tolist() for each in found] == [[[pytest.approx(0.4), pytest.approx(0.2)]]]


def test_five_steps_come_before_ten_and_no_bar_leaves_the_accuracies() -> None:
    assert sorted(["10 steps", "5 steps", "5 steps, mean"], key=_natural)[0] == "5 steps"
    assert sorted(["10 steps", "5 steps"], key=_natural) == ["5 steps", "10 steps"]
    assert _bars(Interval(0.95, 0.2, 3)) == pytest.approx((20, 5))
    assert _bars(Interval(0.1, 0.2, 3)) == pytest.approx((10, 20))
    assert _bars(Interval(0.1, math.inf, 1)) == (0, 0)


def test_herding_of_hand_made_features() -> None:
    """On a circle: the mean points at 0 degrees, the nearest to it comes first, then what cancels."""
    angles = torch.tensor([60.0, 10.0, -60.0, -12.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [2.0], [3.0]])
    mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
    assert continual.herding(features, 2).tolist() == by_hand(features, mean, 2)
    assert continual.herding(features, 4).tolist() == by_hand(features, mean, 4)
    assert sorted(continual.herding(features, 9).tolist()) == [0, 1, 2, 3]


def by_hand(features: Tensor, mean: Tensor, count: int) -> list[int]:
    """Every candidate tried, again and again."""
    units, chosen = [f / f.norm() for f in features], list[int]()
    for _ in range(count):
        left = [i for i in range(len(units)) if i not in chosen]
        apart = {
            i: float((torch.stack([units[j] for j in (*chosen, i)]).mean(0) - mean).norm()) for i in left
        }
        chosen.append(min(left, key=lambda i: apart[i]))
    return chosen


def test_features_are_what_the_last_linear_layer_sees(rng: torch.Generator) -> None:
    model = models.build("vgg5_w16", 4, 8, 0).eval()
    images = torch.randn(5, 3, 8, 8, generator=rng)
    found = fit.features(model, images, 2)
    head = model[-1][-1]  # type: ignore[index]
    assert found.shape == (5, 64)
    with torch.no_grad():
        torch.testing.assert_close(head(found), model(images))
    assert not head._forward_pre_hooks


# --- slimming -----------------------------------------------------------------------------------------------


@pytest.fixture
def vgg(rng: torch.Generator) -> nn.Module:
    """With BatchNorms as after a training."""
    model = models.build("vgg5_w16", 4, 16, 0).eval().requires_grad_(False)
    for norm in slimming.norms(model):
        for name, low, high in (
            ("weight", 0, 1),
            ("bias", -1, 1),
            ("running_mean", -1, 1),
            ("running_var", 1, 2),
        ):
            getattr(norm, name).data.uniform_(low, high, generator=rng)
    return model


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 1.0])
def test_the_pruned_network_computes_what_the_masked_one_does(
    kept: float, vgg: nn.Module, rng: torch.Generator
) -> None:
    keep, images = slimming.masks(vgg, kept), torch.randn(3, 3, 16, 16, generator=rng)
    small, masked = slimming.prune(vgg, keep), slimming.masked(vgg, keep)
    with torch.no_grad():
        torch.testing.assert_close(small(images), masked(images), rtol=1e-4, atol=1e-4)
        assert torch.allclose(small(images), vgg(images), atol=1e-4) == (kept == 1)
    assert [norm.num_features for norm in slimming.norms(small)] == slimming.sizes(keep)
    assert [norm.num_features for norm in slimming.norms(vgg)] == [16, 32, 64, 64]


def test_masks_keep_the_largest_scales_of_all_layers(vgg: nn.Module) -> None:
    first, *others = slimming.norms(vgg)
    keep = slimming.masks(vgg, 0.5)
    assert sum(slimming.sizes(keep)) == 88
    least = min(float(n.weight[k].min()) for n, k in zip(slimming.norms(vgg), keep, strict=True))
    most = max(float(n.weight[~k].max()) for n, k in zip(slimming.norms(vgg), keep, strict=True))
    assert least >= most
    first.weight.data.mul_(1e-6)
    assert slimming.sizes(slimming.masks(vgg, 0.5))[0] == 2  # a tenth, rounded up
    total = sum(float(norm.weight.abs().sum()) for norm in (first, *others))
    assert float(slimming.penalty(vgg)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kept", [0.05, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_as_many_channels_stay_as_are_asked_for(kept: float, vgg: nn.Module) -> None:
    """Beside a tenth of each layer, 20 of 176; ties too."""
    first, *_ = slimming.norms(vgg)
    for scale in (1.0, 1e-6, 0.0):
        first.weight.data.mul_(scale)
        sizes = slimming.sizes(slimming.masks(vgg, kept))
        assert sum(sizes) == max(20, round(176 * kept))
        assert all(size >= least for size, least in zip(sizes, (2, 4, 7, 7), strict=True))


@pytest.mark.parametrize(
    ("name", "legal"),
    [("vgg5_w16", True), ("vgg11_bn", True), ("torchvision/vgg11_bn", True), ("torchvision/vgg11", False),
     ("resnet10_w8", False), ("convnet_w16_d2", False), ("mobilenet_v2_half", False)],
)  # fmt: skip
def test_chains_are_known(name: str, legal: bool) -> None:
    assert slimming.is_chain(models.skeleton(name, 10, 32)) == legal


@pytest.mark.slow
def test_torchvisions_vgg_is_cut_too(rng: torch.Generator) -> None:
    """Its linear layer sees 7 x 7 values a channel."""
    from torchvision.models import VGG
    from torchvision.models.vgg import make_layers

    model = VGG(make_layers([8, "M", 12], batch_norm=True), num_classes=4, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(12 * 49, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4))
    for norm in slimming.norms(model.eval()):
        norm.weight.data.uniform_(0, 1, generator=rng)
    assert slimming.is_chain(model)
    keep, images = slimming.masks(model, 0.5), torch.randn(2, 3, 16, 16, generator=rng)
    with torch.no_grad():
        torch.testing.assert_close(
            slimming.prune(model, keep)(images), slimming.masked(model, keep)(images), rtol=1e-4, atol=1e-5
        )


# --- names and bad input ------------------------------------------------------------------------------------


def chosen(name: str, **changes: Any) -> Experiment:
    """The tiny experiment with one seed, put to this use."""
    changes = {path.replace("__", "."): value for path, value in changes.items()}
    return config.override(tiny.experiment(evaluate__seeds=[0]), {"apply.name": name, **changes})


def key(experiment: Experiment) -> str:
    return pipeline.tasks(experiment, "apply")[-1].key


def test_the_section_is_in_no_name_but_that_of_its_stage() -> None:
    plain, other = tiny.experiment(), chosen("continual", apply__steps=[2])
    assert "apply" not in config.hashed(plain)
    assert [t.key for t in pipeline.tasks(plain)[:5]] == [t.key for t in pipeline.tasks(other)[:5]]
    one = replace(plain, evaluate=replace(plain.evaluate, seeds=(0,)))
    assert [t.key for t in pipeline.tasks(one)] == [t.key for t in pipeline.tasks(other)]
    assert "apply" not in pipeline.needed(plain)


ACTIVE: dict[str, dict[str, Any]] = {
    "robustness": {"images": "all", "epsilon": [0.5], "pgd_steps": 3, "pgd_step": 0.5},
    "nas": {"images": "all", "networks": ["vgg5_w16", "convnet_w32", "resnet10_w8"]},
    "continual": {"steps": [2], "memory": "herding"},
    "slimming": {"network": "vgg11_bn", "l1": 0.1, "epochs": 3, "kept": [0.5]},
}


@pytest.mark.parametrize("name", pipeline.APPLICATIONS)
def test_a_field_counts_where_it_has_an_effect(name: str) -> None:
    every = {field: value for fields in ACTIVE.values() for field, value in fields.items()}
    assert {"name", *every} == {f for f in config.dump(Apply())}
    base = chosen(name)
    changed = {
        field for field, value in every.items() if key(chosen(name, **{f"apply.{field}": value})) != key(base)
    }
    assert changed == set(ACTIVE[name])


@pytest.mark.parametrize("name", pipeline.APPLICATIONS)
def test_what_changes_nothing_is_in_no_name(name: str) -> None:
    """When students are looked at while they learn; and which student, where none is built."""
    base = chosen(name)
    looks: dict[str, Any] = {"reports": 7, "report_epochs": [1], "select": "best_val"}
    for field, value in looks.items():
        assert key(config.override(base, {f"evaluate.{field}": value})) == key(base), field
    for field, value in {"lr": 0.5, "loss": "hard", "epochs": 7, "ema_buffers": False}.items():
        assert key(config.override(base, {f"evaluate.{field}": value})) != key(base), field
    other = key(config.override(base, {"evaluate.student": "vgg5_w16"}))
    assert (other == key(base)) == (name in ("nas", "slimming"))


def test_on_all_images_the_set_has_no_part_in_the_name() -> None:
    base = chosen("robustness", apply__images="all")
    assert [task.stage for task in pipeline.tasks(base, "apply")] == ["ingest", "apply"]
    other: dict[str, Any] = {"recover.lr": 0.5, "squeeze.observers": ["vgg5_w16"], "relabel.batch_size": 7}
    for path, value in other.items():
        assert key(config.override(base, {path: value})) == key(base)
    other = {"squeeze.lr": 0.5, "evaluate.seeds": [3], "split.val": 0.2}
    for path, value in other.items():
        assert key(config.override(base, {path: value})) != key(base)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("robustness", {"epsilon": [0.1, 0.05]}, "apply.epsilon"),
    ("robustness", {"epsilon": [0.0]}, "apply.epsilon"),
    ("robustness", {"epsilon": []}, "apply.epsilon"),
    ("nas", {"networks": ["vgg5_w16", "convnet_w32"]}, "apply.networks"),
    ("nas", {"networks": []}, "apply.networks"),
    ("nas", {"networks": ["vgg5_w16", "convnet_w32", "vgg6"]}, "apply.networks.2"),
    ("continual", {"steps": [5, 11]}, "apply.steps"),
    ("continual", {"steps": []}, "apply.steps"),
    ("slimming", {"network": "resnet10_w8"}, "apply.network"),
    ("slimming", {"network": "vgg12"}, "apply.network"),
    ("slimming", {"kept": [0.5, 0.5001]}, "apply.kept"),
    ("slimming", {"kept": [0.5, 0.9999]}, "apply.kept"),
    ("slimming", {"kept": []}, "apply.kept"),
    ("juggling", {}, "apply.name"),
]


@pytest.mark.parametrize(("name", "changes", "path"), BAD)
def test_what_cannot_be_is_refused(name: str, changes: dict[str, Any], path: str) -> None:
    experiment = chosen(name, **{f"apply.{field}": value for field, value in changes.items()})
    with pytest.raises(config.ConfigError) as error:
        pipeline.check_application(experiment, 10)
    assert error.value.path == path


def test_on_all_images_networks_need_epochs() -> None:
    experiment = chosen("nas", apply__images="all", squeeze__epochs=0, squeeze__weights="torchvision")
    with pytest.raises(config.ConfigError, match=r"squeeze\.epochs = 0: must be >= 1"):
        pipeline.check_application(experiment, 10)


def test_an_unknown_application_is_refused_by_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["apply", "robustnes", "digits/ipc1", "--set", f"runtime.store={tmp_path / 's'}"]) == 2
    _, err = capsys.readouterr()
    assert "did you mean robustness?" in err and not list(tmp_path.iterdir())


def studied(name: str, *changes: str, final: bool = False) -> applications.Study:
    return applications.study(name, given.open_set("digits/ipc1", None, ["split.val=0.3", *changes]), final)


def test_files_are_named_by_what_was_compared() -> None:
    """The recipe and the seeds, and not how the set was called."""
    plain = studied("robustness")
    changes = ["evaluate.loss=hard", "recover.iterations=0", "evaluate.seeds=[4, 5]", "apply.epsilon=[0.5]"]
    stems = {applications.stem(studied("robustness", change)) for change in changes}
    assert len(stems | {applications.stem(plain)}) == 1 + len(changes)
    other = replace(plain, given=replace(plain.given, name="./digits/ipc1"))
    assert applications.stem(other) == applications.stem(plain)


@pytest.mark.parametrize(
    ("name", "change", "path"),
    [("robustness", "apply.images=all", "apply.images"), ("nas", "apply.images=all", "apply.images"),
     ("continual", "apply.memory=herding", "apply.memory"), ("nas", "apply.name=slimming", "apply.name")],
)  # fmt: skip
def test_what_the_arms_differ_in_cannot_be_set_for_all(name: str, change: str, path: str) -> None:
    with pytest.raises(config.ConfigError, match="is set by") as error:
        studied(name, change)
    assert error.value.path == path


# --- the stage ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("apply")))


def rows(store: Store, experiment: Experiment) -> dict[str, list[Any]]:
    """Unit -> its rows, made now."""
    found = pipeline.ensure(experiment, store, RUNTIME, pipeline.in_process(store, RUNTIME), upto="apply")
    units = pipeline.manifest(found[-1], store)["units"]
    return {name: unit["meta"]["rows"] for name, unit in units.items()}


def accuracy(store: Store, experiment: Experiment) -> float:
    found = pipeline.ensure(experiment, store, RUNTIME, pipeline.in_process(store, RUNTIME))
    return float(pipeline.facts(found[-1], store)["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "hard"])
def test_what_is_attacked_is_the_student_of_evaluate(loss: str, store: Store) -> None:
    more: dict[str, Any] = {"evaluate__epochs": 30, "squeeze__epochs": 6}
    experiment = chosen("robustness", evaluate__loss=loss, apply__epsilon=[0.02], **more)
    ((clean, *attacked),) = rows(store, experiment).values()
    assert clean == ["clean", 0.0, pytest.approx(accuracy(store, experiment))]
    assert all(value <= clean[2] for _, _, value in attacked) and clean[2] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "hard"])
def test_a_run_of_two_steps_by_hand(loss: str, store: Store) -> None:
    """The last step is a student of all classes; the first one of five, on their images alone."""
    more: dict[str, Any] = {"evaluate__epochs": 20, "squeeze__epochs": 4}
    experiment = chosen("continual", evaluate__loss=loss, apply__steps=[2], **more)
    found = rows(store, experiment)
    assert list(found) == ["classes-00005", "classes-00010"]
    assert [row[:2] for each in found.values() for row in each] == [["2 steps", 5.0], ["2 steps", 10.0]]
    task = pipeline.tasks(experiment, "apply")[-1]
    inputs = pipeline.worker.Inputs(store, RUNTIME, torch.device("cpu"))
    for count, each in ((5, found["classes-00005"]), (10, found["classes-00010"])):
        assert each[0][2] == pytest.approx(step_by_hand(task, inputs, count))


@pytest.mark.slow
def test_herding_looks_at_each_class_once_and_at_those_seen_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker, units of 4 and of all classes: what is remembered does not change."""
    experiment = chosen("continual", evaluate__epochs=1, apply__steps=[3], apply__memory="herding")
    rows(store, experiment)
    looked, original = list[int](), fit.features

    def counted(model: nn.Module, images: Any, together: int) -> Tensor:
        looked.append(len(images))
        return original(model, images, together)

    monkeypatch.setattr(fit, "features", counted)
    task, worker = pipeline.tasks(experiment, "apply")[-1], pipeline.Worker(store, RUNTIME)
    for unit, seen in (("classes-00004", 4), ("classes-00010", 10), ("classes-00007", 10)):
        list(worker.run(task, unit))
        assert len(looked) == seen


def step_by_hand(task: pipeline.Task, inputs: pipeline.worker.Inputs, count: int) -> float:
    """Trains on the images of the classes seen and counts what is right, image by image.

    Soft labels are those of the observers, cut column by column.
    """
    from edc_ray.core import relabel, train
    from edc_ray.core.random import seed_of

    exp, real, judge = task.experiment, inputs.real(task), inputs.judge(task)
    seen = torch.randperm(10, generator=torch.Generator().manual_seed(seed_of("continual", 0)))[
        :count
    ].tolist()
    images, labels = inputs.start_images(task)
    kept = [i for i, label in enumerate(labels.tolist()) if label in seen]
    own = torch.tensor([seen.index(int(labels[i])) for i in kept])
    model = models.build(exp.evaluate.student, count, real.size, seed_of("student", 0))
    student = train.Student(exp, model, images[kept], own, (real.mean, real.std))
    for page in range(1000):
        views = relabel.page_views(exp.relabel, len(kept), real.size, 0, page)
        made = relabel.Page(page * relabel.page_steps(exp.relabel), views, ())
        if exp.evaluate.loss != "hard":
            teachers = list(inputs.observers(task).values())
            norm = real.mean, real.std
            whole = relabel.label_page(exp.relabel, teachers, images[kept], norm, 0, page, 1000)
            logits = tuple(torch.stack([one[:, c] for c in seen], 1) for one in whole.logits)
            made = relabel.Page(whole.first_step, whole.views, logits)
        for _ in student.advance([made], student.total):
            pass
        if student.step == student.total:
            break
    right = [
        seen[int(student.predict(judge.images[torch.tensor([i])]).argmax())] == int(label)
        for i, label in enumerate(judge.labels)
        if int(label) in seen
    ]
    return sum(right) / len(right)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["continual", "slimming", "robustness"])
def test_an_interrupted_unit_goes_on_to_the_same_numbers(
    name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.worker, "TELL_SECONDS", 0.0)
    small: dict[str, dict[str, Any]] = {
        "continual": {"steps": [3]},
        "slimming": {"kept": [0.5], "epochs": 1},
        "robustness": {"epsilon": [0.1]},
    }
    experiment = chosen(name, **{f"apply.{field}": value for field, value in small[name].items()})
    want = rows(store, experiment)
    other = Store(str(tmp_path))
    often = replace(RUNTIME, checkpoint_seconds=0.0)
    mapper = pipeline.in_process(other, often)
    for stage in ("relabel", "sparse") if name == "slimming" else ("relabel",):
        pipeline.ensure(experiment, other, often, mapper, upto=stage)
    task = pipeline.tasks(experiment, "apply")[-1]
    unit = pipeline.units(task, often)[0 if name == "slimming" else -1]
    running: Any = pipeline.Worker(other, often).run(task, unit)
    for _ in range(3):
        assert isinstance(next(running), pipeline.Progress)
    running.close()
    assert other.artifact(task.stage, task.key).load_checkpoint(unit) is not None
    assert rows(other, experiment) == want


COPIED = {"squeeze.observers", "squeeze.weights", "squeeze.checkpoint_epoch", "squeeze.epochs"}  # not used
USES: list[tuple[str, dict[str, Any]]] = [
    ("robustness", {}), ("robustness", {"apply__images": "all"}), ("robustness", {"evaluate__loss": "hard"}),
    ("nas", {}), ("nas", {"apply__images": "all"}),
    ("continual", {}), ("continual", {"apply__memory": "herding"}),
    ("continual", {"evaluate__loss": "hard"}), ("slimming", {"apply__epochs": 1}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), USES)
def test_no_field_is_read_that_is_in_no_key(name: str, changes: dict[str, Any], store: Store) -> None:
    """Else two different results would have one name."""
    experiment = chosen(name, **{"evaluate__epochs": 1, **changes})
    rows(store, experiment)
    for task in pipeline.tasks(experiment, "apply"):
        if task.stage not in pipeline.ENDS:
            continue
        seen: set[str] = set()
        watched = replace(task, experiment=spied(experiment, seen))
        list(pipeline.Worker(store, RUNTIME).run(watched, pipeline.units(task, RUNTIME)[0]))
        above = {task.stage, *dict(task.inputs)}
        declared = {path for stage in above for path in pipeline.ROWS[stage].reads(experiment)}
        strange = {p for p in seen if not any(p == d or p.startswith(d + ".") for d in declared)}
        allowed = {"precision", "dataset.path", *(COPIED if "squeeze" not in above else ())}
        assert strange <= allowed, f"{task.stage} reads {strange}"


# --- the command --------------------------------------------------------------------------------------------

TINY = [
    "dataset.limit=200", "dataset.size_px=8", "squeeze.epochs=1", "recover.iterations=2", "evaluate.epochs=2",
    "squeeze.observers=[convnet_w16_d2, vgg5_w16]", "evaluate.student=convnet_w16_d2", "evaluate.reports=2",
    "evaluate.seeds=[0, 1]", "runtime.device=cpu", "split.val=0.3",
]  # fmt: skip
SMALL = {
    "robustness": ["apply.pgd_steps=2"],
    "nas": ["apply.networks=[w4_d1_batch_relu, w4_d2_batch_relu, vgg5_w16]"],
    "continual": ["apply.steps=[2, 5]"],
    "slimming": ["apply.epochs=1", "apply.kept=[0.25, 0.5]"],
}
COUNTS = {"robustness": 3 * 7, "nas": 3 * 3, "continual": 3 * 7, "slimming": 3 * 5}  # rows of one seed


def apply(capsys: pytest.CaptureFixture[str], name: str, place: Path, *more: str) -> str:
    sets = [f"--set={each}" for each in (*TINY, *SMALL[name], f"runtime.store={place / 'store'}")]
    code = cli.main(["apply", name, "digits/ipc1", *sets, *more])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.mark.slow
@pytest.mark.parametrize("name", pipeline.APPLICATIONS)
def test_the_command_writes_what_it_says(
    name: str, place: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = apply(capsys, name, place)
    assert f"{name} of digits/ipc1 (1 images a class)" in out and "the paper: " in out
    assert "accuracy on val (61 images) in %, mean and 95 % interval, seeds 0, 1;" in out
    files = re.search(r"^written to (.*)$", out, re.M)[1].split(", ")  # type: ignore[index]
    told = json.loads(Path(files[0]).read_text())
    assert told["apply"]["name"] == name and told["arms"] == ["condensed", *applications.BASELINES[name]]
    table = pq.read_table(files[1]).to_pylist()
    assert table == told["records"] and len(table) == 2 * COUNTS[name]
    assert {(row["arm"], row["seed"]) for row in table} == {(arm, s) for arm in told["arms"] for s in (0, 1)}
    assert all(0 <= row["accuracy"] <= 1 for row in table)
    assert Path(files[2]).read_bytes().startswith(b"\x89PNG")
    if name == "nas":
        over = told["ranks"]["over"]
        assert f"the same resamples: {over['rho']:+.2f} [{over['low']:+.2f}, {over['high']:+.2f}]" in out
    again = apply(capsys, name, place)
    assert "units" not in again and again.splitlines()[-5:] == out.splitlines()[-5:]


@pytest.mark.slow
def test_the_table_has_the_means_of_the_records(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = apply(capsys, "slimming", place)
    told = json.loads(Path(re.search(r"written to ([^,]*)", out)[1]).read_text())  # type: ignore[index]
    mean: dict[str, float] = {}
    for arm in told["arms"]:
        each = [
            r["accuracy"]
            for r in told["records"]
            if (r["arm"], r["series"], r["x"]) == (arm, "fine-tuned", 0.5)
        ]
        mean[arm] = 100 * sum(each) / len(each)
    (line,) = re.findall(r"^fine-tuned +0\.5 +(.*)$", out, re.M)
    shown = [float(number) for number in re.findall(r"(-?[\d.]+) \+-", line)]
    over = [mean["condensed"] - mean[arm] for arm in told["arms"][1:]]
    assert shown == pytest.approx([*mean.values(), *over], abs=0.006)
    cut: dict[float, list[float]] = {}
    for r in told["records"]:
        if (r["arm"], r["series"]) == ("condensed", "cut"):
            cut.setdefault(r["x"], []).append(r["accuracy"])
    assert list(cut) == [0.25, 0.5, 1.0] and len(set(cut[1.0])) == 2, "another network for each seed"
    for size, channels in zip(told["sizes"], (44, 88, 176), strict=True):
        assert size["channels"] == channels and len(size["parameters"]) == 2
        said = f"{size['kept']:g} +{channels} .*  {50 * sum(cut[size['kept']]):.2f} \\+- [\\d.]+$"
        assert re.search(f"^{said}", out, re.M), said


@pytest.mark.slow
def test_final_reads_test_and_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = apply(capsys, "robustness", place, "--final", "--set", "apply.epsilon=[0.1]")
    assert "reading test of digits" in out and "accuracy on test (" in out
    said = re.search(r"on record in this store: (\d+)", out)[1]  # type: ignore[index]
    assert int(said) == len(Store(str(place / "store")).read_lines(pipeline.READS)) > 0
