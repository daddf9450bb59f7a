"""Observers that travel: the same bytes come out, and what does not belong is refused."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edc_ray import cli, config, pipeline
from edc_ray.artifacts import Store

CHANGES = [
    "dataset.name=image_folder", "dataset.size_px=8", "split.val=0.5", "squeeze.epochs=1",
    "runtime.device=cpu",
    "squeeze.observers=[convnet_w16_d2, vgg5_w16]", "squeeze.batch_size=4",
]  # fmt: skip
CLASSES = ("ant", "bee")


def images(root: Path, classes: tuple[str, ...] = CLASSES, shade: int = 0) -> str:
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = np.full((8, 8, 3), 40 * i + 20 * label + shade, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(root)


def words(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, the store where they were trained, and teachers.zip."""
    root = tmp_path_factory.mktemp("teachers")
    where = [f"dataset.path={images(root / 'data')}", f"runtime.store={root / 'store'}"]
    settings, experiment = cli.load("digits/ipc1", [*CHANGES, *where])
    store = Store(settings.runtime.store)
    mapper = pipeline.in_process(store, settings.runtime)
    pipeline.ensure(experiment, store, settings.runtime, mapper, upto="squeeze")
    out = str(root / "teachers.zip")
    assert cli.main(["teachers", "export", "digits/ipc1", out, *words(*CHANGES, *where)]) == 0
    return root


def bring(file: Path, store: Path, *changes: str) -> int:
    return cli.main(["teachers", "import", str(file), "--store", str(store), *words(*changes)])


def test_they_come_back_with_the_same_bytes_and_are_found(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(exported / "data", tmp_path / "elsewhere")
    assert bring(exported / "teachers.zip", tmp_path / "store", f"dataset.path={data}") == 0
    out = capsys.readouterr().out
    assert "convnet_w16_d2" in out and "on val (4 images)" in out and "classes: 2 (ant, bee); data " in out
    (one,), (other,) = ((root / "store").glob("squeeze-*") for root in (exported, tmp_path))
    assert one.name == other.name
    files = [{f.name: f.read_bytes() for f in folder.glob("*.safetensors")} for folder in (one, other)]
    assert len(files[0]) == 3 and files[0] == files[1]
    where = [f"dataset.path={data}", f"runtime.store={tmp_path / 'store'}"]
    settings, experiment = cli.load("digits/ipc1", [*CHANGES, *where])
    task = pipeline.tasks(experiment, "squeeze")[-1]
    store = Store(settings.runtime.store)
    assert pipeline.is_hit(task, store, settings.runtime) and not store.artifact("squeeze", task.key).verify()
    mapper = pipeline.in_process(store, settings.runtime)
    pipeline.ensure(experiment, store, settings.runtime, mapper, upto="init")  # goes on from there
    assert bring(exported / "teachers.zip", tmp_path / "store", f"dataset.path={data}") == 0
    assert "is there already" in capsys.readouterr().out


def test_the_file_has_no_path_of_the_machine(exported: Path) -> None:
    with zipfile.ZipFile(exported / "teachers.zip") as archive:
        card = archive.read("card.json").decode()
        assert set(archive.namelist()) == {
            "card.json",
            *(e["file"] for e in json.loads(card)["units"].values()),
        }
    assert str(exported) not in card and json.loads(card)["experiment"]["dataset"]["path"] is None


def edited(change: Callable[[dict[str, bytes]], object]) -> Callable[[Path, Path], Path]:
    """The file with other members."""

    def make(exported: Path, folder: Path) -> Path:
        with zipfile.ZipFile(exported / "teachers.zip") as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        change(found)
        with zipfile.ZipFile(folder / "edited.zip", "w") as archive:
            for name, content in found.items():
                archive.writestr(name, content)
        return folder / "edited.zip"

    return make


def carded(**changes: object) -> Callable[[Path, Path], Path]:
    """The file with another card, whose checksum is right."""

    def change(found: dict[str, bytes]) -> None:
        card = json.loads(found["card.json"])
        card.pop("digest")
        card |= changes
        found["card.json"] = json.dumps(card | {"digest": config.digest(card)}).encode()

    return edited(change)


def first_tensor(found: dict[str, bytes]) -> None:
    name = next(name for name in found if name.startswith("vgg5"))
    found[name] = found[name][:-1] + bytes([found[name][-1] ^ 1])


def whole(exported: Path, folder: Path) -> Path:
    return exported / "teachers.zip"


def no_zip(exported: Path, folder: Path) -> Path:
    (folder / "no.zip").write_text("no zip")
    return folder / "no.zip"


Make = Callable[[Path, Path], Path]
REFUSED: dict[str, tuple[Make, Callable[[Path], str] | None, str, str]] = {
    "nothing there": (lambda exported, folder: folder / "gone.zip", None, "FILE = ", "No such file"),
    "no zip": (no_zip, None, "FILE = ", "is no file of `edc-ray teachers export`"),
    "another zip": (edited(lambda found: found.pop("card.json")), None, "FILE = ", "it has no card.json"),
    "an edited card": (
        edited(lambda found: found.update({"card.json": found["card.json"].replace(b'"bee"', b'"cow"')})),
        None, "FILE = ", "has another checksum: its card.json",
    ),
    "a flipped bit": (edited(first_tensor), None, "FILE = ", "has another checksum: vgg5_w16."),
    "a member gone": (
        edited(lambda found: found.pop(next(n for n in found if n.startswith("vgg5")))),
        None, "FILE = ", "has another checksum: vgg5_w16.",
    ),
    "another format": (carded(format=2), None, "FILE = ", "has format 2; must be 1"),
    "units of others": (carded(units={}), None, "FILE = ", "must have all, convnet_w16_d2, vgg5_w16"),
    "another version": (carded(key="0" * 12), None, "FILE = ", "it is version 1: train them again"),
    "data that are not here": (whole, lambda root: "null", "dataset.path = None", "no such folder"),
    "other classes": (
        whole, lambda root: images(root / "x", ("ant", "cow")), "dataset.classes = None",
        "the class order differs from label 1 on: cow here, bee in ",
    ),
    "other images": (
        whole, lambda root: images(root / "y", shade=1), "dataset.path = '", "has other content (",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_is_refused(
    name: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, data, error, legal = REFUSED[name]
    path = data(tmp_path) if data else str(exported / "data")
    capsys.readouterr()
    assert bring(make(exported, tmp_path), tmp_path / "store", f"dataset.path={path}") == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {error}") and legal in err and err.count("\n") == 1 and not out, err
    assert not (tmp_path / "store").exists()


def test_another_class_order_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"dataset.path={exported / 'data'}"
    assert bring(exported / "teachers.zip", tmp_path / "store", where, "dataset.classes=[bee, ant]") == 2
    assert "the class order differs from label 0 on: bee, ant here, ant, bee in " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "error", "legal"),
    [
        (["export", "digits/ipc1", "OUT"], "squeeze.observers = (", "are not in "),
        (["export", "digits/ipc1", "."], "OUT = '.'", "must be a file in a folder that there is"),
        (["export", "digits/ipc1", "gone/x.zip"], "OUT = 'gone/x.zip'", "must be a file in a folder"),
        (["export", "digits/ipc9", "OUT"], "preset = 'digits/ipc9'", "did you mean digits/ipc"),
        (["import", "gone.zip", "--set", "x"], "FILE = 'gone.zip'", "No such file"),
    ],
)
def test_what_a_user_can_write_wrongly(
    argv: list[str], error: str, legal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["teachers", *argv]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {error}") and legal in err and err.count("\n") == 1 and not out, err
    assert not list(tmp_path.iterdir())
