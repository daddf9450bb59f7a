"""A whole sweep in an S3 bucket, for which moto stands. Nothing on the driver's machine is needed again."""

import os
import shutil
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from pyarrow import fs

from edc_ray import cli, space
from edc_ray.artifacts import Store
from edc_ray.journal import folder_of
from tests import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
SECRET = "s3cr3t-0f-the-env1ronment"


def served(port: int = 0) -> tuple[Any, str]:
    """A server that runs, and where. All of one process have the same buckets."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    place = "{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f"http://{place}/edc", method="PUT"))
    return server, place


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The query of a URI whose bucket is `edc`."""
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIDTEST",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server, place = served()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"?region=us-east-1&scheme=http&endpoint_override={place}"
    server.stop()


def objects(store: Store) -> dict[str, bytes]:
    """All that lies under the root."""
    found = store._fs.get_file_info(fs.FileSelector(store._base, recursive=True))
    names = [info.path.removeprefix(f"{store._base}/") for info in found if info.is_file]
    return {name: store.get(name) or b"" for name in names}


def units(store: Store) -> list[str]:
    """artifact/unit, as often as it was made."""
    made = [name for name in objects(store) if name.endswith((".safetensors", ".parquet")) and "-" in name]
    return sorted(name.split(".")[0] for name in made if not name.startswith("sweeps/"))


def sweep_and_keep_logs(file: str, folder: Path) -> tuple[str, list[Path]]:
    """What a sweep prints, and what its Ray has written on this machine."""
    with tiny.sweeping(file) as driver:
        assert driver.stdout is not None
        first = driver.stdout.readline()
        environment = Path(f"/proc/{driver.pid}/environ").read_bytes().split(b"\0")
        (temporary,) = [line[11:].decode() for line in environment if line.startswith(b"RAY_TMPDIR=")]
        said, _ = driver.communicate(timeout=240)
        shutil.copytree(temporary, folder, symlinks=True, ignore=shutil.ignore_patterns("sockets"))
    assert driver.returncode == 0, said
    return first + said, [path for path in folder.rglob("*") if path.is_file()]


def assert_finished(store: Store) -> None:
    study = space.read_study(folder_of(store, "sweeps/tiny"))
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 4 == len(space.finished(study))
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert len(units(store)) == len(set(units(store)))


def test_a_sweep_with_tunes_own_storage_in_a_bucket(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"s3://edc/whole{bucket}"
    file = tiny.sweep_file(tmp_path, runtime__store=uri)
    said, logs = sweep_and_keep_logs(file, tmp_path / "logs")
    store = Store(uri)
    assert_finished(store)
    there = objects(store)
    written = [said.encode(), *there.values(), *(path.read_bytes() for path in logs if path.is_file())]
    assert len(logs) > 10 and not any(SECRET.encode() in data for data in written), "credentials leaked"
    files = ("final.json", "results.parquet", "best.yaml", "report.html", "study/00000.jsonl")
    assert {f"sweeps/tiny/{name}" for name in files} <= there.keys()
    tune = [name for name in there if name.startswith("sweeps/tiny/tune/from-00000/")]
    assert sum(name.endswith("/result.json") for name in tune) == 4
    assert any("experiment_state" in name for name in tune)
    assert "sweeps/tiny/driver.lock" not in there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "tiny.yaml"], (
        "nothing is left on this machine"
    )
    assert f"written to s3://edc/whole/sweeps/tiny{bucket}" in said

    assert cli.main(["report", f"s3://edc/whole/sweeps/tiny{bucket}"]) == 0
    assert "best: trial" in capsys.readouterr().out
    assert cli.main(["sweep", file]) == 0
    again = capsys.readouterr().out
    assert again.startswith("sweep tiny: 0 of 4 trials") and "stage hits: 100 %" in again


def test_a_killed_sweep_goes_on_from_the_bucket_alone(bucket: str, tmp_path: Path) -> None:
    """On a machine that has never seen it: its file in another folder, another Ray, and nothing else."""
    uri = f"s3://edc/killed{bucket}"
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    file = tiny.sweep_file(tmp_path / "one", runtime__store=uri)
    with tiny.sweeping(file) as driver:
        assert driver.stdout is not None
        assert any(line.startswith("trial 2/") for line in driver.stdout)
        os.kill(driver.pid, signal.SIGKILL)
    store = Store(uri)
    ended, before = len(space.finished(space.read_study(folder_of(store, "sweeps/tiny")))), units(store)
    assert ended >= 2
    said = tiny.sweep(tiny.sweep_file(tmp_path / "other", runtime__store=uri))
    assert f"sweep tiny: {4 - ended} of 4 trials to run" in said and "is its holder alive?" in said
    assert_finished(store)
    assert set(before) <= set(units(store))


def test_a_server_that_is_away_for_twenty_seconds_is_waited_for(bucket: str) -> None:
    server, place = served()
    store = Store(f"s3://edc/away{bucket.rpartition('=')[0]}={place}")
    store.put("a", b"1")
    server.stop()
    back = list[Any]()
    timer = threading.Timer(20, lambda: back.append(served(int(place.rpartition(":")[2]))[0]))
    timer.start()
    try:
        assert store.get("a") == b"1" and back
        store.put("b", b"2")
        assert store.get("b") == b"2"
    finally:
        timer.join()
        back[0].stop()
