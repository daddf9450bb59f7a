"""DD-Ranking: the scores against numbers worked out by hand, and teachers that see what ours see."""

import json
import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from edc_ray import ddranking, evaluation, export, given, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Dataset, Evaluate, Relabel, Runtime, dump
from edc_ray.core import data, models
from edc_ray.evaluation import Cell
from tests.test_judge import quick

HOW = Runtime(device="cpu")


# --- scores: docs/ddranking.md ------------------------------------------------------------------------------


def test_the_label_robust_score_by_hand() -> None:
    """HLR 0.10 and IOR -0.02, a case where version 0.2.0 errs: alpha = -0.06, e^-0.06 = 0.941765."""
    found = ddranking.label_robust(full_hard=0.60, hard=0.50, soft=0.40, random_soft=0.42)
    assert found.hlr == pytest.approx(0.10) and found.ior == pytest.approx(-0.02)
    assert found.lrs == pytest.approx((0.941765 - 0.367879) / 2.350402, abs=1e-6)  # 0.244165
    assert found.lrs == pytest.approx(0.244165, abs=1e-6)
    on_percents = (math.exp(0.5 * -2 - 0.5 * 10) - math.exp(-1)) / (math.e - math.exp(-1))
    assert on_percents == pytest.approx(-0.155, abs=1e-3), "what the package gives: not in [0, 1]"


def test_the_weight_of_the_label_robust_score() -> None:
    only_ior = ddranking.label_robust(0.6, 0.5, 0.9, 0.4, weight=1.0)
    only_hlr = ddranking.label_robust(0.6, 0.5, 0.9, 0.4, weight=0.0)
    assert only_ior.lrs == pytest.approx((math.exp(0.5) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert only_hlr.lrs == pytest.approx((math.exp(-0.1) - math.exp(-1)) / (math.e - math.exp(-1)))


def test_the_augmentation_robust_score_by_hand() -> None:
    """Gains of 0.10 with views and 0.02 without: beta = 0.06, e^0.06 = 1.061837."""
    found = ddranking.augmentation_robust(0.50, 0.40, 0.32, 0.30)
    assert found == pytest.approx((1.061837 - 0.367879) / 2.350402, abs=1e-6)  # 0.295251
    assert ddranking.augmentation_robust(0.5, 0.4, 0.3, 0.3, weight=0.0) == pytest.approx(
        ddranking.normalized(0.0)
    )


def test_scores_lie_between_0_and_1() -> None:
    assert ddranking.label_robust(1, 0, 0, 1).lrs == 0 and ddranking.label_robust(0, 1, 1, 0).lrs == 1
    assert ddranking.augmentation_robust(0, 1, 0, 1) == 0 and ddranking.augmentation_robust(1, 0, 1, 0) == 1
    assert ddranking.normalized(0) == pytest.approx(0.268941, abs=1e-6)  # no gain and no loss: 1 / (1 + e)
    assert ddranking.normalized(0) == pytest.approx(1 / (1 + math.e))
    for percents in ((60, 50, 40, 42), (0.6, 0.5, float("nan"), 0.4)):
        with pytest.raises(ValueError, match="fractions"):
            ddranking.label_robust(*percents)
        with pytest.raises(ValueError, match="fractions"):
            ddranking.augmentation_robust(*percents)


@pytest.mark.slow
def test_scores_are_of_the_eight_arms(store: Store) -> None:
    """hard and plain are without views, random ones are fresh draws, and all images are seen once."""
    experiment = quick(evaluate__seeds=[0, 1], evaluate__student="vgg5_w16", evaluate__reports=1)
    found = given.Given("x", experiment, Runtime(store=store.root, device="cpu"), {}, (), ())
    (cell,) = evaluation.cells(found, ["own"], [], final=False)
    arms = evaluation.score_arms(cell)
    (hard,), (plain,) = arms["hard"], arms["plain"]
    assert hard.evaluate.loss == "hard" and plain.evaluate.loss == experiment.evaluate.loss
    for each in (hard, plain, *arms["random_plain"]):
        cfg = each.relabel
        assert (cfg.mix, cfg.crop_min, cfg.flip, cfg.randaugment_ops) == ("none", 1.0, False, 0)
    assert [e.init for e in arms["random_plain"]] == [e.init for e in cell.random_real]
    assert arms["full_hard"][0].squeeze.observers == ("vgg5_w16",)
    mapper = pipeline.in_process(store, HOW)
    for _, each in cell.experiments():
        pipeline.ensure(each, store, HOW, mapper)
    for name, experiments in arms.items():
        for each in experiments:
            pipeline.ensure(each, store, HOW, mapper, upto="squeeze" if name == "full_hard" else "evaluate")
    told = evaluation.facts(found, [cell], store)
    scores = evaluation.scored(told["rows"][0], cell, store)
    read = scores["accuracies"]
    assert set(read) == {*ddranking.LABEL_ARMS, *ddranking.AUGMENTATION_ARMS}
    assert all(len(values) == 2 for values in read.values())
    assert read["soft"] == told["rows"][0]["condensed"]
    want = ddranking.label_robust(*(read[name][1] for name in ("full_hard", "hard", "soft", "random_soft")))
    assert (scores["lrs"][1], scores["hlr"][1], scores["ior"][1]) == (want.lrs, want.hlr, want.ior)
    want_ars = ddranking.augmentation_robust(
        read["soft"][0], read["random_soft"][0], read["plain"][0], read["random_plain"][0]
    )
    assert scores["ars"][0] == want_ars
    told["rows"][0]["scores"] = scores
    (line,) = evaluation.score_lines(told)
    assert line.startswith("DD-Ranking, own, vgg5_w16, val: HLR ") and ", LRS " in line and ", ARS " in line


def test_scores_need_a_recipe_for_all_images() -> None:
    experiment = quick(
        squeeze__epochs=0, squeeze__weights="torchvision", squeeze__observers=["torchvision/vgg11"]
    )
    with pytest.raises(ConfigError, match="no recipe for all real images"):
        evaluation.score_arms(Cell("own", "wrn_16_2", (), experiment, ()))


# --- its layout ---------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """ConvNet-3 of ddranking/utils/networks.py."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (3, 128, 128):
            layers += [
                nn.Conv2d(inputs, 128, 3, padding=1),
                nn.GroupNorm(128, 128),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def test_a_teacher_gives_the_same_logits_there(rng: torch.Generator) -> None:
    levels = torch.randint(256, (4, 3, 32, 32), generator=rng, dtype=torch.uint8)
    ours = models.build("convnet_w128", 10, 32, 0).eval()
    twin = ConvNet().eval()
    twin.load_state_dict(ddranking.weights("convnet_w128", ours.state_dict(), "cifar10"))
    with torch.no_grad():
        want = ours(data.normalize(levels, *data.CONSTANTS["cifar10"]))
        found = twin(ddranking.images(levels, "cifar10"))
        wrong = twin(data.normalize(levels, *data.CONSTANTS["cifar10"]))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert (wrong - want).abs().max() > 1e-2, "its pixels have another scale"


def test_the_names_of_a_small_resnet18() -> None:
    """As its networks.py builds it: 3x3 stem, and the shortcut behind the two convolutions of a block."""
    ours = models.build("resnet18", 10, 32, 0).state_dict()
    names = ddranking.weights("resnet18", ours, "cifar10")
    assert len(names) == len(ours) == 122 and list(names)[:2] == ["conv1.weight", "bn1.weight"]
    shapes = {name: tuple(value.shape) for name, value in names.items()}
    assert shapes["conv1.weight"] == (64, 3, 3, 3) and shapes["classifier.weight"] == (10, 512)
    assert shapes["layer2.0.conv1.weight"] == (128, 64, 3, 3)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer2.0.shortcut.0.weight"] == (128, 64, 1, 1)
    assert shapes["layer4.1.bn2.running_var"] == (512,) and "layer1.0.shortcut.0.weight" not in shapes


def test_a_librarys_network_only_loses_its_wrapper() -> None:
    from torchvision import models as library

    ours = models.build("torchvision/resnet18", 10, 64, 0).state_dict()
    named = ddranking.weights("torchvision/resnet18", ours, "imagenet")
    library.resnet18(num_classes=10).load_state_dict(named)
    assert torch.equal(named["conv1.weight"], ours["net.conv1.weight"])


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no such teacher; only convnet_w128, .*relabel.observers"):
        ddranking.weights("wrn_16_2", {"a.weight": torch.zeros(1, 3, 1, 1)}, "cifar10")
    for name in ("cifar100", "measured"):
        with pytest.raises(ConfigError, match=r"dataset.normalization = .*means of cifar10 or imagenet"):
            ddranking.images(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), name)


def test_the_exported_layout(tmp_path: Path) -> None:
    """docs/ddranking.md: shapes, class order, normalisation, teachers, settings."""
    store = Store(str(tmp_path / "store"))
    experiment = quick(
        dataset__size_px=16, dataset__normalization="cifar10", squeeze__observers=["convnet_w128"],
        recover__iterations=0, init__ipc=2, relabel__mix="cutmix", evaluate__student="convnet_w128",
    )  # fmt: skip
    tasks = pipeline.ensure(experiment, store, HOW, pipeline.in_process(store, HOW), upto="relabel")
    found = given.Given("x", experiment, Runtime(store=store.root, device="cpu"), {}, (), ())
    out = tmp_path / "out"
    export.write(export.opened(found), "ddranking", str(out), store)
    recover = next(task for task in tasks if task.stage == "recover")
    levels = store.artifact("recover", recover.key).read("all")[0]["images"]
    images = torch.load(out / "images.pt", weights_only=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in ddranking.CIFAR)
    assert images.dtype == torch.float32 and images.shape == (20, 3, 16, 16)
    torch.testing.assert_close(images, (levels.float() / 255 - mean) / std)
    files = sorted(str(file.relative_to(out)) for file in (out / "images").glob("*/*.png"))
    assert files == [f"images/{i:05d}/{j:05d}.png" for i in range(10) for j in range(2)]
    teacher = torch.load(out / "teachers" / "digits" / "ConvNet-3" / "ckpt_best.pt", weights_only=True)
    assert teacher["classifier.weight"].shape == (10, 128 * 4)
    settings = yaml.safe_load((out / "settings.yaml").read_text())
    assert settings["teacher_model_names"] == ["ConvNet-3"] and settings["soft_label_mode"] == "M"
    assert settings["ipc"] == 2 and settings["im_size"] == [16, 16] and settings["model_name"] == "ConvNet-3"
    assert json.loads((out / "card.json").read_text())["files"] == 20 + 3


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"loss": "mse", "ce_weight": 0.1}, ("mse_gt", {"mse_weight": 1.0, "ce_weight": 0.1})),
        ({"loss": "kl", "temperature": 7.0}, ("kl", {"temperature": 7.0, "scale_loss": False})),
    ],
)
def test_settings_follow_the_recipe(fields: dict[str, object], want: tuple[str, object]) -> None:
    recipe = dump(Relabel(crop_min=1.0, flip=False, mix="none")) | dump(Evaluate()) | fields
    about = Dataset(name="cifar10", size_px=32, normalization="cifar10")
    found = ddranking.settings(about, 10, "resnet18", ["ResNet-18-BN"], recipe)
    assert (found["soft_label_criterion"], found["loss_fn_kwargs"]) == want
    assert found["data_aug_func"] is None and found["dataset"] == "CIFAR10"
    assert [each["name"] for each in found["custom_train_trans"]] == ["ToTensor", "Normalize"]
    cropped = ddranking.settings(about, 10, "resnet18", [], recipe | {"crop_min": 0.5, "flip": True})
    names = OrderedDict((each["name"], each["args"]) for each in cropped["custom_train_trans"])
    assert list(names)[:2] == ["RandomResizedCrop", "RandomHorizontalFlip"]
    assert names["RandomResizedCrop"] == {"size": [32, 32], "scale": [0.5, 1.0]}
