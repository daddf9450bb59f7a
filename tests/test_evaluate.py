"""Condensed sets wherever they are: judged under protocols, exported, read in; and who reads test."""

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from edc_ray import cli, evaluation, export, given, pipeline, presets, space
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Experiment, Knob, Runtime, Sweep, dump, override
from edc_ray.core import data
from edc_ray.pipeline import Worker, stages
from edc_ray.pipeline.graph import JUDGED
from edc_ray.pipeline.stages import STAGES
from edc_ray.pipeline.worker import Inputs, Judge
from tests.test_judge import quick

HOW = Runtime(device="cpu")
FEW = ["evaluate.epochs=2", "evaluate.seeds=[0, 1]", "evaluate.reports=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with set.yaml, whose set is condensed in its store."""
    folder = tmp_path_factory.mktemp("evaluate")
    runtime = {"store": str(folder / "store"), "device": "cpu"}
    text = yaml.safe_dump({"name": "s", "experiment": dump(quick()), "runtime": runtime})
    (folder / "set.yaml").write_text(text)
    how = Runtime(store=runtime["store"], device="cpu")
    store = Store(how.store)
    pipeline.ensure(quick(), store, how, pipeline.in_process(store, how), upto="recover")
    return folder


@pytest.fixture(autouse=True)
def forget() -> None:
    """The disk is asked once a process; here it changes."""
    stages._start_fingerprint.cache_clear()


def stored(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The condensed images as they are in the store, and their labels."""
    task = pipeline.tasks(quick(), "recover")[-1]
    tensors, _ = Store(str(place / "store")).artifact("recover", task.key).read("all")
    return tensors["images"], tensors["labels"]


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    got = cli.main(list(argv))
    out, err = capsys.readouterr()
    assert got == code, out + err
    return out + err


# --- evaluate -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_command_gives_every_protocol_and_student(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", str(place / "set.yaml"), "--protocol", "all", "--students", "vgg5_w16,wrn_16_2"]
    out = run(capsys, *argv, *sets(*FEW, "evaluate.seeds=[0]"))
    written = json.loads(Path(out.splitlines()[-1].removeprefix("written to ")).read_text())
    rows = written["rows"]
    assert [row["protocol"].split(" ")[0] for row in rows[::2]] == ["edc", "rded", "rd3", "sre2l", "hard"]
    assert all("epochs=2" in row["protocol"] for row in rows), "what --set changed is in the name"
    assert {len(row[arm]) for row in rows for arm in evaluation.ARMS} == {1}
    seen = {(row["protocol"].split(" ")[0], row["student"]): row["seen"] for row in rows}
    assert seen["edc", "vgg5_w16"] == "in synthesis, in labels" and seen["hard", "vgg5_w16"] == "in synthesis"
    assert seen["rded", "vgg5_w16"] == "in synthesis" and seen["edc", "wrn_16_2"] == "unseen"
    claims = [line for line in out.splitlines() if line.startswith("generalisation")]
    assert len(claims) == 5 and all("(wrn_16_2)" in line and "vgg5" not in line for line in claims)
    assert written["split"] == "val" and written["judged"] == 61 and "accuracy on val (61 images)" in out
    assert written["test_reads"] == 0
    again = run(capsys, *argv, *sets(*FEW, "evaluate.seeds=[0]"))
    assert "units" not in again and again.splitlines()[-1] == out.splitlines()[-1], "all of it is there"


def test_the_table_says_what_the_store_has(place: Path) -> None:
    found = given.open_set(str(place / "set.yaml"), None, FEW)
    (cell,) = evaluation.cells(found, ["rd3"], ["vgg5_w16"], final=False)
    store = Store(found.runtime.store)
    for _, experiment in cell.experiments():
        pipeline.ensure(experiment, store, found.runtime, pipeline.in_process(store, found.runtime))
    told = evaluation.facts(found, [cell], store)
    accuracy = lambda e: pipeline.facts(pipeline.tasks(e)[-1], store)["accuracy"]  # noqa: E731
    by_seed = [accuracy(override(cell.condensed, {"evaluate.seeds": [seed]})) for seed in (0, 1)]
    assert told["rows"][0]["condensed"] == by_seed
    assert told["rows"][0]["random_real"] == [accuracy(each) for each in cell.random_real]
    draws = [each.init.seed for each in cell.random_real]
    assert len(set(draws)) == 2 and min(draws) >= 500_000, "fresh draws, one a seed"
    assert found.recover.key == pipeline.tasks(cell.condensed, "recover")[-1].key


def test_the_winner_of_a_sweep_is_a_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best trial on val; with --final it is made again on all training images."""
    search = {"evaluate.lr": Knob(choices=(0.01, 0.02))}
    store = Store(str(place / "store"))
    sweep = Sweep(name="two", search=search, runtime=Runtime(store=store.root, device="cpu"))
    study = space.open_study(Path(store.folder("sweeps/two")))
    for value, accuracy in ((0.01, 0.3), (0.02, 0.4)):
        study.enqueue_trial({"evaluate.lr": value})
        trial = study.ask()
        space.Space(search)(trial)
        trial.report(accuracy, 1000)
        study.tell(trial, accuracy)
    facts = {"sweep": dump(sweep), "base": dump(quick()), "store": store.path()}
    store.put("sweeps/two/sweep.json", json.dumps(facts).encode())
    found = given.open_set(str(place / "store" / "sweeps" / "two"), None, ["evaluate.epochs=3"])
    assert found.experiment == override(quick(), {"evaluate.lr": 0.02}) and found.name.endswith("(trial 1)")
    assert dict(found.over) == {"evaluate.epochs": 3} and found.runtime.store == store.root
    monkeypatch.chdir(place)  # a sweep of a relative store, seen from elsewhere
    facts["sweep"] = dump(replace(sweep, runtime=Runtime(store="elsewhere")))
    store.put("sweeps/two/sweep.json", json.dumps(facts).encode())
    assert given.open_set("store/sweeps/two", None, []).runtime.store == store.root
    final = given.open_set(str(place / "store" / "sweeps" / "two"), None, [], final=True)
    assert final.experiment.split.val == 0 and "condensed again on fit + val" in final.notes[0]


def test_who_knew_the_student() -> None:
    assert evaluation.mark("torchvision/resnet18", ["resnet18"], []) == "in synthesis"
    assert evaluation.mark("convnet_w128", ["convnet_d1"], ["convnet_w32"]) == "in synthesis, in labels"
    assert evaluation.mark("mobilenet_v2", ["mobilenet_v2_half"], []) == "in synthesis"
    assert evaluation.mark("resnet50", ["resnet18"], ["resnet101"]) == "unseen"
    assert evaluation.mark("resnet50", [], []) == "unseen"
    assert evaluation.mark("resnet50", None, ["resnet50"]) == "in labels, synthesis unknown"


def test_students_by_their_short_names() -> None:
    found = [evaluation.network(name, px) for px in (32, 224) for name in ("mobilenet_v2", "wrn_16_2")]
    assert found == ["mobilenet_v2", "wrn_16_2", "torchvision/mobilenet_v2", "wrn_16_2"]


def test_labels_of_batch_statistics_need_a_batch_norm(place: Path) -> None:
    found = given.open_set(str(place / "set.yaml"), None, FEW)
    (cell,) = evaluation.cells(found, ["sre2l"], [], final=False)
    assert cell.labels == ("convnet_w16_d2",) and "teacher_bn=running" in cell.protocol
    with pytest.raises(ConfigError, match="no BatchNorm in convnet_w16_d2"):
        over = given.open_set(str(place / "set.yaml"), None, [*FEW, "relabel.teacher_bn=batch"])
        evaluation.cells(over, ["sre2l"], [], final=False)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["set.yaml", "--protocol", "edd"], "protocol = 'edd': unknown; did you mean edc"),
        (["set.yaml", "--students", "resnet"], "evaluate.student = 'resnet': unknown"),
        (["nothing"], "SET = 'nothing': neither a file or folder, nor a preset"),
        (["edc/cifar10/ipc10"], "--final reads it"),
        (["images"], "--dataset = None"),
        (["images", "--dataset", "digit"], "--dataset = 'digit': unknown; did you mean digits"),
        (["images", "--dataset", "digits"], "has images of 6 px; dataset.size_px is 16"),
        (["uneven", "--dataset", "digits"], "as many images in each class; has 1, 2"),
        (["broken.pt", "--dataset", "digits"], "cannot be read"),
    ],
)
def test_bad_input_is_refused_before_any_compute(
    argv: list[str], says: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.yaml").write_text((place / "set.yaml").read_text())
    (tmp_path / "broken.pt").write_bytes(b"not tensors")
    for folder, counts in (("images", [1] * 10), ("uneven", [2] + [1] * 9)):
        for label, count in enumerate(counts):
            (tmp_path / folder / f"{label}").mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (6, 6)).save(tmp_path / folder / f"{label}" / f"{i}.png")
    assert says in run(capsys, "evaluate", *argv, code=2)


# --- test is read only where it is logged -------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """(stage, key, split) of every opening of the images that accuracies are read on."""
    seen: list[tuple[str, str, str]] = []
    judge = Inputs.judge

    def spy(self: Inputs, task: pipeline.Task) -> Judge:
        found = judge(self, task)
        seen.append((task.stage, task.key, found.split))
        return found

    monkeypatch.setattr(Inputs, "judge", spy)
    return seen


def without_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the real images gets no test images."""
    read = Inputs.unit

    def unit(self: Inputs, stage: str, key: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors, meta = read(self, stage, key, name)
        return {k: v for k, v in tensors.items() if not (stage == "ingest" and k.startswith("test"))}, meta

    monkeypatch.setattr(Inputs, "unit", unit)


def flow(store: Store, experiment: Experiment) -> None:
    """As `condense`, or a trial of a sweep: the experiment, its baselines, the student on all images."""
    mapper = pipeline.in_process(store, HOW)
    for arm in pipeline.arms(experiment).values():
        pipeline.ensure(arm, store, HOW, mapper)
    whole = pipeline.whole(experiment)
    assert whole is not None
    pipeline.ensure(whole, store, HOW, mapper, upto="squeeze")


def record(store: Store) -> set[str]:
    lines = store.read_lines("test_reads.jsonl")
    assert len({line["key"] for line in lines}) == len(lines), "each once"
    return {line["key"] for line in lines}


@pytest.mark.slow
def test_test_is_read_where_it_is_logged_and_nowhere_else(
    store: Store, opened: list[tuple[str, str, str]]
) -> None:
    flow(store, quick())
    assert {split for _, _, split in opened} == {"val"} and record(store) == set()
    opened.clear()
    flow(store, pipeline.refitted(quick()))
    assert {stage for stage, _, _ in opened} == set(JUDGED) & set(STAGES)
    assert {split for *_, split in opened} == {"test"}
    assert record(store) == {key for _, key, _ in opened}
    flow(store, pipeline.refitted(quick()))
    assert record(store) == {key for _, key, _ in opened}, "what is there is not read again"


def test_a_read_of_test_by_a_unit_that_is_killed_is_on_record(store: Store) -> None:
    experiment = pipeline.refitted(quick())
    tasks = pipeline.tasks(experiment)
    pipeline.ensure(experiment, store, HOW, pipeline.in_process(store, HOW), upto="recover")
    before = record(store)
    running = Worker(store, HOW).run(tasks[-1], "student")
    next(running)
    assert isinstance(running, Generator)
    running.close()  # as if it were killed: nothing is committed
    assert not pipeline.is_hit(tasks[-1], store, HOW) and record(store) - before == {tasks[-1].key}
    pipeline.ensure(experiment, store, HOW, pipeline.in_process(store, HOW))
    assert record(store) - before == {tasks[-1].key}


@pytest.mark.slow
def test_a_search_goes_well_where_there_is_no_test_at_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_test(monkeypatch)
    flow(store, quick())
    flow(store, quick(evaluate__epochs=3, evaluate__reports=3, evaluate__select="best_val"))
    with pytest.raises(KeyError, match="test"):
        flow(store, pipeline.refitted(quick()))
    assert record(store) == set()


def test_stages_that_make_images_cannot_open_val_or_test(store: Store) -> None:
    tasks = pipeline.ensure(quick(), store, HOW, pipeline.in_process(store, HOW), upto="recover")
    inputs = Worker(store, HOW)._inputs
    for task in tasks:
        if task.stage not in JUDGED:
            with pytest.raises(RuntimeError, match="neither val nor test"):
                inputs.judge(task)


@pytest.mark.slow
def test_final_reads_test_of_a_set_made_again_on_all_training_images(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(place / "store"))
    argv = ["evaluate", str(place / "set.yaml"), "--protocol", "hard", *sets(*FEW)]
    before = record(store)
    assert "accuracy on val" in run(capsys, *argv) and record(store) == before
    out = run(capsys, *argv, "--final")
    assert "accuracy on test (539 images)" in out and "condensed again on fit + val" in out
    new = len(record(store)) - len(before)
    assert new >= 4 and f"record in this store: {len(record(store))}" in out


def test_condense_says_under_what_its_numbers_are(store: Store) -> None:
    assert evaluation.how(quick(), store) == ["protocol: own; students of seeds 0"]
    published = evaluation.how(presets.experiment("edc/cifar10/ipc10"), store)
    assert published[0] == "protocol: edc; students of seeds 0, 1, 2"
    assert published[1].startswith("test was read") and published[1].endswith("record here: 0")


# --- export and import --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["image_folder", "parquet", "pt"])
def test_what_is_exported_is_what_is_stored(
    form: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(capsys, "export", str(place / "set.yaml"), "--format", form, "--out", str(out))
    images, labels = stored(place)
    if form == "image_folder":
        files = sorted(out.glob("*/*.png"))
        found = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
        names = [int(file.parent.name) for file in files]
    elif form == "parquet":
        table = pq.read_table(out / "images.parquet")
        (tmp_path / "one.png").write_bytes(table["image"][3].as_py())
        found = images.clone()
        found[3] = torch.from_numpy(np.array(Image.open(tmp_path / "one.png"))).permute(2, 0, 1)
        names = table["label"].to_pylist()
    else:
        content = torch.load(out / "images.pt", weights_only=True)
        found, names = content["images"], content["labels"].tolist()
    assert torch.equal(found, images) and names == labels.tolist()
    card, sums = json.loads((out / "card.json").read_text()), (out / "SHA256SUMS").read_text().splitlines()
    assert card["lossless"] and card["images"] == 10 and card["protocol"] == "own"
    assert card["synthesis"] == ["convnet_w16_d2", "vgg5_w16"] and "CC BY" in card["licence"]
    assert len(sums) == card["files"] == (10 if form == "image_folder" else 1)
    for line in sums:
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert "licence: Optical Recognition" in (out / "README.md").read_text()


def test_an_exported_set_is_judged_as_the_set_itself(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same images, the same observers, so the same accuracies to the bit."""
    formats = ("image_folder", "parquet", "pt")
    for form in formats:
        argv = ["--format", form, "--out", str(tmp_path / form)]
        run(capsys, "export", str(place / "set.yaml"), *argv)
    key = pipeline.tasks(quick(), "recover")[-1].key
    found = []
    store = f"runtime.store={place / 'store'}"
    exported = [str(tmp_path / form) for form in formats]
    for target in (str(place / "set.yaml"), *exported, str(place / "store" / f"recover-{key}")):
        argv = ["evaluate", target, "--protocol", "rd3", "--students", "vgg5_w16"]
        printed = run(capsys, *argv, *sets(*FEW, store, "runtime.device=cpu"))
        told = json.loads(Path(printed.splitlines()[-1].removeprefix("written to ")).read_text())
        found.append(
            (told["rows"][0]["condensed"], told["synthesis"], told["split"], told["rows"][0]["seen"])
        )
    assert found == found[:1] * 5


def test_somebody_elses_folder_is_judged_and_nobody_claims(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in range(10):
        (tmp_path / "theirs" / f"new{label:03d}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (20 * label,) * 3).save(tmp_path / "theirs" / f"new{label:03d}" / "a.png")
    small = ["dataset.size_px=8", "dataset.limit=200", "squeeze.epochs=1", "squeeze.observers=[vgg5_w16]"]
    argv = ["evaluate", "theirs", "--dataset", "digits", "--students", "vgg5_w16", "--protocol", "rded"]
    out = run(capsys, *argv, *sets(*small, *FEW))
    assert "made with unknown networks" in out and "in labels, synthesis unknown" in out
    assert "note: class folders by their order: new000 = 0, new001 = 1, new002 = 2, ..." in out
    assert "no claim, as no student is known to be unseen" in out and "only --final is a fair number" in out
    task = pipeline.tasks(given.open_set("theirs", "digits", small).experiment, "recover")[-1]
    images = Store("store").artifact("recover", task.key).read("all")[0]["images"]
    assert images[:, 0, 0, 0].tolist() == [20 * label for label in range(10)]
    final = given.open_set("theirs", "digits", small, final=True).experiment
    assert final.split.val == 0 and final.evaluate.reports == 1


# --- tensors of others --------------------------------------------------------------------------------------


def levels(rng: torch.Generator) -> torch.Tensor:
    return torch.randint(256, (4, 3, 8, 8), generator=rng, dtype=torch.uint8)


def pairs(tmp_path: Path, images: Any, labels: Any) -> dict[str, Path]:
    """The same set in every layout that is known."""
    torch.save({"images": images, "labels": labels}, tmp_path / "dict.pt")
    torch.save([images, labels], tmp_path / "pair.pt")
    torch.save(images, tmp_path / "images_best.pt")
    torch.save(labels, tmp_path / "labels_best.pt")
    np.savez(tmp_path / "arrays.npz", x=images.numpy(), y=labels.numpy())
    return {name: tmp_path / name for name in ("dict.pt", "pair.pt", "images_best.pt", "arrays.npz")}


def test_tensors_are_read_in_class_order(tmp_path: Path, rng: torch.Generator) -> None:
    images, labels = levels(rng), torch.tensor([1, 0, 1, 0])
    for path in pairs(tmp_path, images, labels).values():
        found, classes, notes = data.read_tensors(str(path), None)
        assert torch.equal(found, images[[1, 3, 0, 2]]) and classes.tolist() == [0, 0, 1, 1] and notes == ()
    np.savez(tmp_path / "last.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    assert torch.equal(data.read_tensors(str(tmp_path / "last.npz"), None)[0], images[[1, 3, 0, 2]])


Turn = Callable[[torch.Tensor], torch.Tensor]


def test_floats_become_levels_and_what_is_lost_is_said(tmp_path: Path, rng: torch.Generator) -> None:
    images, labels, pixels = levels(rng), torch.tensor([0, 0, 1, 1]), data.CONSTANTS["cifar10"]
    unit: Turn = lambda x: x.float() / 255  # noqa: E731
    normal: Turn = lambda x: data.normalize(x, *pixels)  # noqa: E731
    for turn, says in ((unit, "rounded"), (normal, "0.00 % of the values were clipped")):
        soft = torch.nn.functional.one_hot(labels, 3).float() * 0.4 + 0.1
        torch.save((turn(images), soft[:, :2]), tmp_path / "set.pt")
        found, classes, notes = data.read_tensors(str(tmp_path / "set.pt"), pixels)
        assert torch.equal(found, images) and classes.tolist() == labels.tolist()
        assert any(says in note for note in notes) and any("soft labels" in note for note in notes)
    wide = normal(images)
    wide[0, 0, 0, 0] = 9.0
    torch.save((wide, labels), tmp_path / "set.pt")
    found, _, notes = data.read_tensors(str(tmp_path / "set.pt"), pixels)
    assert found[0, 0, 0, 0] == 255 and "0.13 % of the values" in notes[0]  # 1 of 768
    with pytest.raises(ConfigError, match="must be bytes or in"):
        data.read_tensors(str(tmp_path / "set.pt"), None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(4, 3, 8, 8), torch.tensor([0, 0, 0, 1])], "has 1 to 3 images of a class"),
        ([torch.zeros(4, 3, 8, 8), torch.tensor([0, 1])], r"has images \(4, 3, 8, 8\) and labels \(2,\)"),
        ([torch.zeros(4, 3, 8, 6), torch.tensor([0, 0, 1, 1])], "8 x 6 px"),
        ({"pictures": torch.zeros(1)}, "has pictures"),
        (torch.zeros(4, 3, 8, 8), "no labels beside it"),
    ],
)
def test_tensors_that_are_no_set_are_refused(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "set.pt")
    with pytest.raises(ConfigError, match=says):
        data.read_tensors(str(tmp_path / "set.pt"), None)


def test_an_imported_file_is_kept_by_its_content(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images that the pipeline sees are those of the file, in class order."""
    images, labels = stored(place)
    torch.save((images.flip(0), labels.flip(0)), tmp_path / "set.pt")
    store = str(tmp_path / "store")
    small = [
        f"runtime.store={store}",
        "dataset.size_px=8",
        "dataset.limit=200",
        "squeeze.observers=[vgg5_w16]",
    ]
    found = given.open_set(str(tmp_path / "set.pt"), "digits", small)
    assert found.experiment.init.path is not None and "/imports/" in found.experiment.init.path
    again = given.open_set(str(tmp_path / "set.pt"), "digits", small)
    assert again.experiment == found.experiment
    task = pipeline.ensure(
        found.experiment, Store(store), HOW, pipeline.in_process(Store(store), HOW), upto="recover"
    )[-1]
    assert torch.equal(Store(store).artifact("recover", task.key).read("all")[0]["images"], images)


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_actors_the_numbers_are_the_same(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for way in ([], ["--ray"]):
        store = f"runtime.store={tmp_path / f'store{len(way)}'}"
        argv = ["evaluate", str(place / "set.yaml"), "--protocol", "rd3,hard", *way]
        out = run(capsys, *argv, *sets(*FEW, store, "runtime.cpus_per_worker=0.5"))
        told.append(json.loads(Path(out.splitlines()[-1].removeprefix("written to ")).read_text())["rows"])
    assert told[0] == told[1]


def test_a_folder_that_is_there_is_not_written_over(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "export", str(place / "set.yaml"), "--out", str(place), code=2)
    assert "is there already" in out
    out = run(capsys, "export", str(place / "set.yaml"), "--out", "x", *sets("init.seed=5"), code=2)
    assert "`edc-ray condense` makes it" in out
    out = run(capsys, "export", str(place / "set.yaml"), "--out", "x", "--format", "zip", code=2)
    assert "--format = 'zip': unknown" in out and set(export.FORMATS) == {
        "image_folder", "parquet", "pt", "ddranking",
    }  # fmt: skip
