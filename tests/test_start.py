"""Initial images from a folder: which file is whose, what is refused, what the key in the store hangs on."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from edc_ray import pipeline
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Experiment, NotThere, Runtime
from edc_ray.core import data
from edc_ray.pipeline import stages
from tests import tiny

DIGITS = "0123456789"
HOW = Runtime(device="cpu")


def fill(root: Path, images: Mapping[str, int], side: int = 8) -> Path:
    """Folder -> how many one-coloured pictures; that of folder i, picture j has the gray 20 i + j."""
    for i, (name, count) in enumerate(images.items()):
        (root / name).mkdir(parents=True)
        for j in range(count):
            Image.new("RGB", (side, side), (20 * i + j,) * 3).save(root / name / f"{j}.png")
    return root


def grays(store: Store, experiment: Experiment) -> list[list[int]]:
    """Of the initial images, class by class."""
    task = pipeline.ensure(experiment, store, HOW, pipeline.in_process(store, HOW), upto="init")[-1]
    images = store.artifact("init", task.key).read("all")[0]["images"]
    assert images.shape[1:] == (3, 8, 8) and (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].unflatten(0, (10, -1)).tolist()


def starting(root: Path, **changes: Any) -> Experiment:
    return tiny.experiment(init__kind="folder", init__path=str(root), **changes)


@pytest.fixture(autouse=True)
def forget() -> None:
    """The disk is asked once a process; here it changes."""
    stages._start_fingerprint.cache_clear()


def test_each_class_starts_from_its_folder(store: Store, tmp_path: Path) -> None:
    root = fill(tmp_path / "start", dict.fromkeys(DIGITS, 4), side=20)
    drawn = grays(store, starting(root, init__ipc=3))
    for i, each in enumerate(drawn):
        assert len(set(each)) == 3 and set(each) <= {20 * i + j for j in range(4)}
    assert len({tuple(gray - 20 * i for gray in each) for i, each in enumerate(drawn)}) > 1, (
        "drawn class by class"
    )
    assert grays(store, starting(root, init__ipc=3, init__seed=1)) != drawn
    many = grays(store, starting(root, init__ipc=6, init__replacement=True))
    assert all(len(each) == 6 and len(set(each)) <= 4 for each in many)


def test_folders_go_by_name_or_else_by_order_and_alphabetically_with_b18(
    store: Store, tmp_path: Path
) -> None:
    """B18: the official code counts the folders of ImageNet-10 by name, its classes by a list of its own."""
    classes = [*reversed(DIGITS)]
    turned = {"dataset__classes": classes}
    named = fill(tmp_path / "named", dict.fromkeys([*DIGITS, "another"], 1))
    first = [20 * i for i in range(10)]

    def flat(root: Path, **changes: Any) -> list[int]:
        return [gray for each in grays(store, starting(root, **changes)) for gray in each]

    assert flat(named) == first and flat(named, **turned) == first[::-1]
    assert flat(named, **turned, quirks__alphabetical_init=True) == first
    numbered = fill(tmp_path / "numbered", {f"class{i:03d}": 1 for i in range(10)})
    assert flat(numbered) == flat(numbered, **turned) == first


def test_a_name_in_the_store_hangs_on_the_content_of_the_folder_alone(tmp_path: Path) -> None:
    def keys(root: Path) -> dict[str, str]:
        stages._start_fingerprint.cache_clear()
        return {task.stage: task.key for task in pipeline.tasks(starting(root))}

    root = fill(tmp_path / "one", dict.fromkeys(DIGITS, 2))
    before = keys(root)
    shutil.copytree(root, tmp_path / "two")
    (tmp_path / "two" / "notes.txt").write_text("no image")
    assert keys(tmp_path / "two") == before
    Image.new("RGB", (8, 8), (255, 0, 0)).save(root / "3" / "1.png")
    after = keys(root)
    assert {stage for stage in before if before[stage] != after[stage]} == {
        "init", "recover", "relabel", "evaluate",
    }  # fmt: skip
    other = tiny.experiment(init__path=str(root))  # not of this kind: nothing looks there
    assert {t.key for t in pipeline.tasks(other)} == {t.key for t in pipeline.tasks(tiny.experiment())}


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        (dict.fromkeys("01234", 3), "has 5 class folders for 10 classes, and none named 5, 6, 7, 8, 9"),
        (dict.fromkeys(DIGITS, 3) | {"7": 2}, "must have 3 images of each class (init.ipc); of class 7"),
        (dict.fromkeys("abcdefghij", 0), "of class 0 there are 0"),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_do_is_refused_before_anything_runs(
    folders: dict[str, int], why: str, tmp_path: Path
) -> None:
    root = fill(tmp_path / "start", folders)
    with pytest.raises(ConfigError) as caught:
        pipeline.check(starting(root, init__ipc=3))
    assert (caught.value.path, caught.value.value) == ("init.path", str(root)) and why in caught.value.legal


@pytest.mark.parametrize("path", [None, "nowhere"])
def test_a_folder_that_is_not_there_is_missing_not_wrong(path: str | None) -> None:
    with pytest.raises(NotThere, match=r"init\.path = .* no such folder; must be a folder with CLASS/FILE"):
        pipeline.check(tiny.experiment(init__kind="folder", init__path=path))


def test_a_damaged_picture_is_named(store: Store, tmp_path: Path) -> None:
    root = fill(tmp_path / "start", dict.fromkeys(DIGITS, 1))
    (root / "4" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"init\.path = .*: 4/0\.png is not a readable image"):
        grays(store, starting(root))


def test_pictures_are_resized_as_training_images_are(tmp_path: Path) -> None:
    """Shorter side to size_px, then the central square."""
    root = tmp_path / "start"
    (root / "a").mkdir(parents=True)
    wide = torch.zeros(10, 30, 3, dtype=torch.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide.numpy()).save(root / "a" / "wide.png")
    (image,) = data.start_listing(str(root), ["a"]).read(0, [0], 10)
    assert (image == 200).all()
