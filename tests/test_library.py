"""edc_ray as a library: in a few lines from arrays to an accuracy, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import edc_ray
from edc_ray import arrays, cli, config, given
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError
from edc_ray.core import data
from edc_ray.library import Condensed

ROOT = Path(__file__).parents[1]
TINY = [
    "squeeze.observers=[convnet_w16_d2]", "squeeze.epochs=1", "recover.iterations=2", "evaluate.epochs=2",
    "evaluate.student=convnet_w16_d2", "runtime.device=cpu", "split.val=0.25",
]  # fmt: skip


def made(count: int = 24, size: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of 3 classes that differ in brightness."""
    labels = np.arange(count) % 3
    noise = torch.randint(
        0, 40, (count, size, size, 3), generator=torch.Generator().manual_seed(seed)
    ).numpy()
    return (80 * labels[:, None, None, None] + noise).astype(np.uint8), labels


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- in under ten lines -------------------------------------------------------------------------------------

README = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
EXAMPLES = {
    "the README's": README[0],
    "dataset": """
import edc_ray
from torchvision.datasets import ImageFolder

condensed = edc_ray.condense(ImageFolder("train"), ipc=1, changes={"recover.iterations": 3})
print(edc_ray.evaluate(condensed, test=ImageFolder("test")))
""",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_own_dataset_in_under_ten_lines(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is written, with smaller networks and trainings under the example's own changes."""
    images, labels = made(60)
    test_images, test_labels = made(9, seed=1)
    for part, pictures, classes in (("train", images, labels), ("test", test_images, test_labels)):
        for index, (picture, label) in enumerate(zip(pictures, classes, strict=True)):
            (folder / part / "abc"[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / part / "abc"[label] / f"{index}.png")
    lines = EXAMPLES[name].strip().splitlines()
    assert len(lines) < 10
    condense = edc_ray.condense
    fast = {path: config.parse_value(value) for path, value in (change.split("=") for change in TINY)}
    monkeypatch.setattr(
        edc_ray,
        "condense",
        lambda *data, changes=None, **given: condense(*data, changes=fast | (changes or {}), **given),
    )
    given: dict[str, Any] = {
        "images": images, "labels": labels, "test_images": test_images, "test_labels": test_labels,
    }  # fmt: skip
    exec("\n".join(lines), given)
    out = capsys.readouterr().out
    if name == "dataset":
        assert "% on test (9 images), student convnet_w16_d2, seeds [0], protocol own, random real" in out
        assert given["condensed"].classes == ("a", "b", "c")
        return
    assert out.startswith("torch.Size([30, 3, 8, 8]) ('0', '1', '2')\n")
    assert "% on val (15 images), student convnet_w16_d2, seeds [0], protocol own, random real" in out
    assert "% on test (9 images), student vgg5_w16, seeds [0], protocol own, random real" in out
    assert repr(given["again"]) == repr(given["condensed"])
    assert given["again"].path.startswith(f"{folder}/store/recover-")


def sets(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


# --- what it computes ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
def test_ray_actors_give_the_same_bits(folder: Path) -> None:
    """In a process of its own, as a user's program is."""
    program = """
import edc_ray
from tests.test_library import TINY, made

images, labels = made()
changes = [*TINY, "runtime.workers=1"]
here = edc_ray.condense(images, labels, ipc=2, changes=changes, store="here")
there = edc_ray.condense(images, labels, ipc=2, changes=changes, store="there", ray=True)
assert here.path != there.path and here.images.equal(there.images)
one = edc_ray.evaluate(here, seeds=[3])
two = edc_ray.evaluate(there, seeds=[3], ray=True)
assert one.accuracies == two.accuracies, (one, two)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=env, timeout=200)


def test_the_second_call_only_reads_and_the_set_comes_back(folder: Path) -> None:
    images, labels = made()
    first = edc_ray.condense(images, labels, ipc=2, changes=TINY, store="here")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = edc_ray.condense(images, labels, ipc=2, changes=TINY, store="here")
    found = edc_ray.load(first.path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    for other in (again, found):
        assert torch.equal(other.images, first.images) and torch.equal(other.labels, first.labels)
        assert (other.experiment, other.store, other.path) == (first.experiment, first.store, first.path)
        assert other.classes == first.classes == ("0", "1", "2")
    assert first.images.dtype == torch.uint8 and first.images.shape == (6, 3, 8, 8) and len(first) == 6
    assert not (folder / "store").exists()


def test_val_and_given_images_are_read_and_on_record(folder: Path) -> None:
    images, labels = made()
    condensed = edc_ray.condense(images, labels, ipc=1, changes=TINY)
    store = Store(condensed.store)
    on_val = edc_ray.evaluate(condensed, seeds=[3, 4], baseline=False)
    assert (on_val.split, on_val.images, on_val.seeds, on_val.random_real) == ("val", 6, (3, 4), None)
    assert len(on_val.accuracies) == 2 and not store.read_lines("test_reads.jsonl")

    test = made(30, seed=1)
    on_test = edc_ray.evaluate(condensed, test=test, seeds=[3, 4])
    assert (on_test.split, on_test.images, len(on_test.accuracies)) == ("test", 30, 2)
    assert on_test.random_real is not None and len(on_test.random_real) == 2
    lines = store.read_lines("test_reads.jsonl")
    assert len(lines) == 4 and all("images that a program gave" in line["why"] for line in lines)
    assert edc_ray.evaluate(condensed, test=test, seeds=[3, 4]) == on_test
    assert len(store.read_lines("test_reads.jsonl")) == 4  # it was there already
    # The images and labels that were held out, given as a test: what the pipeline itself reads on val.
    held = data.split(torch.from_numpy(labels), 0.25, 0)[1]
    same = edc_ray.evaluate(condensed, test=(images[held], labels[held]), seeds=[3, 4], baseline=False)
    assert same.accuracies == on_val.accuracies


def test_test_images_of_the_dataset_can_be_what_is_judged_on() -> None:
    changes = [*TINY, "split.val=0"]
    condensed = edc_ray.condense(*made(), ipc=1, test=made(9, seed=1), changes=changes)
    found = edc_ray.evaluate(condensed, baseline=False)
    assert (found.split, found.images) == ("test", 9)
    assert Store(condensed.store).read_lines("test_reads.jsonl")


def test_changes_may_be_a_mapping_and_start_from_a_preset() -> None:
    changes = dict(change.split("=") for change in TINY[1:5] if "student" not in change)
    numbers = {path: int(value) for path, value in changes.items()}
    more = {
        "squeeze.observers": ["convnet_w16_d2"],
        "split.val": 0.25,
        "dataset.size_px": 9,
        "runtime.device": "cpu",
    }
    condensed = edc_ray.condense(*made(), ipc=1, preset="digits/ipc2", changes=numbers | more)
    assert condensed.experiment.init.ipc == 1 and condensed.experiment.recover.classes_per_group == 2
    assert condensed.images.shape == (3, 3, 9, 9)


@pytest.mark.parametrize("form", ["image_folder", pytest.param("pt", marks=pytest.mark.slow)])
def test_an_exported_set_is_loaded_and_judged_as_the_set_itself(form: str, folder: Path) -> None:
    condensed = edc_ray.condense(*made(), ipc=2, classes=["a", "b", "c"], changes=TINY)
    assert cli.main(["export", condensed.path, "--format", form, "--out", "shared"]) == 0
    found = edc_ray.load("shared")
    assert torch.equal(found.images, condensed.images) and torch.equal(found.labels, condensed.labels)
    assert found.classes == condensed.classes == ("a", "b", "c")
    one, other = (edc_ray.evaluate(each, baseline=False) for each in (found, condensed))
    assert one == other and (one.split, one.protocol) == ("val", "own")
    assert torch.equal(edc_ray.load(found.path).images, condensed.images)
    # Exported again, it still says what it was made with; and other classes are refused.
    assert cli.main(["export", "shared", "--out", "again"]) == 0
    card = json.loads(Path("again/card.json").read_text())
    assert card["synthesis"] == ["convnet_w16_d2"]
    Path("again/card.json").write_text(json.dumps(card | {"classes": ["a", "c", "b"]}))
    with pytest.raises(
        ConfigError, match="the class order differs from label 1 on: b, c here, c, b in again"
    ):
        edc_ray.load("again")


def test_somebody_elses_images_need_the_dataset_that_judges_them(folder: Path) -> None:
    for label in range(10):
        (folder / "set" / f"c{label}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (20 * label,) * 3).save(folder / "set" / f"c{label}" / "0.png")
    with pytest.raises(ConfigError, match="its test images judge them"):
        edc_ray.load("set")
    changes = ["dataset.size_px=8", "dataset.limit=100"]
    found = edc_ray.load("set", "digits", changes=changes)
    assert found.images[:, 0, 0, 0].tolist() == [20 * label for label in range(10)]
    assert found.labels.tolist() == list(range(10)) and found.experiment.init.kind == "given"
    assert cli.main(["export", "set", "--dataset", "digits", "--out", "out", *sets(changes)]) == 0
    assert json.loads(Path("out/card.json").read_text())["synthesis"] is None
    assert "statistics of unknown networks" in Path("out/README.md").read_text()
    assert given.open_set("out", None, []).synthesis is None  # so that no student counts as unseen


# --- what may be given --------------------------------------------------------------------------------------


class Pairs(Dataset[tuple[Any, Any]]):
    """A map-style dataset that knows its classes."""

    def __init__(self, images: Any, labels: Any, classes: list[str] | None = None) -> None:
        self.images, self.labels = images, labels
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


IMAGES, LABELS = made(6)
FORMS: dict[str, tuple[Any, Any]] = {
    "channels last": (IMAGES, LABELS),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), LABELS),
    "tensors": (torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(LABELS)),
    "floats": (torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255, LABELS.tolist()),
    "doubles": (IMAGES / 255.0, LABELS),
    "pictures": ([Image.fromarray(image) for image in IMAGES], LABELS),
    "dataset of pictures": (Pairs([Image.fromarray(image) for image in IMAGES], LABELS), None),
    "dataset of tensors": (
        TensorDataset(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(LABELS)), None,
    ),
    "dataset of floats": (Pairs(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255, LABELS), None),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_one_dataset(form: str) -> None:
    want, found = arrays.read(IMAGES, LABELS, None), arrays.read(*FORMS[form], None)
    assert found == want and want.sides == {(8, 8)} and not want.named


def test_gray_images_become_rgb_and_names_become_labels() -> None:
    gray = IMAGES[..., 0]
    for form in (gray, gray[..., None], gray[:, None]):
        found = arrays.read(form, ["b", "a", "b", "c", "a", "a"], None)
        assert found.labels == [1, 0, 1, 2, 0, 0] and found.classes == ("a", "b", "c") and found.named
    ordered = arrays.read(gray, ["b", "a", "b", "c", "a", "a"], ["c", "b", "a"])
    assert ordered.labels == [1, 2, 1, 0, 2, 2] and ordered.content != found.content
    assert arrays.read(Pairs(IMAGES, LABELS, ["x", "y", "z"]), None, None).classes == ("x", "y", "z")


FLOATS = "levels 0..255 (uint8) or in [0, 1]"
REFUSED: dict[str, tuple[Callable[[], object], str, str]] = {
    "too few labels": (lambda: edc_ray.condense(IMAGES, LABELS[:5]), "labels", "as many as images: 6"),
    "no labels": (lambda: edc_ray.condense(IMAGES), "images", "images[0] must be (image, label)"),
    "no length": (lambda: edc_ray.condense(iter(IMAGES)), "labels", "is no torch Dataset with a length"),
    "no images": (lambda: edc_ray.condense(IMAGES[:0], []), "images", "has no image"),
    "normalised floats": (lambda: edc_ray.condense(IMAGES - 128.0, LABELS), "images[0]", FLOATS),
    "not finite": (lambda: edc_ray.condense(IMAGES * np.nan, LABELS), "images[0]", FLOATS),
    "five channels": (lambda: edc_ray.condense(IMAGES.repeat(2, -1)[..., :5], LABELS), "images[0]", "(n, h"),
    "flat": (lambda: edc_ray.condense(np.zeros((6, 64), np.uint8), LABELS), "images[0]", "(n, h, w)"),
    "words": (lambda: edc_ray.condense(["x"] * 6, LABELS), "images[0]", "PIL images"),
    "negative label": (lambda: edc_ray.condense(IMAGES, LABELS - 1), "labels", "must be 0 to 1"),
    "label with a gap": (lambda: edc_ray.condense(IMAGES, LABELS * 2), "dataset.path", "label 1 of 0 to 4"),
    "label beyond the names": (
        lambda: edc_ray.condense(IMAGES, LABELS, classes=["a", "b"]), "labels", "must be 0 to 1",
    ),
    "unknown name": (
        lambda: edc_ray.condense(IMAGES, list("abcabc"), classes=["a", "b"]), "labels", "the classes a, b",
    ),
    "fractions": (lambda: edc_ray.condense(IMAGES, LABELS / 2), "labels", "must be whole numbers"),
    "small images": (lambda: edc_ray.condense(IMAGES[:, :4], LABELS), "images", "must be 8 to 1024 px"),
    "too many a class": (lambda: edc_ray.condense(IMAGES, LABELS, ipc=9), "init.ipc", "must be <= 1"),
    "test of other classes": (
        lambda: edc_ray.condense(*made(), test=(IMAGES[:2], LABELS[:2])), "test", "differs in ['2']",
    ),
    "nothing held out, no test": (
        lambda: edc_ray.condense(*made(), 1, changes=["split.val=0"]), "split.val", "has no test images",
    ),
    "a preset on test": (
        lambda: edc_ray.condense(*made(), 1, preset="edc/cifar10/ipc1"), "split.val", "has no test images",
    ),
    "unknown preset": (lambda: edc_ray.condense(*made(), preset="x"), "preset", "`edc-ray presets` lists"),
    "unknown field": (lambda: edc_ray.condense(*made(), changes=["a.b=1"]), "a.b", "unknown"),
    "changes as a word": (lambda: edc_ray.condense(*made(), changes="x=1"), "changes", "must be a list"),
    "a bucket": (
        lambda: arrays.keep(Store("mock://bucket"), arrays.read(IMAGES, LABELS, None), None), "store",
        "must be a local folder",
    ),
    "gone": (lambda: edc_ray.load("gone"), "SET", "neither a file or folder, nor a preset"),
    "an empty folder": (lambda: edc_ray.load(".", "digits"), "SET", "has no class folders"),
    "not condensed yet": (lambda: edc_ray.load("digits/ipc1"), "SET", "`edc-ray condense` makes it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_user_can_give_wrongly(name: str) -> None:
    act, path, legal = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        act()
    assert caught.value.path == path and legal in caught.value.legal, str(caught.value)


@pytest.fixture
def condensed() -> Condensed:
    return edc_ray.condense(*made(), ipc=1, classes=["a", "b", "c"], changes=TINY)


def test_what_an_evaluation_refuses(condensed: Condensed) -> None:
    images, labels = made(6)
    rows: list[tuple[dict[str, Any], str, str]] = [
        ({"student": "resnet81"}, "evaluate.student", "did you mean resnet18"),
        ({"changes": ["recover.iterations=3"]}, "changes", "must be to relabel, evaluate or runtime"),
        ({"seeds": []}, "evaluate.seeds", "at least one seed"),
        ({"test": (images, labels + 1)}, "test", "must have labels 0 to 2"),
        ({"test": Pairs(images, labels, ["a", "c", "b"])}, "test", "in their order: a, b, c"),
        ({"test": (images, labels[:3])}, "labels", "must be as many as test: 6"),
    ]
    for arguments, path, legal in rows:
        with pytest.raises(ConfigError) as caught:
            edc_ray.evaluate(condensed, **arguments)
        assert caught.value.path == path and legal in caught.value.legal, str(caught.value)


# --- the package --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_import_is_light() -> None:
    script = (
        "import sys, edc_ray\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'ray', 'optuna', 'matplotlib', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert callable(edc_ray.condense) and not {'ray', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "try: edc_ray.nothing\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (0, "module 'edc_ray' has no attribute 'nothing'\n"), done.stderr
