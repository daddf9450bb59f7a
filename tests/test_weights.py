"""Observers that start from weights: files of a folder, downloads of torchvision and timm; a whole run."""

import logging
import os
import shutil
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor

from edc_ray import config, pipeline, specs
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Experiment, NotThere, Runtime
from edc_ray.core import models
from tests import tiny

CLASSES, SIZE = 10, 16
ROW, NET = "vgg5_w16", "torchvision/shufflenet_v2_x0_5"
PLAIN = Runtime(device="cpu", labels="inline")


def state(name: str, classes: int = CLASSES, seed: int = 7) -> dict[str, Tensor]:
    """What a trained network's file holds."""
    model = models.build(name, classes, SIZE, seed)
    return (model.net if isinstance(model, models.Library) else model).state_dict()


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def loaded(folder: Path, name: str = ROW, new_head: bool = False) -> dict[str, Tensor]:
    """The state dict after the weights were checked and put into a network drawn from another seed."""
    about = name, CLASSES, SIZE
    models.check_weights(str(folder), *about, new_head)
    model = models.build(*about, 0)
    models.load_weights(model, str(folder), *about, new_head)
    return (model.net if isinstance(model, models.Library) else model).state_dict()


def without_counters(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in found.items() if "num_batches" not in key}


# --- files --------------------------------------------------------------------------------------------------

FORMATS: dict[str, Callable[[Path], None]] = {
    "safetensors": lambda folder: safetensors.torch.save_file(state(ROW), folder / f"{ROW}.safetensors"),
    "pth": lambda folder: torch.save(state(ROW), folder / f"{ROW}.pth"),
    "before torch 1.6": lambda folder: torch.save(
        state(ROW), folder / f"{ROW}.pth", _use_new_zipfile_serialization=False
    ),
    "DataParallel's, in a checkpoint": lambda folder: torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state(ROW).items()}},
        folder / f"{ROW}.pth",
    ),
    "more than the network has": lambda folder: torch.save(
        {"model": state(ROW) | {"aux.weight": torch.ones(3)}}, folder / f"{ROW}.pth"
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_a_folder_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path)
    same(loaded(tmp_path), state(ROW))


def test_files_of_before_batchnorm_counted_are_taken(tmp_path: Path) -> None:
    torch.save(without_counters(state(ROW)), tmp_path / f"{ROW}.pth")
    same(without_counters(loaded(tmp_path)), without_counters(state(ROW)))


def test_a_file_of_a_librarys_network_has_a_dash_for_the_slash(tmp_path: Path) -> None:
    trained = torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES)
    torch.save(trained.state_dict(), tmp_path / "torchvision-shufflenet_v2_x0_5.pth")
    same(loaded(tmp_path, NET), dict(trained.state_dict()))


@pytest.mark.parametrize(("name", "head"), [(ROW, "7.2."), (NET, "fc.")])
def test_other_classes_need_a_new_head_which_training_makes(name: str, head: str, tmp_path: Path) -> None:
    other = state(name, classes=4)
    torch.save(other, tmp_path / f"{name.replace('/', '-')}.pth")
    with pytest.raises(ConfigError, match=r"squeeze.weights = .* has 4 classes .* the dataset has 10; "):
        loaded(tmp_path, name)
    found, drawn = loaded(tmp_path, name, new_head=True), state(name, seed=0)
    for key, value in found.items():
        assert torch.equal(value, (drawn if key.startswith(head) else other)[key]), key


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("false",)


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (lambda file: None, f"there is no {ROW}.safetensors or {ROW}.pth in /"),
    (lambda file: torch.save(state("vgg11_bn"), file), "does not fit vgg5_w16 at 16 px"),
    (lambda file: torch.save(dict(list(state(ROW).items())[1:]), file), "1 differences: lacks 0.0.weight"),
    (lambda file: torch.save({"weights": Harm()}, file), "cannot be read as a file of tensors alone"),
    (lambda file: file.write_bytes(b"<html>404</html>"), "cannot be read as a file of tensors alone"),
    (lambda file: file.with_suffix(".safetensors").write_bytes(b"<html>404"), "cannot be read as a file"),
    (lambda file: torch.save([1, 2], file), "is not the state dict of a network"),
]


@pytest.mark.parametrize(("spoil", "legal"), BAD)
def test_what_does_not_fit_is_refused_before_anything_runs(
    spoil: Callable[[Path], Any], legal: str, tmp_path: Path
) -> None:
    spoil(tmp_path / f"{ROW}.pth")
    exp = tiny.experiment(squeeze__weights=str(tmp_path), squeeze__observers=[ROW], dataset__size_px=SIZE)
    with pytest.raises(ConfigError) as caught:
        pipeline.check(exp)
    assert caught.value.path == "squeeze.weights" and legal in str(caught.value)
    assert isinstance(caught.value, NotThere) == ("there is no" in legal)  # `plan` says so and goes on


# --- the libraries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "name", "new_head", "legal"),
    [
        ("torchvision", ROW, True, "needs observers named torchvision/NAME, not vgg5_w16"),
        ("torchvision", "timm/resnet18", True, "needs observers named torchvision/NAME, not timm/resnet18"),
        ("timm", "timm/vit_base_patch16_xp_224", True, "timm has no weights for"),
        (
            "torchvision",
            NET,
            False,
            "has 1000 classes for torchvision/shufflenet_v2_x0_5, the dataset has 10",
        ),
        ("timm", "timm/resnet18", False, "has 1000 classes for timm/resnet18, the dataset has 10"),
    ],
)
def test_weights_that_a_library_has_not_are_refused_without_a_download(
    weights: str, name: str, new_head: bool, legal: str
) -> None:
    with pytest.raises(ConfigError, match=legal) as caught:
        models.check_weights(weights, name, CLASSES, 224, new_head)
    assert (caught.value.path, caught.value.value) == ("squeeze.weights", weights)


def no_network(*args: Any, **kwargs: Any) -> None:
    raise urllib.error.URLError("Name or service not known")


def test_a_download_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    model, before = models.build(NET, CLASSES, SIZE, 0), torch.get_rng_state()
    with pytest.raises(NotThere) as caught:
        models.load_weights(model, "torchvision", NET, CLASSES, SIZE, True)
    url = "https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth"
    for part in (url, str(tmp_path), "Name or service not known", f"as {url.rpartition('/')[2]}"):
        assert part in caught.value.legal

    trained = torchvision.models.shufflenet_v2_x0_5(num_classes=1000).state_dict()
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda _, dst, *rest, **more: torch.save(trained, dst)
    )
    before = torch.get_rng_state()
    models.load_weights(model, "torchvision", NET, CLASSES, SIZE, True)
    assert torch.equal(torch.get_rng_state(), before)
    drawn = state(NET, seed=0)
    want = {key: drawn[key] if key.startswith("fc.") else value for key, value in trained.items()}
    same({key.removeprefix("net."): value for key, value in model.state_dict().items()}, want)


@pytest.mark.slow
def test_a_download_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors
    from timm.models import _hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise errors.LocalEntryNotFoundError("check your connection")

    name = "timm/test_vit"  # 0.4 M parameters
    monkeypatch.setattr(_hub, "hf_hub_download", offline)
    model = models.build(name, CLASSES, 160, 0)
    with pytest.raises(NotThere) as caught:
        models.load_weights(model, "timm", name, CLASSES, 160, True)
    where = "https://huggingface.co/timm/test_vit.r160_in1k"
    for part in (where, "check your connection", "model.safetensors", "timm-test_vit.safetensors"):
        assert part in caught.value.legal

    trained = timm.create_model("test_vit").state_dict()
    safetensors.torch.save_file(trained, tmp_path / "model.safetensors")
    monkeypatch.setattr(_hub, "hf_hub_download", lambda **wanted: str(tmp_path / wanted["filename"]))
    models.load_weights(model, "timm", name, CLASSES, 160, True)
    found = {key.removeprefix("net."): value for key, value in model.state_dict().items()}
    same(*({k: v for k, v in each.items() if not k.startswith("head.")} for each in (found, trained)))
    assert found["head.weight"].shape[0] == CLASSES


# --- in the pipeline ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_observers_as_they_are_from_their_files_to_the_student(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of them with a layer that cannot be matched; random ones, so only guessing."""
    names = ["timm/xcit_nano_12_p8_224", "convnet_w16_d2"]
    for name in names:
        safetensors.torch.save_file(state(name), tmp_path / f"{name.replace('/', '-')}.safetensors")
    exp = tiny.experiment(
        dataset__limit=60, dataset__size_px=SIZE, squeeze__observers=names, squeeze__weights=str(tmp_path),
        squeeze__epochs=0, statistics__shard_images=100, recover__iterations=2, recover__classes_per_group=10,
        relabel__batch_size=10, evaluate__student=NET, evaluate__epochs=1, evaluate__seeds=[0],
    )  # fmt: skip
    pipeline.check(exp)
    store = Store(str(tmp_path / "store"))
    with caplog.at_level(logging.WARNING):
        *_, squeezed, statistics, _, recovered, _, _ = pipeline.ensure(
            exp, store, PLAIN, pipeline.in_process(store, PLAIN)
        )
    for name in names:
        unit = name.replace("/", "-")
        tensors, meta = store.artifact("squeeze", squeezed.key).read(unit)
        held = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        same({key.removeprefix("net."): value for key, value in held.items()}, state(name))
        said = f"{name} cannot be told from guessing: accuracy {100 * meta['accuracy']:.1f} % on 18 images"
        assert [record for record in caplog.records if said in record.getMessage()]
    facts = pipeline.facts(squeezed, store)
    assert set(facts["accuracy"]) == set(names) and len(pipeline.at_chance(facts)) == 2
    sums = store.artifact("statistics", statistics.key).read("all")[0]
    assert {key.rpartition("/")[0] for key in sums} == set(names)
    images = store.artifact("recover", recovered.key).read("all")[0]["images"]
    assert images.shape == (10, 3, SIZE, SIZE)


def test_a_name_in_the_store_follows_the_files_not_the_folder(tmp_path: Path) -> None:
    def key(folder: Path, **more: Any) -> str:
        exp = tiny.experiment(squeeze__observers=[ROW], squeeze__weights=str(folder), **more)
        return pipeline.tasks(exp, "squeeze")[-1].key

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    torch.save(state(ROW), one / f"{ROW}.pth")
    shutil.copytree(one, two)
    first = key(one)
    assert key(two) == first != key(one, squeeze__lr=0.01)
    torch.save(state(ROW, seed=8), two / f"{ROW}.pth")
    assert key(two) != first
    untrained = key(one, squeeze__epochs=0)
    assert untrained not in (first, key(two, squeeze__epochs=0))
    assert untrained == key(one, squeeze__epochs=0, squeeze__lr=0.01, seed=3)
    with pytest.raises(NotThere, match="there is no"):
        key(tmp_path / "three")


def test_training_goes_on_from_the_weights(tmp_path: Path, store: Store) -> None:
    torch.save(state(ROW), tmp_path / f"{ROW}.pth")
    changes: dict[str, Any] = {"squeeze__observers": [ROW], "squeeze__lr": 1e-8, "dataset__size_px": SIZE}
    exp = tiny.experiment(squeeze__weights=str(tmp_path), **changes)
    task = pipeline.ensure(exp, store, PLAIN, pipeline.in_process(store, PLAIN), upto="squeeze")[-1]
    tensors, _ = store.artifact("squeeze", task.key).read(ROW)
    weights = {key: value for key, value in state(ROW).items() if value.ndim > 1}
    found = {key: tensors[f"model.{key}"] for key in weights}
    torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-5)


def test_a_plan_says_what_will_be_downloaded_and_downloads_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    exp = tiny.experiment(squeeze__observers=[NET], squeeze__weights="torchvision", dataset__size_px=SIZE)
    pipeline.check(exp)
    notes = {row.task.stage: row.note for row in pipeline.plan(exp, store, PLAIN)}
    assert notes["squeeze"] == "downloads weights of torchvision that are not in its cache"


def test_names_with_a_slash_and_a_tag_are_units_of_a_store(store: Store) -> None:
    names = ["timm/resnet18", "timm/resnet18.a1_in1k", "torchvision/resnet18", "resnet18"]
    artifact = store.artifact("squeeze", "0" * 12)
    units = [pipeline.unit_of(name) for name in names]
    for i, unit in enumerate(units):
        artifact.write(unit, {"at": torch.tensor(i)}, {})
    assert [int(artifact.read(unit)[0]["at"]) for unit in units] == [0, 1, 2, 3]


def test_a_folder_is_named_from_the_root_for_the_workers() -> None:
    def anchored(weights: str | None) -> str | None:
        return specs.anchored(config.override(Experiment(), {"squeeze.weights": weights})).squeeze.weights

    assert (anchored(None), anchored("timm")) == (None, "timm")
    assert anchored("here") == os.path.abspath("here")
