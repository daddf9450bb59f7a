"""The smallest real experiment and sweep, and a look at the processes that they start."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from edc_ray import config, pipeline
from edc_ray.artifacts import Artifact, Store
from edc_ray.config import Experiment, Runtime

CHANGES: dict[str, Any] = {
    "dataset.limit": 200, "dataset.size_px": 8, "split.val": 0.3,
    "squeeze.epochs": 1, "squeeze.batch_size": 50, "squeeze.observers": ["convnet_w16_d2", "vgg5_w16"],
    "statistics.shard_images": 70,
    "recover.iterations": 3, "recover.classes_per_group": 4,
    "relabel.batch_size": 5, "relabel.page_images": 20,
    "evaluate.student": "convnet_w16_d2", "evaluate.epochs": 6, "evaluate.reports": 3,
    "evaluate.seeds": [0, 1], "evaluate.ema_horizon": 0.02,
}  # fmt: skip
Bits = dict[tuple[str, str, str], Any]


def experiment(**changes: Any) -> Experiment:
    """Two shards of statistics, three groups, two students of 12 steps, three pages of labels each."""
    return config.override(
        Experiment(), CHANGES | {path.replace("__", "."): v for path, v in changes.items()}
    )


def runtime(**changes: Any) -> Runtime:
    """For Ray tests: workers hold less than a CPU, so that two of them and Ray Data fit."""
    return config.override(
        Runtime(), {"device": "cpu", "cpus_per_worker": 0.5, "idle_seconds": 60, **changes}
    )


def bits(store: Store, exp: Experiment, how: Runtime) -> Bits:
    """(stage, key, unit) -> what it holds, without the seconds that it took."""
    found: Bits = {}
    for task in pipeline.tasks(exp):
        if pipeline.skipped(task, how):
            continue
        artifact = store.artifact(task.stage, task.key)
        manifest = artifact.manifest()
        assert manifest is not None, f"{task} is not committed"
        assert set(pipeline.units(task, how)) <= set(manifest["units"])
        for unit in manifest["units"]:
            found[task.stage, task.key, unit] = _content(artifact, unit)
    return found


def _content(artifact: Artifact, unit: str) -> Any:
    if artifact.stage == "relabel":
        return artifact.read_table(unit)[0].to_pydict()
    tensors, meta = artifact.read(unit)
    return tensors, {name: value for name, value in meta.items() if name not in pipeline.COSTS}


def assert_same(got: Bits, want: Bits) -> None:
    """Equal to the bit, all of `got`."""
    assert got and set(got) <= set(want)
    for name, value in got.items():
        if name[0] == "relabel":
            assert value == want[name], name
        else:
            torch.testing.assert_close(value[0], want[name][0], rtol=0, atol=0, equal_nan=True)
            assert value[1] == want[name][1], name


def in_process(store: Store, exp: Experiment, how: Runtime) -> Bits:
    """The reference."""
    pipeline.ensure(exp, store, how, pipeline.in_process(store, how))
    return bits(store, exp, how)


def curve(store: Store, exp: Experiment) -> tuple[tuple[int, float], ...]:
    """Means over the seeds, as a Summary has them."""
    students = [task for task in pipeline.tasks(exp) if task.stage == "evaluate"]
    seeds = [dict(pipeline.reports(task, store)) for task in students]
    return tuple((at, sum(seed[at] for seed in seeds) / len(seeds)) for at in seeds[0])


# --- sweeps -------------------------------------------------------------------------------------------------


def sweep_file(folder: Path, **changes: Any) -> str:
    """A file of four cheap trials, its store beside it. changes: fields of Sweep, with __ for a dot."""
    data: dict[str, Any] = {
        "name": "tiny",
        "experiment": CHANGES | {"evaluate.seeds": [0]},
        "search": {"evaluate.lr": {"low": 1e-3, "high": 1e-2, "log": True}},
        "sampler": "random",
        "budget": {"trials": 4},
        "confirm": {"seeds": 2},
        "runtime": {"store": str(folder / "store"), "workers": 1, "cpus_per_worker": 0.5, "device": "cpu"},
    }
    for path, value in changes.items():
        section, _, name = path.partition("__")
        if name:
            data[section] = data[section] | {name: value}
        else:
            data[section] = value
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(file)


# --- processes ----------------------------------------------------------------------------------------------


def titles(root: int | None = None) -> dict[int, str]:
    """pid -> command line of the descendants of a process (default: this one)."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has ended meanwhile
                continue
            if stat[0] != "Z":
                parents[int(entry.name)] = int(stat[1])
    wanted = {root or os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    return {pid: lines[pid] for pid in sorted(wanted - {root or os.getpid()}) if pid in parents}


def processes(title: str = "", root: int | None = None) -> list[int]:
    """Descendants of a process (default: this one) whose command line begins with `title`."""
    return [pid for pid, line in titles(root).items() if line.startswith(title)]


def kill(title: str) -> int:
    """kill -9 the one Ray process below this one that runs the named task; returns its pid."""
    (pid,) = processes(f"ray::{title}")
    os.kill(pid, signal.SIGKILL)
    return pid


def until(happened: Callable[[], Any], why: str, seconds: float = 60.0, pause: float = 0.02) -> Any:
    """Ask again until it is true; a bound, not a verdict. pause: seconds between two questions."""
    end = time.monotonic() + seconds
    while not (answer := happened()):
        assert time.monotonic() < end, f"waited in vain until {why}"
        time.sleep(pause)
    return answer


@contextlib.contextmanager
def sweeping(file: str, *changes: str) -> Iterator["subprocess.Popen[str]"]:
    """`python -m edc_ray.sweep` in a process group and with a Ray of its own; at the end all of it is gone.

    changes: path=value, as after --set.
    """
    with tempfile.TemporaryDirectory(
        prefix="edc-", dir="/tmp", ignore_cleanup_errors=True
    ) as temporary:  # short
        command = [sys.executable, "-m", "edc_ray.sweep", file, *(f"--set={change}" for change in changes)]
        environment = os.environ | {"RAY_TMPDIR": temporary, "PYTHONUNBUFFERED": "1"}
        driver = subprocess.Popen(
            command,
            env=environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            yield driver
        finally:
            if driver.poll() is None:
                driver.kill()
            driver.communicate(timeout=60)
            until(lambda: not naming(temporary), "its Ray has ended with it", seconds=120)


def sweep(file: str, *changes: str) -> str:
    """What a sweep that ends well prints."""
    with sweeping(file, *changes) as driver:
        said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    return said


def naming(word: str) -> list[int]:
    """Processes whose command line has the word."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and word in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
    return found
