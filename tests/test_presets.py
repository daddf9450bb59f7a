"""PRESETS: every row is an experiment that the tables know, with the published number and its source."""

import re
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from edc_ray import cli, pipeline, presets
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Dataset, Experiment, dump, hashed, load, override
from edc_ray.core import models
from edc_ray.core.data import DATASETS, Listing, Source
from edc_ray.core.data.cifar import CIFAR
from edc_ray.core.data.folders import IMAGENET_10
from edc_ray.core.data.source import Part, select
from edc_ray.pipeline import check, check_names, graph
from edc_ray.presets import PRESETS, experiment, text
from edc_ray.presets.why import WHY
from tests import layouts, tiny

ROOT = Path(__file__).parents[1]
SMALL, LARGE = ("cifar10", "cifar100", "tiny_imagenet"), ("imagenet_10", "imagenet_1k")
DIGITS = ["digits/ipc1", "digits/ipc2"]
VERSIONED = [f"edc/{data}/ipc{ipc}" for data in SMALL + LARGE for ipc in (1, 10, 50)]


def got(name: str, paths: Iterable[str]) -> dict[str, Any]:
    return {path: attrgetter(path)(experiment(name)) for path in paths}


# --- every row ----------------------------------------------------------------------------------------------


def test_every_preset_is_a_legal_experiment_that_the_tables_know() -> None:
    for name, preset in PRESETS.items():
        made = experiment(name)
        assert load(Experiment, dump(made)) == made != Experiment(), name
        check_names(made)
        assert name.removesuffix("/paper").removesuffix("/official").endswith(f"/ipc{made.init.ipc}")
        assert preset.source and (preset.target is None or 0 < preset.target < 1), "a fraction, not per cent"
        if name not in DIGITS:
            data = name.split("/")[1]
            assert (made.dataset.name, made.dataset.path) == (data, f"data/{data}"), name
            assert made.split.val == 0 and len(made.evaluate.seeds) >= 3, "read on test, by several students"
            assert made.dataset.size_px == {"tiny_imagenet": 64}.get(data, 32 if data in SMALL else 224)
            assert made.statistics.patch == (4 if data in SMALL else 16), name


@pytest.mark.parametrize("name", DIGITS)
def test_what_needs_no_download_could_run_at_once(name: str) -> None:
    check(experiment(name))
    assert len(graph.tasks(experiment(name))) == 7


def test_there_is_a_row_for_every_result() -> None:
    names = [f"{name}{version}" for name in VERSIONED for version in ("", "/paper", "/official")]
    names += [f"config_{letter}/imagenet_1k/ipc10" for letter in "abcdefg"]
    for method in ("sre2l", "cda", "g_vbsm", "rded", "random_real", "random_real_hard", "t0"):
        names += [f"{method}/{data}/ipc{ipc}" for data in ("cifar10", "imagenet_1k") for ipc in (10, 50)]
    assert set(names) <= PRESETS.keys()


def test_no_two_rows_are_one_but_those_that_are() -> None:
    """EDC is CONFIG G, and EDC on CIFAR-10 starts from random real images."""
    same: dict[str, list[str]] = {}
    for name in PRESETS:
        same.setdefault(str(hashed(experiment(name))), []).append(name)
    assert sorted(names for names in same.values() if len(names) > 1) == [
        ["edc/imagenet_1k/ipc10", "config_g/imagenet_1k/ipc10"],
        *(["random_real/cifar10/ipc" + ipc, "t0/cifar10/ipc" + ipc] for ipc in ("1", "10", "50")),
    ]
    assert experiment(None) == Experiment()


# --- the numbers, typed a second time -----------------------------------------------------------------------

PUBLISHED: dict[str, tuple[Any, ...]] = {  # % at 1, 10, 50 images a class; method.md 8
    "edc/cifar10": (32.6, 79.1, 87.0), "edc/cifar100": (39.7, 63.7, 68.6),
    "edc/tiny_imagenet": (39.2, 51.2, 57.2), "edc/imagenet_10": (45.2, 63.4, 82.2),
    "edc/imagenet_1k": (12.8, 48.6, 58.0),
    "sre2l/cifar10": (None, 27.2, 47.5), "sre2l/cifar100": (2.0, 31.6, 49.5),
    "sre2l/tiny_imagenet": (None, None, 41.1), "sre2l/imagenet_1k": (2.9, 21.3, 46.8),
    "cda/cifar10": (None, None, None), "cda/tiny_imagenet": (None, None, 48.7),
    "cda/imagenet_1k": (None, 33.5, 53.5),
    "g_vbsm/cifar10": (None, 53.5, 59.2), "g_vbsm/cifar100": (25.9, 59.5, 65.0),
    "g_vbsm/tiny_imagenet": (None, None, 47.6), "g_vbsm/imagenet_1k": (None, 31.4, 51.8),
    "rded/cifar10": (22.9, 37.1, 62.1), "rded/cifar100": (11.0, 42.6, 62.6),
    "rded/tiny_imagenet": (9.7, 41.9, 58.2), "rded/imagenet_10": (24.9, 53.3, 75.5),
    "rded/imagenet_1k": (6.6, 42.0, 56.5),
    "random_real/imagenet_1k": (1.6, 25.8, 54.3), "random_real_hard/imagenet_1k": (0.6, 3.9, 20.4),
}  # fmt: skip
LADDER = {"a": 31.4, "b": 34.4, "c": 38.7, "d": 39.5, "e": 46.2, "f": 48.0, "g": 48.6}


def test_targets_are_the_published_numbers() -> None:
    wanted = {
        f"{row}/ipc{ipc}": n for row, ns in PUBLISHED.items() for ipc, n in zip((1, 10, 50), ns, strict=True)
    }
    wanted |= {f"config_{letter}/imagenet_1k/ipc10": number for letter, number in LADDER.items()}
    for name, preset in PRESETS.items():
        plain = name.removesuffix("/paper").removesuffix("/official")
        number = wanted.get(plain)
        assert preset.target == (None if number is None else pytest.approx(number / 100)), name
        assert preset.measured is None or preset.measured.note, "what was measured, and where"
    assert {name for name, number in wanted.items() if number is not None} <= PRESETS.keys()


def test_other_students_are_models_with_numbers() -> None:
    small = {"resnet50": 0.760, "resnet101": 0.671, "mobilenet_v2_half": 0.42}
    assert presets.students("edc/cifar10/ipc10") == pytest.approx(small)
    assert presets.students("edc/imagenet_1k/ipc10")["timm/deit_tiny_patch16_224"] == pytest.approx(0.184)
    assert not presets.students("digits/ipc1")
    for name in VERSIONED:
        others = presets.students(name)
        assert len(others) in (3, 8) and experiment(name).evaluate.student not in others


# --- the versions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", WHY)
def test_every_difference_between_the_versions_has_its_reason(version: str) -> None:
    for ipc in (1, 10, 50):
        assert {row[0] for row in text.differences(version, ipc)} == set(WHY[version])


def test_fixed_has_no_quirk_and_the_papers_intent() -> None:
    for name in VERSIONED:
        made = experiment(name)
        matching, flat = made.recover.matching, made.recover.flatness
        assert made.quirks == Experiment().quirks
        assert (flat.kind, flat.form, flat.weight, flat.beta, flat.temperature) == (
            "logits", "paper", 0.25, 0.99, 4.0
        )  # fmt: skip
        assert (matching.class_weight, matching.class_form, matching.first_multiplier) == (0.5, "pooled", 10)
        assert matching.bias_correction and matching.reset and matching.momentum == 0.8
        assert made.evaluate.ema_rate == 0.99 and made.evaluate.ema_buffers
        assert made.squeeze.checkpoint_epoch is None and made.recover.crop_min == made.relabel.crop_min == 0.5
        paper = experiment(f"{name}/paper")
        assert paper.recover.matching.class_form == "per_class" and paper.recover.flatness == flat
        assert paper.quirks == made.quirks and paper.evaluate.schedule == made.evaluate.schedule


OFFICIAL: dict[str, dict[str, Any]] = {  # method.md 1, 3.2, 3.3, 5.3, 6.1
    "cifar10": {
        "dataset.normalization": "cifar100", "squeeze.epochs": 5, "squeeze.checkpoint_epoch": 1,
        "squeeze.lr": 0.05, "squeeze.schedule": "constant", "squeeze.weight_decay": 0,
        "recover.iterations": 75, "recover.crop_min": 0.08, "recover.group_images": None,
        "recover.format": "jpeg", "recover.matching.weight": 0.01, "relabel.crop_min": 0.08,
        "relabel.batch_size": 25, "evaluate.optimizer": "adamw", "evaluate.schedule": "multistep",
        "evaluate.gamma": 0.5, "evaluate.milestones": (0.8, 0.9, 0.95), "relabel.randaugment_ops": 2,
        "quirks.verifier_updates": True, "quirks.double_conv_targets": False,
    },
    "cifar100": {
        "squeeze.epochs": 50, "squeeze.checkpoint_epoch": 41, "recover.iterations": 2000,
        "recover.crop_min": 0.5, "recover.group_images": 25, "recover.format": "uint8_truncated",
        "relabel.observers": tuple(presets.CIFAR_OBSERVERS[:5]), "relabel.batch_size": 50,
        "evaluate.optimizer": "sgd", "evaluate.lr": 0.1, "evaluate.momentum": 0.875,
        "evaluate.weight_decay": 5e-4, "evaluate.schedule": "ssrs", "evaluate.zeta": 2,
    },
    "tiny_imagenet": {
        "squeeze.checkpoint_epoch": 41, "squeeze.lr": 0.1, "squeeze.schedule": "cos",
        "squeeze.batch_size": 128, "squeeze.augment.pad_px": 8, "recover.group_images": 25,
        "squeeze.observers": tuple(presets.CIFAR_OBSERVERS[:5]), "relabel.batch_size": 100,
        "evaluate.epochs": 300, "evaluate.optimizer": "sgd", "evaluate.schedule": "cos",
        "quirks.double_conv_targets": True,
    },
    "imagenet_10": {
        "squeeze.weights": "torchvision", "squeeze.epochs": 20, "squeeze.lr": 0.01, "squeeze.zeta": 3,
        "recover.iterations": 50, "recover.matching.momentum": 0, "recover.group_images": 100,
        "recover.format": "jpeg", "relabel.batch_size": 50, "evaluate.epochs": 1000,
        "evaluate.optimizer": "adamw", "evaluate.schedule": "ssrs", "quirks.alphabetical_init": True,
    },
    "imagenet_1k": {
        "squeeze.weights": "torchvision", "squeeze.epochs": 0, "recover.iterations": 1000,
        "recover.matching.weight": 0.1, "recover.group_images": 20, "recover.format": "jpeg",
        "relabel.batch_size": 100, "relabel.randaugment_ops": 0, "evaluate.epochs": 300,
        "evaluate.optimizer": "adamw", "evaluate.schedule": "linear", "evaluate.zeta": 2,
        "quirks.verifier_updates": False, "quirks.double_conv_targets": True,
    },
}  # fmt: skip
LOOKS = {"cifar10": 20, "cifar100": 11, "tiny_imagenet": 11, "imagenet_10": 35, "imagenet_1k": 11}  # B25


@pytest.mark.parametrize("data", OFFICIAL)
def test_official_has_the_scripts_values_and_the_quirks(data: str) -> None:
    name = f"edc/{data}/ipc10/official"
    assert got(name, OFFICIAL[data]) == OFFICIAL[data]
    shared = {
        "recover.matching.class_form": "within_image", "recover.matching.bias_correction": False,
        "recover.matching.reset": False, "recover.flatness.kind": "none", "quirks.swap_class_patch": True,
        "evaluate.ema_rate": 0.99, "evaluate.ema_bias_correction": False, "evaluate.ema_buffers": False,
        "evaluate.ce_weight": 0.025, "evaluate.ce_label": "unmixed",
    } | ({"init.replacement": True} if data in SMALL else {"init.pool": 50, "init.factor": 2})  # fmt: skip
    assert got(name, shared) == shared
    read = experiment(name).evaluate.report_epochs
    assert read is not None and (len(read), read[-1]) == (LOOKS[data], experiment(name).evaluate.epochs)


def test_the_observers_are_those_of_method_md_1_1() -> None:
    for version in ("", "/paper", "/official"):
        ten, thousand = (experiment(f"edc/{data}/ipc10{version}") for data in LARGE)
        assert [len(thousand.squeeze.observers), len(thousand.relabel.observers or ())] == [5, 4]
        assert "torchvision/alexnet" in (thousand.relabel.observers or ())
        assert "torchvision/efficientnet_b0" not in (thousand.relabel.observers or ())
        assert len(ten.squeeze.observers) == 4
        assert len(ten.recover.observers or ten.squeeze.observers) == (3 if version == "/official" else 4)
        for data in SMALL[:2]:
            made = experiment(f"edc/{data}/ipc10{version}")
            assert made.squeeze.observers == tuple(presets.CIFAR_OBSERVERS)
    assert len(set(presets.CIFAR_OBSERVERS)) == 8


# --- ladder and baselines -----------------------------------------------------------------------------------


def test_a_rung_changes_what_the_paper_says() -> None:
    changed = {
        "b": {"init.kind", "recover.iterations"},
        "c": {"evaluate.zeta"},
        "d": {"recover.flatness.kind"},
        "e": {"squeeze.observers", "relabel.observers", "relabel.batch_size", "evaluate.zeta"},
        "f": {"recover.matching.class_weight"},
        "g": {"recover.crop_min", "relabel.crop_min", "evaluate.ema_rate", "evaluate.ema_horizon"},
    }
    for before, after in zip("abcdef", "bcdefg", strict=True):
        one, two = (PRESETS[f"config_{letter}/imagenet_1k/ipc10"] for letter in (before, after))
        every = {path for path in {*one.changes, *two.changes}}
        old, new = (got(f"config_{letter}/imagenet_1k/ipc10", every) for letter in (before, after))
        assert {path for path in every if old[path] != new[path]} == changed[after], after


def test_baselines_do_what_their_names_say() -> None:
    for name in PRESETS:
        made, method = experiment(name), name.split("/")[0]
        if method in ("sre2l", "cda"):
            assert made.recover.matching.families == ("bn",) and made.recover.matching.class_weight == 0
            assert made.init.kind == "noise" and len(made.squeeze.observers) == 1
            assert (made.recover.crop_min_start == 1) == (method == "cda")
            assert made.evaluate.loss == "kl" and made.evaluate.zeta == 1
        if method == "g_vbsm":
            assert made.recover.matching.class_weight == 0 and len(made.squeeze.observers) in (4, 5)
            assert made.evaluate.loss == "mse" and made.evaluate.ce_weight in (0.1, 0.15)
        if method in ("rded", "random_real", "random_real_hard", "t0"):
            assert made.recover.iterations == 0
        if method.startswith("random_real"):
            assert made.init.kind == "real"
            assert (made.evaluate.loss == "hard") == (method == "random_real_hard")
        if method == "rded":
            assert made.init.kind == "rded" and made.init.factor == (1 if name.split("/")[1] in SMALL else 2)
        if method == "t0":
            own = experiment(name.replace("t0/", "edc/"))
            assert (made.init, made.relabel, made.evaluate) == (own.init, own.relabel, own.evaluate)


# --- they run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has data/NAME of every dataset, with the images that a start with 50 a class needs; CIFAR is known."""
    root = tmp_path_factory.mktemp("datasets")
    for name in ("cifar10", "cifar100"):
        (root / "data" / name).mkdir(parents=True)
    layouts.write_tiny_imagenet(root / "data" / "tiny_imagenet", 50, 1)
    layouts.write_imagenet(root / "data" / "imagenet_10", IMAGENET_10, 200, 1, 8)
    (root / "data" / "imagenet_1k").mkdir()
    return root


def thousand(cfg: Dataset) -> Listing:
    """ImageNet-1k as `plan` sees it: names and counts, but no files."""
    labels = torch.arange(200 * 1000) % 1000
    part = Part(labels, torch.arange(len(labels)), lambda rows: iter(()))
    return select(Listing(tuple(f"n{i:08d}" for i in range(1000)), part, part), cfg)


@pytest.mark.parametrize(
    "data", ("digits", *(pytest.param(d, marks=pytest.mark.slow) for d in (*SMALL, *LARGE)))
)
def test_every_preset_can_be_planned(
    data: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is downloaded, decoded or written. 200 images a class are enough: 50 RDED images of 4 crops."""
    monkeypatch.chdir(data_folder)
    monkeypatch.setitem(DATASETS, "imagenet_1k", Source(thousand, lambda cfg: "a thousand"))
    before = sorted(data_folder.rglob("*"))
    for name in PRESETS:
        if data not in name.split("/")[:2]:
            continue
        assert cli.main(["plan", name]) == 0, name
        head, *rows = capsys.readouterr().out.splitlines()
        assert head.split() == ["artifact", "units", "to", "do"], name
        stages = [row.split("-")[0] for row in rows if re.match(r"[a-z]+-[0-9a-f]{12} ", row)]
        assert stages[0] == "ingest" and set(pipeline.needed(experiment(name))) == set(stages), name
        assert stages.count("evaluate") == len(experiment(name).evaluate.seeds)
    assert sorted(data_folder.rglob("*")) == before


ONE_EACH = [f"edc/{data}/ipc1{version}" for data in SMALL + LARGE for version in ("", "/paper", "/official")]
ONE_EACH += [f"{name}/cifar10/ipc10" for name in ("sre2l", "cda", "g_vbsm", "rded", "random_real_hard")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_all_stages_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations, two students' epochs, four or eight real images of three classes, ImageNet at 64 px."""
    preset = experiment(name)
    data = preset.dataset.name
    size = 32 if data in SMALL else 64
    layouts.trust_cifar(monkeypatch, train=4, test=2)
    if data in CIFAR:
        layouts.write_cifar(data, tmp_path / data, 4, 2)
        classes = CIFAR[data].classes[:3]
    elif data == "tiny_imagenet":
        layouts.write_tiny_imagenet(tmp_path / data, 4, 2)
        classes = layouts.WNIDS
    else:
        classes = IMAGENET_10[:3] if data == "imagenet_10" else layouts.WNIDS
        layouts.write_imagenet(tmp_path / data, classes, 8, 2, 72)
    small: dict[str, Any] = {
        "dataset.path": str(tmp_path / data), "dataset.size_px": size, "dataset.classes": list(classes),
        "squeeze.epochs": 1, "squeeze.batch_size": 8, "squeeze.lr": 1e-3, "statistics.shard_images": 16,
        "init.ipc": 1, "init.mipc": 8, "init.crops": 2, "relabel.batch_size": 2, "relabel.page_images": 6,
        "evaluate.epochs": 2, "evaluate.seeds": [0],
    }  # fmt: skip
    small |= {"squeeze.checkpoint_epoch": 1} if preset.squeeze.checkpoint_epoch else {}
    small |= {"init.pool": 2} if preset.init.pool else {}
    small |= {"recover.iterations": 2} if preset.recover.iterations else {}
    small |= {"evaluate.report_epochs": [1, 2]} if preset.evaluate.report_epochs else {}
    if preset.squeeze.weights:  # not downloaded, but read from files
        for observer in preset.squeeze.observers:
            made = models.build(observer, 3, size, 0).state_dict()
            file = tmp_path / "weights" / f"{observer.replace('/', '-')}.pth"
            file.parent.mkdir(exist_ok=True)
            torch.save({key.removeprefix("net."): value for key, value in made.items()}, file)
        small |= {"squeeze.weights": str(tmp_path / "weights"), "squeeze.epochs": preset.squeeze.epochs and 1}
    exp = override(preset, small)
    store, how = Store(str(tmp_path / "store")), tiny.runtime()
    done = tiny.in_process(store, exp, how)
    assert {stage for stage, _, _ in done} == {t.stage for t in graph.tasks(exp)} - {"relabel"}
    images = next(
        value[0]["images"] for key, value in done.items() if key[0] == "recover" and key[2] == "all"
    )
    assert images.shape[0] == 3 and images.shape[-1] == size
    (accuracy,) = (value[1]["accuracy"] for key, value in done.items() if key[0] == "evaluate")
    assert 0 <= accuracy <= 1


# --- the command --------------------------------------------------------------------------------------------


def test_an_unknown_preset_is_refused_with_the_near_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        experiment("edc/cifar10/ipc10/offical")
    assert (caught.value.path, caught.value.value) == ("preset", "edc/cifar10/ipc10/offical")
    assert "did you mean edc/cifar10/ipc10/official" in caught.value.legal
    with pytest.raises(ConfigError, match="`edc-ray presets` lists the 109"):
        experiment("")


def test_the_list_is_one_aligned_line_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == list(PRESETS)
    at = head.index("published")
    assert all(re.match(r"(-|\d+\.\d) ", row[at:]) and row[at - 2 : at] == "  " for row in rows)
    ours = next(row for row in rows if row.startswith("edc/cifar10/ipc10/official "))
    assert "real, 75 steps within_image; observers 8; 1000 epochs of 25, mse, adamw, multistep" in ours
    assert ours.endswith("79.1       -         paper Table 1")


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("sre2l/cifar10", ["sre2l/cifar10/ipc10", "sre2l/cifar10/ipc50"]),
        ("t0/*/ipc1", ["t0/cifar10/ipc1", "t0/imagenet_1k/ipc1"]),
    ],
)
def test_the_list_takes_a_pattern(pattern: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", pattern]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    # A pattern without a wildcard may be any part of the name.
    assert [row.split()[0] for row in rows if row.split()[0] in names] == names
    assert all(presets.find(pattern)[row.split()[0]] for row in rows)


def test_the_list_of_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "edc/cifar11/ipc10"]) == 2
    assert "did you mean edc/cifar10/ipc10" in capsys.readouterr().err
    assert cli.main(["presets", "--markdown", "edc"]) == 2


def test_the_document_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "--markdown"]) == 0
    made = capsys.readouterr().out
    assert made == (ROOT / "docs" / "presets.md").read_text(), "edc-ray presets --markdown > docs/presets.md"
