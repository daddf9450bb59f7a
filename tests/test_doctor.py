"""`edc-ray doctor`: each line, a machine where all is well, and each thing that may be amiss."""

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edc_ray import cli, doctor, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime, Sweep
from edc_ray.core.models import cached
from edc_ray.doctor import Finding
from tests import tiny

GB = 10**9


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty; and no cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, str], str]:
    """Exit code, what -> line, and what stands on stderr."""
    code = cli.main(["doctor", *words])
    out, err = capsys.readouterr()
    return code, {line.split()[1]: line for line in out.splitlines()}, err


def test_all_is_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, err = run(capsys, "digits/ipc1")
    assert (code, err) == (0, "")
    assert list(lines) == ["versions", "gpus", "memory", "shm", "store", "data", "weights", "disk"]
    assert all(line.startswith("ok ") for line in lines.values())
    assert f"torch {torch.__version__.split('+')[0]}" in lines["versions"]
    assert "not there yet, will be made" in lines["store"]
    assert "digits: 880 training images in 10 classes, 30% held out" in lines["data"]
    assert not list(folder.iterdir())  # not even a store


def test_without_a_file_it_is_about_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "--set", "runtime.labels=stream")
    assert code == 0 and "digits" in lines["data"] and " of labels are to be stored" in lines["disk"]


def test_problems_are_counted_and_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, err = run(
        capsys, "edc/cifar10/ipc10", "--set", "dataset.path=gone", "--set", "runtime.workers=100000"
    )
    assert (code, err) == (1, "failed: 2 problems\n")
    assert lines["data"].startswith("problem") and "no such folder; must be a folder with" in lines["data"]
    assert lines["memory"].startswith("problem") and ": lower runtime.workers to " in lines["memory"]
    assert "disk" not in lines  # nobody knows without the data


def test_bad_input_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "digits/ipc1", "--set", "runtime.worker=1")[0] == 2


# --- versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requires", "python", "problem"),
    [
        (["torch>=99"], ">=3.11", "is not >=99: pip install 'torch>=99'"),
        (["no-such-thing>=2"], ">=3.11", "no-such-thing is missing: pip install 'no-such-thing>=2'"),
        (['torch>=99; extra == "dev"'], ">=3.99", "is not >=3.99: use another one"),
    ],
)
def test_versions(
    requires: Sequence[str], python: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": python})
    (found,) = doctor.versions()
    assert not found.ok and problem in found.text


def test_files_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", gone)
    (found,) = doctor.versions()
    assert not found.ok and "pip install -e ." in found.text


# --- the machine --------------------------------------------------------------------------------------------


@pytest.fixture
def gpus_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let torch see so many GPUs, which work or do not."""

    def see(count: int, works: bool = True) -> None:
        def zeros(*size: int, device: str) -> None:
            if not works:
                raise RuntimeError("CUDA driver version is insufficient\nfor reasons")

        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "NVIDIA H200")
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=140 * GB)
        )
        monkeypatch.setattr(torch, "zeros", zeros)

    return see


@pytest.mark.parametrize(
    ("count", "works", "runtime", "submitted", "ok", "text"),
    [
        (0, True, {}, False, True, "none is asked for"),
        (0, True, {"gpus_per_worker": 0.5}, False, False, "submit it to a cluster that has some"),
        (0, True, {"gpus_per_worker": 0.5}, True, True, "0.5 of the cluster's"),
        (0, True, {"device": "cuda"}, False, False, "set runtime.device to auto"),
        (2, True, {"gpus_per_worker": 1.0}, False, True, "2 (NVIDIA H200), 0.14 TB each"),
        (2, True, {}, False, True, "Ray gives them to no worker"),
        (2, False, {"gpus_per_worker": 1.0}, False, False, "cannot use them: CUDA driver version is insuff"),
    ],
)
def test_gpus(
    gpus_of: Any, count: int, works: bool, runtime: dict[str, Any], submitted: bool, ok: bool, text: str
) -> None:
    gpus_of(count, works)
    found = doctor.gpus(Runtime(**runtime), submitted)
    assert found.ok == ok and text in found.text and "\n" not in found.text


def test_memory_is_what_workers_were_seen_to_take(store: Store) -> None:
    before = doctor.memory(Runtime(workers=1), store)
    mapper = pipeline.in_process(store, tiny.runtime())
    pipeline.ensure(tiny.experiment(), store, tiny.runtime(), mapper, upto="squeeze")
    after = doctor.memory(Runtime(workers=1), store)
    assert before.ok and "none was measured yet" in before.text
    assert after.ok and "as measured in the store" in after.text
    assert not doctor.memory(Runtime(workers=10_000), store).ok


@pytest.mark.parametrize(("blocks", "ok"), [(10, False), (10**6, True), (None, True)])
def test_shared_memory(blocks: int | None, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def room(path: str) -> Any:
        if blocks is None:
            raise FileNotFoundError(path)
        return SimpleNamespace(f_blocks=blocks, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", room)
    found = doctor.shared_memory()
    assert found.ok == ok and ("--shm-size" in found.text) == (not ok)


# --- the store, the data, the weights -----------------------------------------------------------------------


def test_a_store_is_written_read_and_left_as_it_was(store: Store) -> None:
    store.put("store.json", b'{"schema": 1}')
    before = sorted(Path(store.root).iterdir())
    found = doctor.writable(store)
    assert found.ok and "written and read back, " in found.text and found.text.endswith(" free")
    assert sorted(Path(store.root).iterdir()) == before


@pytest.mark.parametrize("stamp", [b'{"schema": 9}', None])
def test_a_store_that_cannot_be_used(stamp: bytes | None, store: Store) -> None:
    if stamp is None:
        file = Path(store.root) / "file"
        file.touch()
        store = Store(f"{file}/store")
    else:
        (Path(store.root) / "store.json").write_bytes(stamp)
    found = doctor.writable(store)
    assert not found.ok and found.text.endswith("set runtime.store, or its permissions and credentials")


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr(doctor, "free_bytes", lambda store: 10)
    settings = Sweep(runtime=Runtime(labels="stream", store=store.root))
    found = doctor.room(settings, Experiment(), store)
    assert (not found.ok and "10 bytes are free" in found.text) or "0.01 kB are free" in found.text


def weights(text: str, *observers: str) -> list[Finding]:
    squeeze = replace(Experiment().squeeze, weights=text, observers=observers, epochs=1)
    return list(doctor.inputs(Sweep(), replace(Experiment(), squeeze=squeeze)))


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    data, found = weights(str(tmp_path), "convnet_w32")
    assert data.ok and not found.ok and "put the state dict of convnet_w32 there" in found.text


def test_weights_of_a_library_say_where_they_would_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    _, found = weights("torchvision", "torchvision/resnet18")
    assert found.ok and found.text.startswith(f"0 of 1 are in {tmp_path}/hub/checkpoints; workers download")
    file, there = cached("torchvision/resnet18")
    assert not there
    Path(file).parent.mkdir(parents=True)
    Path(file).touch()
    assert cached("torchvision/resnet18") == (file, True)
    assert cached("timm/resnet18.a1_in1k")[1] in (True, False)


def test_a_sweep_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    """What `sweep` would refuse is a problem of its input."""
    file = tiny.sweep_file(tmp_path, experiment=tiny.CHANGES | {"split.val": 0})
    settings, experiment = cli.load(file, [])
    (found,) = doctor.inputs(settings, experiment)
    assert not found.ok and "a search selects on val" in found.text
