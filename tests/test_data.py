"""The contract of every row of DATASETS, on tiny datasets written here, and what each refuses."""

import io
import json
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional as vision

from edc_ray.config import ConfigError, Dataset, NotThere
from edc_ray.core import data
from edc_ray.core.data import (
    DATASETS,
    check,
    class_counts,
    denormalize,
    fingerprint,
    held_out,
    normalize,
    split,
)
from edc_ray.core.data.cifar import CIFAR
from edc_ray.core.data.folders import IMAGENET_10
from edc_ray.core.data.pixels import decode, square, sums

CIFAR10 = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
TRAIN, TEST = (0, 1, 1, 2, 0, 2, 1, 1), (2, 0, 1)  # labels
CLASSES = ["ant", "bee", "cat"]


def pixels(index: int, size: int = 12) -> np.ndarray:
    """(size, size, 3) uint8: every index has its own color, and no two channels are equal."""
    return np.full((size, size, 3), (index * 20, 255 - index * 20, 7), dtype=np.uint8)


def encoded(index: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(index)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(file: Path, labels: Sequence[int | None], first: int = 0, classes: object = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({
        "image": pa.array([encoded(first + i) for i in range(len(labels))], pa.binary()),
        "label": pa.array(labels, pa.int32()),
    })  # fmt: skip
    pq.write_table(table.replace_schema_metadata({"classes": json.dumps(classes)} if classes else None), file)


def parquet(root: Path) -> Dataset:
    """Training images in two files, to be read in the order of their names."""
    write_parquet(root / "train-1.parquet", TRAIN[5:], first=5)
    write_parquet(root / "train-0.parquet", TRAIN[:5], classes=CLASSES)
    write_parquet(root / "test.parquet", TEST, first=9)
    return Dataset(name="parquet", path=str(root), size_px=8)


def image_folder(root: Path, test: str = "test") -> Dataset:
    for part, labels, first in (("train", TRAIN, 0), (test, TEST, 9)):
        for index, label in enumerate(labels, start=first):
            folder = root / part / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.PNG").write_bytes(encoded(index))
            (folder / "notes.txt").write_text("not an image")
    return Dataset(name="image_folder", path=str(root), size_px=8)


def cifar_files(name: str, root: Path) -> Dataset:
    """As published, but with 2 training images of each class and 1 test image, in another order."""
    known = CIFAR[name]
    folder, key = root / known.folder, "labels" if name == "cifar10" else "fine_labels"
    folder.mkdir(parents=True)
    count = len(known.classes)
    labels = [*range(count), *reversed(range(count)), *range(count)]
    names = [file for file in known.files if "meta" not in file]
    cuts = [*np.array_split(np.arange(2 * count), len(names) - 1), np.arange(2 * count, 3 * count)]
    for file, ids in zip(names, cuts, strict=True):
        images = np.stack([np.full((3, 32, 32), index % 256, dtype=np.uint8).reshape(-1) for index in ids])
        batch = {"data": images, key: [labels[index] for index in ids]}
        (folder / file).write_bytes(pickle.dumps(batch))
    field = "label_names" if name == "cifar10" else "fine_label_names"
    (folder / known.files[-1]).write_bytes(pickle.dumps({field: list(known.classes)}))
    return Dataset(name=name, path=str(root), size_px=8)


@pytest.fixture(autouse=True)
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of other bytes are taken for the published ones; nothing can be downloaded."""
    for name, known in list(CIFAR.items()):
        monkeypatch.setitem(CIFAR, name, replace(known, train=2, test=1))
        loader = getattr(torchvision.datasets, known.loader)
        monkeypatch.setattr(loader, "url", "http://127.0.0.1:9/" + known.archive)
        for split_list in ("train_list", "test_list"):
            monkeypatch.setattr(loader, split_list, [[file, None] for file, _ in getattr(loader, split_list)])
        monkeypatch.setattr(loader, "meta", loader.meta | {"md5": None})


def tiny_imagenet(root: Path) -> Dataset:
    for index, label in enumerate(TRAIN):
        folder = root / "train" / CLASSES[label] / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{CLASSES[label]}_{index}.JPEG").write_bytes(encoded(index))
        (folder.parent / "boxes.txt").write_text("no image")
    (root / "val" / "images").mkdir(parents=True)
    for index, _ in enumerate(TEST, start=9):
        (root / "val" / "images" / f"val_{index}.JPEG").write_bytes(encoded(index))
    rows = [f"val_{index}.JPEG\t{CLASSES[label]}\t0\t0\t9\t9" for index, label in enumerate(TEST, start=9)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    (root / "wnids.txt").write_text("cat\nant\nbee\n")
    return Dataset(name="tiny_imagenet", path=str(root), size_px=8)


def imagenet(name: str, classes: Sequence[str], root: Path) -> Dataset:
    for part in ("train", "val"):
        for label, wnid in enumerate(classes):
            folder = root / part / wnid
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(2):
                (folder / f"{copy}.JPEG").write_bytes(encoded(label))
    (root / "test").mkdir()
    (root / "test" / "ILSVRC2012_test_1.JPEG").write_bytes(encoded(0))
    return Dataset(name=name, path=str(root), size_px=8)


MAKE: dict[str, Callable[[Path], Dataset]] = {
    "digits": lambda root: Dataset(size_px=8),
    "parquet": parquet,
    "image_folder": image_folder,
    "cifar10": partial(cifar_files, "cifar10"),
    "cifar100": partial(cifar_files, "cifar100"),
    "tiny_imagenet": tiny_imagenet,
    "imagenet_1k": partial(imagenet, "imagenet_1k", CLASSES),
    "imagenet_10": partial(imagenet, "imagenet_10", [*IMAGENET_10, "n00000001"]),
}
FOLDERS = ["image_folder", "tiny_imagenet"]


@pytest.fixture(params=DATASETS)
def cfg(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return MAKE[request.param](tmp_path)


# --- every row ----------------------------------------------------------------------------------------------


def test_images_have_the_declared_shapes_and_statistics(cfg: Dataset) -> None:
    check(cfg)
    got = data.read(cfg)
    for images, labels in ((got.train, got.train_labels), (got.test, got.test_labels)):
        assert (
            images.shape == (len(labels), 3, 8, 8) and images.dtype == torch.uint8 and images.is_contiguous()
        )
        assert labels.dtype == torch.int64 and set(labels.tolist()) == set(range(len(got.classes)))
    assert tuple(got.train_labels.bincount().tolist()) == class_counts(cfg)
    unit = got.train.double() / 255
    assert got.mean == pytest.approx(unit.mean((0, 2, 3)).tolist(), abs=5e-5)
    want = unit.std((0, 2, 3), correction=0).tolist()
    assert got.std == pytest.approx([std or 1 for std in want], abs=5e-5)
    assert got.mean == tuple(round(value, 4) for value in got.mean)


def test_reading_is_deterministic_and_size_is_the_configured_one(cfg: Dataset) -> None:
    one, two = data.read(cfg), data.read(cfg)
    assert torch.equal(one.train, two.train) and torch.equal(one.test, two.test)
    assert data.read(replace(cfg, size_px=20)).train.shape[2:] == (20, 20)


def test_limit_takes_a_prefix_of_train_and_leaves_test(cfg: Dataset) -> None:
    every, some = data.read(cfg), data.read(replace(cfg, limit=5))
    assert torch.equal(some.train, every.train[:5]) and torch.equal(some.train_labels, every.train_labels[:5])
    assert torch.equal(some.test, every.test)
    counts = class_counts(replace(cfg, limit=5))
    assert counts == tuple(some.train_labels.bincount(minlength=len(every.classes)).tolist())
    assert class_counts(replace(cfg, limit=10**6)) == class_counts(cfg)


def test_the_fingerprint_is_of_the_content_only(cfg: Dataset, tmp_path: Path) -> None:
    one = fingerprint(cfg)
    assert one == fingerprint(replace(cfg, size_px=32, limit=3)) and int(one, 16)
    other = MAKE[cfg.name](tmp_path / "elsewhere")
    for file in (tmp_path / "elsewhere").rglob("*"):
        os.utime(file, (1, 1))
    assert fingerprint(other) == one


@pytest.mark.parametrize("name", ["parquet", *FOLDERS])
def test_the_fingerprint_changes_with_bytes_and_names(name: str, tmp_path: Path) -> None:
    cfg = MAKE[name](tmp_path)
    files = sorted(file for file in tmp_path.rglob("t*/**/*") if file.suffix.lower() in (".png", ".jpeg"))
    file = files[0] if files else tmp_path / "train-0.parquet"
    seen = {fingerprint(cfg)}
    data_before = file.read_bytes()
    file.write_bytes(data_before[:-1] + bytes([data_before[-1] ^ 1]))
    seen.add(fingerprint(cfg))
    file.write_bytes(data_before)
    file.rename(file.with_name(f"train-5{file.suffix}"))
    seen.add(fingerprint(cfg))
    assert len(seen) == 3


def test_large_datasets_are_known_by_sizes_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = parquet(tmp_path)
    monkeypatch.setattr("edc_ray.core.data.source.HASH_BYTES", 10)
    one = fingerprint(cfg)
    assert fingerprint(cfg) == one
    os.utime(tmp_path / "test.parquet", (1, 1))
    assert fingerprint(cfg) != one


# --- single rows --------------------------------------------------------------------------------------------


def test_digits_are_gray_and_their_test_split_is_fixed() -> None:
    got = data.read(Dataset(size_px=8))
    assert (len(got.train), len(got.test)) == (1258, 539) and got.classes == tuple("0123456789")
    assert torch.equal(got.train[:, 0], got.train[:, 2])
    assert (int(got.train.min()), int(got.train.max())) == (0, 255)
    assert got.test_labels[:10].tolist() == [
        3,
        7,
        1,
        3,
        4,
        6,
        9,
        5,
        8,
        4,
    ]  # golden: published numbers rest on this split
    shares = got.test_labels.bincount() / (got.train_labels.bincount() + got.test_labels.bincount())
    torch.testing.assert_close(shares, torch.full((10,), 0.3), rtol=0, atol=0.01)


def test_parquet_gives_the_images_in_file_and_row_order(tmp_path: Path) -> None:
    got = data.read(replace(parquet(tmp_path), size_px=12))
    assert got.train_labels.tolist() == list(TRAIN) and got.classes == tuple(CLASSES)
    for index, image in enumerate(got.train):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels(index))
    assert got.test[0, :, 0, 0].tolist() == pixels(9)[0, 0].tolist()


def test_parquet_without_names_numbers_its_classes(tmp_path: Path) -> None:
    cfg = parquet(tmp_path)
    write_parquet(tmp_path / "train-0.parquet", TRAIN[:5])
    assert data.read(cfg).classes == ("0", "1", "2")


def test_folder_images_come_class_by_class_in_turn(tmp_path: Path) -> None:
    got = data.read(replace(image_folder(tmp_path, test="val"), size_px=12))
    assert got.classes == tuple(CLASSES) and got.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 1, 1]
    for label in range(3):
        files = [index for index, known in enumerate(TRAIN) if known == label]
        assert got.train[got.train_labels == label][:, 0, 0, 0].tolist() == [20 * index for index in files]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_every_image_becomes_rgb(mode: str) -> None:
    assert decode([("x", encoded(0, mode))], 1, 12).shape == (1, 3, 12, 12)


@pytest.mark.parametrize("resize", [1.0, 256 / 224])
@pytest.mark.parametrize("size", [(70, 41), (41, 70), (20, 20), (9, 30)])
def test_images_are_resized_and_cropped_as_torchvision_does(size: tuple[int, int], resize: float) -> None:
    image = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 90).convert("RGB")
    side = 28
    want = vision.center_crop(vision.resize(image, round(side * resize)), [side, side])
    assert np.array_equal(np.array(square(image, side, resize)), np.array(want))
    small = image.resize((side, side))
    assert square(small, side, resize) is small, "prepared images are taken as they are"


def test_threads_decode_the_same_images() -> None:
    items = [(str(i), encoded(i % 12)) for i in range(300)]
    one, four = (decode(iter(items), 300, 8, threads=threads) for threads in (1, 4))
    assert torch.equal(one, four)
    with pytest.raises(ValueError, match="299 is not a readable image"):
        decode([*items[:-1], ("299", b"no")], 300, 8, threads=4)


def test_only_imagenets_test_images_lose_their_rim(tmp_path: Path) -> None:
    """Resize 256, centre crop 224 (method.md 5.3)."""
    cfg = MAKE["imagenet_10"](tmp_path)
    rim = Image.new("RGB", (40, 40), "white")
    rim.paste("black", (2, 2, 38, 38))
    for part in ("train", "val"):
        rim.save(tmp_path / part / IMAGENET_10[0] / "0.JPEG", "PNG")
    got = data.read(replace(cfg, size_px=20))
    assert got.train[got.train_labels == 0].max() > 200 > 100 > got.test[0].max()


def test_folders_that_are_not_of_the_list_do_not_count(tmp_path: Path) -> None:
    """ImageNet-10 has an order of its own (B18)."""
    cfg = MAKE["imagenet_10"](tmp_path)
    (tmp_path / "train" / "n00000001" / "0.JPEG").write_text("not looked at")
    got = data.read(replace(cfg, size_px=12))
    assert got.classes == IMAGENET_10 != tuple(sorted(IMAGENET_10)) and len(set(IMAGENET_10)) == 10
    for label in range(10):
        assert got.train[got.train_labels == label][0, :, 0, 0].tolist() == pixels(label)[0, 0].tolist()


# --- classes and constants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_chosen_classes_are_the_only_ones_in_their_order(name: str, tmp_path: Path) -> None:
    cfg = MAKE[name](tmp_path)
    every = data.read(cfg)
    names = (every.classes[2], every.classes[0])
    some = data.read(replace(cfg, classes=names))
    assert some.classes == names and class_counts(replace(cfg, classes=names)) == (
        class_counts(cfg)[2], class_counts(cfg)[0],
    )  # fmt: skip
    for label, old in enumerate((2, 0)):
        assert torch.equal(some.train[some.train_labels == label], every.train[every.train_labels == old])
        assert torch.equal(some.test[some.test_labels == label], every.test[every.test_labels == old])
    assert len(data.read(replace(cfg, classes=names, limit=1)).train) == 1


def test_wrong_classes_are_refused(tmp_path: Path) -> None:
    cfg = image_folder(tmp_path / "folder")
    refused(replace(cfg, classes=("cat", "be")), "did you mean bee", "dataset.classes.1")
    refused(replace(cfg, classes=("cat", "cat")), "each once", "dataset.classes")
    refused(replace(cfg, classes=()), "at least one", "dataset.classes")
    (tmp_path / "folder" / "test" / "cat").rename(tmp_path / "away")
    refused(replace(cfg, classes=("cat",)), "has no test/cat")
    assert class_counts(replace(cfg, classes=("bee",))) == (4,), "the others do not count"
    nameless = parquet(tmp_path / "nameless")
    write_parquet(tmp_path / "nameless" / "train-0.parquet", TRAIN[:5])
    refused(replace(nameless, classes=("0",)), "do not name their classes", "dataset.classes")


def test_normalization_is_measured_or_published(tmp_path: Path) -> None:
    cfg = image_folder(tmp_path)
    assert data.read(cfg).mean != data.read(replace(cfg, normalization="imagenet")).mean
    for name, (mean, std) in data.CONSTANTS.items():
        got = data.read(replace(cfg, normalization=name))  # type: ignore[arg-type]
        assert (got.mean, got.std) == (mean, std)
    assert data.CONSTANTS["cifar100"][0] == (0.5071, 0.4867, 0.4408), "the official code's (B17)"


# --- CIFAR --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_torchvisions(name: str, tmp_path: Path) -> None:
    cfg = replace(MAKE[name](tmp_path), size_px=32)
    got = data.read(cfg)
    want = getattr(torchvision.datasets, CIFAR[name].loader)(tmp_path, train=True)
    for label in (0, 9):
        images = [image for image, target in zip(want.data, want.targets, strict=True) if target == label]
        found = got.train[got.train_labels == label].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(found, np.stack(images)), "in the order of the files"
    assert list(got.classes) == want.classes and got.train_labels[:3].tolist() == [0, 1, 2]


def test_cifar_is_known_before_it_is_there(tmp_path: Path) -> None:
    """Names and counts need no file; only the first stage looks for them, and may download."""
    cfg = Dataset(name="cifar10", path=str(tmp_path), size_px=32, limit=13)
    check(cfg)
    assert class_counts(cfg) == (2, 2, 2, 1, 1, 1, 1, 1, 1, 1) and fingerprint(cfg)
    assert not list(tmp_path.iterdir())
    want = (
        r"data_batch_1, .*data_batch_5, test_batch, batches.meta, and the download failed .*cifar-10-python"
    )
    with pytest.raises(NotThere, match=want):
        data.read(cfg)
    for path in (None, "/no/such/folder"):
        away = replace(cfg, path=path)
        assert sum(class_counts(away)) == 13
        with pytest.raises(NotThere, match=r"no such folder; .*cifar-10-batches-py/ \(data_batch_1, .*https"):
            check(away)


def test_what_is_said_to_be_published_is_what_torchvision_expects(small_cifar: None) -> None:
    for name, known in CIFAR.items():
        loader = getattr(torchvision.datasets, known.loader)
        files = [file for file, _ in (*loader.train_list, *loader.test_list)] + [loader.meta["filename"]]
        assert sorted(files) == sorted(known.files), name
        assert (loader.base_folder, loader.filename, loader.tgz_md5) == (
            known.folder, known.archive, known.md5,
        )  # fmt: skip


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no ../shared/data/cifar10")
def test_cifar10() -> None:
    cfg = Dataset(name="parquet", path=str(CIFAR10), size_px=32, limit=500)
    assert sum(class_counts(cfg)) == 500 and class_counts(replace(cfg, limit=None)) == (5000,) * 10
    found = data.listing(cfg)
    images = data.decoded(cfg, "train", found.train.items(), 500)
    assert images.shape == (500, 3, 32, 32) and len(found.test.labels) == 10000
    assert found.classes[:2] == ("airplane", "automobile")
    mean, std = data.normalization(cfg, sums(images))
    assert mean == pytest.approx(data.CONSTANTS["cifar10"][0], abs=0.02)
    assert std == pytest.approx(data.CONSTANTS["cifar10"][1], abs=0.02)


# --- what is refused ----------------------------------------------------------------------------------------


def refused(cfg: Dataset, match: str, path: str = "dataset.path") -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        check(cfg)
    assert caught.value.path == path


def test_an_unknown_name() -> None:
    refused(Dataset(name="digit"), "did you mean digits", "dataset.name")
    with pytest.raises(ConfigError, match="unknown"):
        fingerprint(Dataset(name="digit"))


@pytest.mark.parametrize("name", ["parquet", "image_folder"])
@pytest.mark.parametrize("path", [None, "/no/such/folder"])
def test_no_such_folder(name: str, path: str | None) -> None:
    refused(Dataset(name=name, path=path), "no such folder; must be a folder with train")


def test_a_path_for_digits() -> None:
    refused(Dataset(path="somewhere"), "must be null")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", ["parquet", "image_folder"])
def test_a_missing_part(name: str, part: str, tmp_path: Path) -> None:
    cfg = MAKE[name](tmp_path)
    for found in tmp_path.glob(f"{part}*"):
        found.rename(tmp_path / f"old-{found.name}")
    refused(cfg, f"has no {'val' if (name, part) == ('image_folder', 'test') else part}")


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    cfg = parquet(tmp_path)
    (tmp_path / "train-9.parquet").write_text("no")
    refused(cfg, r"train-9.parquet is not a Parquet file")


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [b"x"]},
        {"img": [b"x"], "label": [0]},
        {"image": ["x"], "label": [0]},
        {"image": [b"x"], "label": ["cat"]},
    ],
)
def test_wrong_columns(columns: dict[str, list[object]], tmp_path: Path) -> None:
    cfg = parquet(tmp_path)
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    refused(cfg, rf"test.parquet has the columns {next(iter(columns))} \(.*needs image .* and label")


@pytest.mark.parametrize(
    ("train", "test", "classes", "match"),
    [
        ([0, -1, 1], [0], None, "train.parquet has the label -1; must be 0 to 1"),
        ([0, 1, 3], [0], CLASSES, "train.parquet has the label 3; must be 0 to 2, as its metadata"),
        ([0, 1, 2], [3], None, "test.parquet has the label 3; must be 0 to 2, as in train"),
        ([0, 2, 10**9], [0], None, "no training image with the label 1 of"),
        ([0, 1], [0, 1], CLASSES, "no training image with the label 2 of 0 to 2"),
        ([0, None], [0], None, "has 1 rows without a label"),
        ([], [0], None, "train.parquet has no rows"),
        ([0, 1], [0], None, "no test image with the label 1 of 0 to 1"),
        ([0, 1], [0], {"a": 0}, "needs a JSON list of names"),
    ],
)
def test_wrong_labels(
    train: list[int | None], test: list[int], classes: object, match: str, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "train.parquet", train, classes=classes)
    write_parquet(tmp_path / "test.parquet", test)
    refused(Dataset(name="parquet", path=str(tmp_path)), match)


def test_imagenet_says_what_it_needs(tmp_path: Path) -> None:
    cfg = MAKE["imagenet_10"](tmp_path)
    refused(replace(cfg, path=None), "n01440764; ask for it at https://image-net.org")
    (tmp_path / "val" / IMAGENET_10[3]).rename(tmp_path / "away")
    refused(cfg, rf"has no val/{IMAGENET_10[3]}; must be ImageNet's .*sort val into")
    (tmp_path / "val").rename(tmp_path / "old")
    refused(cfg, "has no val; must be ImageNet's")


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda root: (root / "wnids.txt").unlink(), "has no wnids.txt; must be tiny-imagenet-200 as dist"),
        (lambda root: (root / "val" / "images" / "val_9.JPEG").unlink(), "has no val_9.JPEG"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("x\n"), "has the line 'x'; needs"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("a\tant\n"), "no image of bee, cat"),
        (lambda root: (root / "wnids.txt").write_text("ant\ndog\n"), "images has no images"),
    ],
)
def test_tiny_imagenet_says_what_it_needs(harm: Callable[[Path], object], match: str, tmp_path: Path) -> None:
    cfg = tiny_imagenet(tmp_path)
    harm(tmp_path)
    refused(cfg, match)


def test_class_folders_that_differ(tmp_path: Path) -> None:
    cfg = image_folder(tmp_path)
    (tmp_path / "test" / "dog").mkdir()
    refused(cfg, "must have the same classes in train and test; differ in dog")


@pytest.mark.parametrize("part", ["train", "test"])
def test_empty_folders(part: str, tmp_path: Path) -> None:
    cfg = image_folder(tmp_path)
    for file in (tmp_path / part).rglob("*.PNG"):
        file.unlink()
    refused(cfg, "has no images")


def damage_image(name: str, root: Path, damage: bytes) -> str:
    """Training image 4, of class 0; returns where it is from."""
    if name == "image_folder":
        (root / "train" / "ant" / "4.PNG").write_bytes(damage)
        return "train/ant/4.PNG"
    table = pq.read_table(root / "train-0.parquet")
    blobs = [*table["image"].to_pylist()[:4], damage]
    pq.write_table(table.set_column(0, "image", pa.array(blobs, pa.binary())), root / "train-0.parquet")
    return "train-0.parquet, row 4"


@pytest.mark.parametrize("damage", [b"", b"no image", encoded(0)[:45]], ids=["empty", "other", "cut"])
@pytest.mark.parametrize("name", ["parquet", "image_folder"])
def test_a_damaged_image_is_named(name: str, damage: bytes, tmp_path: Path) -> None:
    cfg = MAKE[name](tmp_path)
    where = damage_image(name, tmp_path, damage)
    check(cfg)
    with pytest.raises(ConfigError, match=f"{where} is not a readable image: .*skip_corrupt=true") as caught:
        data.read(cfg)
    assert (caught.value.path, caught.value.value) == ("dataset.path", cfg.path)


def test_all_damaged_images_are_counted_and_the_first_ones_named() -> None:
    items = [(f"image {i}", b"no" if i % 3 == 0 else encoded(i)) for i in range(12)]
    for threads in (1, 4):
        with pytest.raises(
            ValueError, match=r"^image 0 is not a readable .*; so are 4 of 12: also image 3, im"
        ):
            decode(iter(items), 12, 8, threads=threads)
    items = [(f"image {i}", b"no") for i in range(12)]
    with pytest.raises(
        ValueError, match=r"so are 12 of 12: also image 1, image 2, image 3, image 4, \.\.\.$"
    ):
        decode(iter(items), 12, 8)


@pytest.mark.parametrize("name", ["parquet", "image_folder"])
def test_damaged_images_can_be_left_out(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = replace(MAKE[name](tmp_path), skip_corrupt=True)
    whole = data.read(cfg)
    assert data.listing(cfg).skipped == () and not caplog.text
    where = damage_image(name, tmp_path, b"no image")
    found, listed = data.read(cfg), data.listing(cfg)
    assert listed.skipped == (where,) and f"1 corrupt images are left out: {where}" in caplog.text
    row = whole.train[:, 0, 0, 0].tolist().index(4 * 20)
    assert torch.equal(found.train, torch.cat([whole.train[:row], whole.train[row + 1 :]]))
    assert torch.equal(found.test, whole.test) and len(listed.train.labels) == len(TRAIN) - 1
    assert class_counts(cfg)[0] == TRAIN.count(0) - 1
    first = tuple(found.train_labels[:3].bincount(minlength=3).tolist())
    assert class_counts(replace(cfg, limit=3)) == first


def test_a_class_of_damaged_images_alone_is_refused(tmp_path: Path) -> None:
    cfg = replace(image_folder(tmp_path), skip_corrupt=True)
    (tmp_path / "test" / "cat" / "9.PNG").write_bytes(b"no")
    refused(cfg, "leaves no test image of class cat; corrupt is test/cat/9.PNG", "dataset.skip_corrupt")


def test_parquet_files_that_name_their_classes_agree(tmp_path: Path) -> None:
    cfg = parquet(tmp_path)
    write_parquet(tmp_path / "test.parquet", TEST, first=9, classes=CLASSES)
    assert data.listing(cfg).classes == tuple(CLASSES)
    for names, odd in (
        (["ant", "cat", "bee"], "1 on cat, bee, not bee, cat"),
        ([*CLASSES, "dog"], "3 on dog, not nothing"),
        (CLASSES[:2], "2 on nothing, not cat"),
    ):
        write_parquet(tmp_path / "test.parquet", TEST, first=9, classes=names)
        refused(cfg, f"test.parquet names other classes than train-0.parquet: from label {odd}")


def test_a_test_file_without_rows_says_that_there_are_no_test_images(tmp_path: Path) -> None:
    cfg = parquet(tmp_path)
    write_parquet(tmp_path / "test.parquet", [])
    images = data.read(cfg)
    assert len(images.train) == len(TRAIN) and images.test.shape == (0, 3, 8, 8)


# --- split and scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", [0.001, 0.1, 0.34, 0.9])
def test_split_is_disjoint_complete_sorted_and_stratified(val: float, rng: torch.Generator) -> None:
    labels = torch.randint(0, 7, (300,), generator=rng)
    fit, held = split(labels, val, 3)
    assert sorted(fit.tolist() + held.tolist()) == list(range(300))
    assert fit.tolist() == sorted(fit.tolist()) and held.tolist() == sorted(held.tolist())
    want = [held_out(count, val) for count in labels.bincount().tolist()]
    assert labels[held].bincount(minlength=7).tolist() == want and min(want) >= 1


def test_split_is_decided_by_its_seed(rng: torch.Generator) -> None:
    labels = torch.randint(0, 3, (100,), generator=rng)
    one, again, other = (split(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == again != other
    assert split(torch.zeros(8, dtype=torch.int64), 0.5, 0)[1].tolist() == [0, 1, 2, 7]  # golden


def test_no_split() -> None:
    fit, held = split(torch.tensor([1, 0, 1]), 0.0, 0)
    assert fit.tolist() == [0, 1, 2] and held.tolist() == []
    assert held_out(10, 0.0) == held_out(0, 0.5) == 0


def test_a_split_that_empties_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="all of the 1 training images with label 5") as caught:
        split(torch.tensor([0, 0, 5, 0]), 0.1, 0)
    assert caught.value.path == "split.val"


def test_denormalize_inverts_normalize_and_clamps() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.05, 0.3, 1.0)
    images = torch.arange(256, dtype=torch.uint8).expand(2, 3, 4, 256)
    scaled = normalize(images, mean, std)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled[0, 1, 0, 255], torch.tensor((1 - 0.5) / 0.3))
    assert torch.equal(denormalize(scaled, mean, std), images)
    out_of_range = torch.tensor([-99.0, 99.0]).expand(1, 3, 1, 2)
    assert denormalize(out_of_range, mean, std).tolist() == [[[[0, 255]]] * 3]
