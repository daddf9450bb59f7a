"""Sweeps as jobs of a real head: submitted, submitted again, stopped, failed; with and without a token."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from edc_ray import space
from tests import layouts, tiny
from tests.heads import Head, head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
CHEAP = {  # of a sweep on 2 cores, in seconds
    "dataset.size_px": "8", "squeeze.observers": "[convnet_w16_d2, vgg5_w16]", "squeeze.epochs": "1",
    "evaluate.student": "convnet_w16_d2", "evaluate.epochs": "20", "evaluate.reports": "4",
    "confirm.seeds": "2", "runtime.cpus_per_worker": "0.5",
}  # fmt: skip
QUICK = CHEAP | {
    "search": "{evaluate.lr: {low: 1e-3, high: 1e-2}}", "dataset.limit": "200", "budget.trials": "2",
    "recover.iterations": "3",
}  # fmt: skip


def line(file: str, store: Path, changes: dict[str, str]) -> list[str]:
    """What comes behind `ray job submit --`."""
    given = changes | {"runtime.store": str(store)}
    return [
        "python",
        "-m",
        "edc_ray.sweep",
        file,
        *(f"--set={name}={value}" for name, value in given.items()),
    ]


def submit(cluster: Head, words: list[str], *options: str, code: int = 0, **env: str) -> str:
    """What `ray job submit` prints: the job's log to its end, unless an option is --no-wait."""
    return cluster.ray("job", "submit", *options, "--", *words, cwd=ROOT, code=code, **env)


def job_of(said: str) -> str:
    """The job's name, of what `submit` printed."""
    (name,) = set(re.findall(r"Job '(\w+)' submitted", said))
    return str(name)


def files(store: Path) -> dict[str, tuple[int, int]]:
    """Every finished unit and manifest, with what tells that it was replaced."""
    found = [path for path in store.glob("*-*/*") if path.suffix in (".safetensors", ".parquet", ".json")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def assert_finished(store: Path, name: str, trials: int) -> None:
    """All trials came to their end, none twice, and the final table is there."""
    study = space.read_study(store / "sweeps" / name)
    assert len(space.finished(study)) == trials
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert json.loads((store / "sweeps" / name / "final.json").read_text())["accuracies"]["condensed"]


# --- from a checkout ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    """Knows nothing of edc_ray but what a job brings along."""
    with head("--num-cpus=4") as found:
        yield found


def test_the_same_line_again_is_a_resume(cluster: Head, tmp_path: Path) -> None:
    words = line("sweeps/quickstart.yaml", tmp_path, QUICK)
    said = submit(cluster, words, "--working-dir", ".")
    assert "sweep quickstart: 2 of 2 trials to run" in said and "random_real" in said
    assert_finished(tmp_path, "quickstart", 2)
    before = files(tmp_path)
    again = submit(cluster, words, "--working-dir", ".")
    assert "sweep quickstart: 0 of 2 trials to run" in again and "stage hits: 100 %" in again
    assert files(tmp_path) == before
    assert cluster.job(job_of(again))["status"] == "SUCCEEDED"


@pytest.mark.parametrize("moment", ["trial 1/", "confirming trial"], ids=["searching", "confirming"])
def test_a_stopped_job_leaves_a_sweep_that_goes_on(cluster: Head, tmp_path: Path, moment: str) -> None:
    words = line("sweeps/quickstart.yaml", tmp_path, QUICK | {"runtime.labels": "inline"})
    job = job_of(submit(cluster, words, "--working-dir", ".", "--no-wait"))
    tiny.until(lambda: moment in cluster.log(job), f"its log says {moment!r}", seconds=120)
    cluster.ray("job", "stop", job)
    assert cluster.job(job)["status"] == "STOPPED"
    log = cluster.log(job)
    assert "interrupted; the same command goes on" in log and "SIGTERM" not in log
    tiny.until(lambda: not workers(cluster), "its workers have ended")
    before = files(tmp_path)
    submit(cluster, words, "--working-dir", ".")
    assert before.items() <= files(tmp_path).items()
    assert_finished(tmp_path, "quickstart", 2)


def test_two_sweeps_at_once_have_each_their_own_workers(cluster: Head, tmp_path: Path) -> None:
    """One worker each, on a cluster with room for eight, and one store: what both need is in it once."""
    own = {"a": "{evaluate.lr: {low: 1e-3, high: 1e-2}}", "b": "{evaluate.zeta: {low: 1, high: 2}}"}
    jobs, most = dict[str, str](), 0
    for name, search in own.items():
        changes = QUICK | {"name": name, "search": search, "runtime.workers": "1", "runtime.labels": "inline"}
        words = line("sweeps/quickstart.yaml", tmp_path, changes)
        jobs[name] = job_of(submit(cluster, words, "--working-dir", ".", "--no-wait"))

    def ended() -> bool:
        nonlocal most
        titles = workers(cluster)
        brokers = sum(title.startswith("ray::Broker") for title in titles)
        assert len(titles) <= 2 * brokers, titles
        most = max(most, brokers)
        return all(cluster.job(job)["status"] in ("SUCCEEDED", "FAILED", "STOPPED") for job in jobs.values())

    tiny.until(ended, "both have ended", seconds=300)
    assert most == 2, "they did not run at once"
    for name, job in jobs.items():
        assert cluster.job(job)["status"] == "SUCCEEDED", cluster.log(job)
        assert_finished(tmp_path, name, 2)
    assert len(list(tmp_path.glob("squeeze-*"))) == 3, "of the search, of the winners, of the whole data"


def workers(cluster: Head) -> list[str]:
    """The Ray processes that are busy for a job."""
    titles = tiny.titles(cluster.process.pid).values()
    return [title for title in titles if re.match(r"ray::(worker|recover|evaluate|squeeze|Broker)", title)]


def test_a_sweep_that_fails_fails_its_job(cluster: Head, tmp_path: Path) -> None:
    words = line("sweeps/quickstart.yaml", tmp_path, QUICK | {"search": "{evaluate.lr: {choices: [1e30]}}"})
    said = submit(cluster, words, "--working-dir", ".", code=1)
    assert "no trial of sweep quickstart came to its end" in said
    found = cluster.job(job_of(said))
    assert found["status"] == "FAILED" and found["driver_exit_code"] == 1
    refused = submit(cluster, line("sweeps/gone.yaml", tmp_path, {}), "--working-dir", ".", code=1)
    assert "error: file = 'sweeps/gone.yaml': no such file" in refused
    assert cluster.job(job_of(refused))["driver_exit_code"] == 2


# --- the user's line, on a head that has the package --------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The wheel, unpacked into a folder of its own."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("edc_ray", "sweeps"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    make = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*make, str(tmp_path), str(source)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("edc_ray-*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    return site


def write_parquet(folder: Path, images: int) -> None:
    """So many images of the size and classes of CIFAR-10, and half as many for test."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for part, count in (("train", images), ("test", images // 2)):
        labels = [i % 10 for i in range(count)]
        encoded = [layouts.jpeg(label, i // 10, 32) for i, label in enumerate(labels)]
        pq.write_table(pa.table({"image": encoded, "label": labels}), folder / f"{part}.parquet")


def test_the_users_line_on_a_head_that_has_the_package(tmp_path: Path, installed: Path) -> None:
    """`ray job submit -- python -m edc_ray.sweep sweeps/design_space.yaml`, made smaller; with a token."""
    write_parquet(tmp_path / "data", 600)
    small = CHEAP | {
        "budget.trials": "2", "dataset.limit": "500", "init.ipc": "1", "runtime.gpus_per_worker": "0",
        "runtime.workers": "2", "dataset.name": "parquet", "dataset.path": str(tmp_path / "data"),
    }  # fmt: skip
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-alone-0123456789"}
    with head("--num-cpus=4", env={"PYTHONPATH": str(installed)} | token) as cluster:
        where = submit(cluster, ["python", "-c", "import edc_ray; print(edc_ray.__path__)"])
        assert f"['{installed}/edc_ray']" in where
        refused = submit(cluster, ["true"], code=1, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
        assert "oken authentication is enabled" in refused
        said = submit(cluster, line("sweeps/design_space.yaml", tmp_path / "store", small))
    assert "sweep design-space-cifar10-ipc10: 2 of 2 trials to run" in said and "random_real" in said
    assert_finished(tmp_path / "store", "design-space-cifar10-ipc10", 2)
