"""A dataset that does not fit in memory: the same bits as one that does, each image decoded once a pass."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edc_ray.artifacts import Artifact, Damaged, Store
from edc_ray.config import Experiment, Runtime, override
from edc_ray.core import data
from edc_ray.core.data import pixels
from edc_ray.pipeline import Task, ensure, graph, in_process, tasks, units
from edc_ray.pipeline.types import Tensors
from edc_ray.pipeline.worker import Inputs, Worker

SIDE, SHARD = 8, 30  # px, images
CHANGES = {
    "dataset.limit": 100, "dataset.size_px": SIDE, "split.val": 0.3, "squeeze.observers": ["vgg5_w16"],
    "squeeze.epochs": 1, "statistics.shard_images": 32, "init.ipc": 2, "recover.iterations": 1,
    "evaluate.student": "convnet_w16_d2", "evaluate.epochs": 1, "evaluate.reports": 1,
}  # fmt: skip
HOW = Runtime(device="cpu")


@pytest.fixture
def sharded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No dataset fits in memory, and a shard is small."""
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(data, "SHARD_BYTES", SHARD * 3 * SIDE**2)
    _forget()
    yield
    _forget()


def _forget() -> None:
    graph.looked.cache_clear()


def run(folder: Path, upto: str = "evaluate", **changes: object) -> tuple[Store, Experiment, dict[str, Task]]:
    store, exp = Store(str(folder)), override(Experiment(), CHANGES | changes)
    found = ensure(exp, store, HOW, in_process(store, HOW), upto=upto)
    return store, exp, {task.stage: task for task in found}


def results(store: Store, found: dict[str, Task]) -> dict[str, Tensors]:
    unit = {"evaluate": "student"}
    return {
        stage: store.artifact(stage, task.key).read(unit.get(stage, "all"))[0]
        for stage, task in found.items()
        if stage not in ("ingest", "relabel")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensors]:
    """What the dataset gives in memory."""
    store, _, found = run(tmp_path_factory.mktemp("whole"))
    assert found["ingest"].shards == (0, 0) and units(found["ingest"], HOW) == ["all"]
    return results(store, found)


def test_every_stage_has_the_bits_of_the_dataset_in_memory(
    whole: dict[str, Tensors], sharded: None, tmp_path: Path
) -> None:
    store, exp, found = run(tmp_path)
    assert units(found["ingest"], HOW) == [
        *(f"train-{i:05d}" for i in range(4)), *(f"test-{i:05d}" for i in range(18))
    ]  # fmt: skip
    torch.testing.assert_close(results(store, found), whole, rtol=0, atol=0)
    tensors, meta = store.artifact("ingest", found["ingest"].key).read("all")
    in_memory = data.read(exp.dataset)
    assert set(tensors) == {"train_labels", "test_labels"}, "no pixel is kept outside the shards"
    assert (tuple(meta["mean"]), tuple(meta["std"])) == (in_memory.mean, in_memory.std)


def test_a_pass_decodes_each_image_once_and_few_images_only_themselves(
    sharded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, exp, _ = run(tmp_path, upto="ingest")
    seen: list[str] = []
    monkeypatch.setattr(pixels, "_decoded", _spied(seen))
    task = next(task for task in tasks(exp) if task.stage == "statistics")
    real = Inputs(store, HOW, torch.device("cpu")).real(task)
    assert seen == [], "labels are read alone"
    order = torch.randperm(len(real.fit), generator=torch.Generator().manual_seed(0))
    got = torch.cat([real.fit[ids] for ids in order.split(7)])
    assert len(seen) == len(real.fit) == 70
    seen.clear()
    torch.testing.assert_close(torch.cat(list(real.fit.split(9)))[order], got, rtol=0, atol=0)
    assert len(seen) == 70
    seen.clear()
    assert real.fit.bytes(torch.tensor([69, 0])).shape == (2, 3, SIDE, SIDE)
    assert sorted(seen) == ["train-00000", "train-00003"]
    seen.clear()
    run(tmp_path, upto="statistics")
    trained, judged, measured = 70, 30, 70
    assert len(seen) == trained + judged + measured


def test_statistics_hold_the_images_of_one_forward(
    sharded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many a shard of them has."""
    store, exp, _ = run(tmp_path, upto="squeeze", **{"statistics.shard_images": 64})
    read, original = list[int](), pixels.Pixels.__getitem__

    def counted(self: pixels.Pixels, ids: Tensor) -> Tensor:
        read.append(len(ids))
        return original(self, ids)

    monkeypatch.setattr(pixels.Pixels, "__getitem__", counted)
    task, how = tasks(exp, "statistics")[-1], Runtime(device="cpu", forward_images=40)
    list(Worker(store, how).run(task, "shard-00000"))
    assert read == [10] * 6 + [4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [("robustness", {"apply.pgd_steps": 2}), ("robustness", {"apply.images": "all"}),
     ("continual", {"apply.steps": [2], "apply.memory": "herding"}), ("slimming", {"apply.epochs": 1})],
)  # fmt: skip
def test_applications_have_the_numbers_of_the_dataset_in_memory(
    name: str, changes: dict[str, object], sharded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"apply.name": name, **changes}
    made = dict[str, object]()
    for folder in ("sharded", "whole"):
        if folder == "whole":
            monkeypatch.setattr(data, "IN_MEMORY_BYTES", 1 << 30)
            monkeypatch.setattr(data, "SHARD_BYTES", 1 << 30)
            _forget()
        store, _, found = run(tmp_path / folder, "apply", **changes)
        units = store.artifact("apply", found["apply"].key).manifest()["units"]  # type: ignore[index]
        made[folder] = {unit: each["meta"]["rows"] for unit, each in units.items()}
        assert bool(found["ingest"].shards[0]) == (folder == "sharded")
    assert made["sharded"] == made["whole"]


def _spied(seen: list[str]) -> object:
    original = pixels._decoded

    def decoded(item: tuple[str, bytes | Tensor], size_px: int, resize: float) -> Tensor | str:
        seen.append(item[0])
        return original(item, size_px, resize)

    return decoded


def test_ingest_resumes_and_a_damaged_shard_is_found_when_some_rows_are_read(
    sharded: None, tmp_path: Path
) -> None:
    store, _, found = run(tmp_path, upto="ingest")
    artifact: Artifact = store.artifact("ingest", found["ingest"].key)
    file = artifact.units()["train-00001"]
    place = Path(store.path(file.path))
    raw = bytearray(place.read_bytes())
    raw[500] ^= 1
    place.write_bytes(raw)
    with pytest.raises(Damaged, match=r"train-00001.*another checksum"):
        artifact.read_rows(file, [0], ["image"])
    assert run(tmp_path, upto="squeeze")[0].artifact("ingest", found["ingest"].key).verify() == []
    file = artifact.units()["train-00001"]
    Path(store.path(file.path)).unlink()
    with pytest.raises(Damaged, match="is missing"):
        artifact.read_rows(file, [0], ["image"])


def test_the_rule_is_the_size_of_the_decoded_images() -> None:
    exp = override(Experiment(), {"dataset.name": "cifar10", "dataset.size_px": 32})
    found = data.listing(exp.dataset)
    assert data.shards(exp.dataset, found) == (0, 0)
    large = override(exp, {"dataset.size_px": 224}).dataset
    assert data.shard_images(large) == 891 and data.shards(large, found) == (57, 12)
    few = override(exp, {"dataset.size_px": 224, "dataset.limit": 10, "dataset.classes": ["cat"]}).dataset
    assert data.shards(few, data.listing(few)) == (0, 0)


def test_alphabetical_init_takes_the_class_that_is_ith_by_name(tmp_path: Path) -> None:
    """B18: the official list of ImageNet-10 is not alphabetical, the folders of its initial images are."""
    change = {"dataset.classes": ["7", "1", "3"], "init.ipc": 2}
    images = {}
    for quirk in (False, True):
        store, _, found = run(tmp_path, upto="init", **change | {"quirks.alphabetical_init": quirk})
        images[quirk] = store.artifact("init", found["init"].key).read("all")[0]["images"].split(2)
        real = Inputs(store, HOW, torch.device("cpu")).real(found["init"])
    every = {
        name: real.fit.bytes((real.fit_labels == i).nonzero().flatten())
        for i, name in enumerate(real.classes)
    }

    def of(drawn: Tensor, name: str) -> bool:
        return all(bool((every[name] == image).flatten(1).all(1).any()) for image in drawn)

    assert [of(drawn, name) for drawn, name in zip(images[False], "713", strict=True)] == [True] * 3
    assert [of(drawn, name) for drawn, name in zip(images[True], "137", strict=True)] == [True] * 3
