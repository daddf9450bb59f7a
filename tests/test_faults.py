"""A store that is full, read-only, away or shared: the real Broker and real workers, in this process."""

import asyncio
import errno
import os
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import pytest

import edc_ray.artifacts.store
from edc_ray import cli, pipeline, space, sweep
from edc_ray.artifacts import Store, StoreError, files, patience
from edc_ray.config import ConfigError, Runtime
from edc_ray.distributed.broker import Broker, Summary, UnitFailed
from edc_ray.journal import folder_of
from tests import tiny

T = TypeVar("T")
HOW = tiny.runtime(workers=2, unit_retries=1)
EXP = tiny.experiment()


class ThreadWorker:
    """A pipeline.Worker whose units run in threads, a step at a time: they share the generator of torch."""

    one_at_a_time = threading.Lock()
    node: str | None = None

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self._worker = pipeline.Worker(store, runtime)

    async def run(self, task: Any, unit: str, until: float) -> AsyncGenerator[Any, None]:
        items = self._worker.run(task, unit, until)

        def step() -> Any:
            with self.one_at_a_time:
                return next(items, None)

        while (item := await asyncio.to_thread(step)) is not None:
            yield item

    def kill(self) -> None:
        pass


async def no_labels(pages: Any, width: int) -> AsyncGenerator[tuple[str, Any], None]:
    raise AssertionError("labels are made inline")
    yield


async def evaluate(
    store: Store, events: Counter[str], on_event: Callable[[], None] = lambda: None
) -> Summary:
    """By a Broker of its own. events: counts of what it tells, and stage:unit of the finished ones."""

    def hear(name: str, **tags: Any) -> None:
        events[name] += 1
        if name == "unit_done":
            events[f"{tags['key']}/{tags['unit']}"] += 1
            on_event()

    broker = Broker(
        graph=pipeline, store=store, runtime=HOW, spawn=lambda: ThreadWorker(store, HOW),
        label=no_labels, on_event=hear,
    )  # fmt: skip
    try:
        *_, last = [item async for item in broker.evaluate(EXP, "t")]
        assert isinstance(last, Summary)
        return last
    finally:
        await broker.close()


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, 120))


def snapshot(store: Store) -> dict[str, int]:
    """Every file of an artifact but its logs, and when it was written."""
    paths = [path for path in Path(store.root).glob("*-*/*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, tiny.Bits]:
    store = Store(str(tmp_path_factory.mktemp("reference")))
    return store, tiny.in_process(store, EXP, HOW)


# --- full, read-only ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "share"), [(errno.ENOSPC, 0.9), pytest.param(errno.EROFS, 0.2, marks=pytest.mark.slow)]
)
def test_a_store_that_takes_no_more_ends_it_with_advice_and_loses_nothing(
    tmp_path: Path,
    reference: tuple[Store, tiny.Bits],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    code: int,
) -> None:
    """It fails after a share of all bytes, and is mended: the same goes on with what was there."""
    room = share * sum(path.stat().st_size for path in Path(reference[0].root).rglob("*") if path.is_file())
    refused = Counter[str]()

    def write(path: str, data: bytes, first: bool) -> None:
        nonlocal room
        if len(data) > room:
            refused[path.split(".")[0]] += 1
            raise OSError(code, os.strerror(code), path)
        room -= len(data)
        files.write_local(path, data, first)

    monkeypatch.setattr("edc_ray.artifacts.store.write_local", write)
    store, events = Store(str(tmp_path)), Counter[str]()
    with pytest.raises((UnitFailed, StoreError)) as caught:
        run(evaluate(store, events))
    told, advice = str(caught.value), "make room" if code == errno.ENOSPC else "make it writable"
    assert os.strerror(code) in told and str(tmp_path) in told and advice in told
    assert "the same command goes on" in told and getattr(caught.value, "hopeless", False)
    assert getattr(caught.value, "lost", True) and not events["unit_retried"]
    units = Counter({path: n for path, n in refused.items() if "/logs/" not in path})
    assert units and max(units.values()) == 1, "what was refused is not tried again"

    room, before = float("inf"), snapshot(store)
    run(evaluate(store, again := Counter[str]()))
    tiny.assert_same(tiny.bits(store, EXP, HOW), reference[1])
    assert before.items() <= snapshot(store).items(), "what was there is neither lost nor made again"
    done = Counter(name for name in (events + again).elements() if "/" in name)
    assert max(done.values()) == 1 and not again["unit_failed"]


# --- away for a while ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_a_store_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, reference: tuple[Store, tiny.Bits], seconds: float
) -> None:
    """As a share that is unmounted and mounted again: a folder elsewhere in the meantime."""
    store, events, finished = Store(str(tmp_path / "store")), Counter[str](), 0
    gone, back = threading.Event(), threading.Event()

    def away() -> None:
        os.rename(store.root, tmp_path / "away")
        gone.set()
        back.wait(seconds)
        os.rename(tmp_path / "away", store.root)
        back.set()

    thread = threading.Thread(target=away)

    def unit_done() -> None:
        nonlocal finished
        finished += 1
        if finished == 5:
            thread.start()

    summary = run(evaluate(store, events, unit_done))
    thread.join()
    assert gone.is_set() and back.is_set()
    assert summary.curve == tiny.curve(reference[0], EXP)
    tiny.assert_same(tiny.bits(store, EXP, HOW), reference[1])
    assert not events["unit_failed"] and not events["unit_retried"]
    assert max(n for name, n in events.items() if "/" in name) == 1


def test_patience_has_an_end(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), patience=0.3)
    store.put("a", b"1")
    os.rename(store.root, tmp_path / "away")
    for use in (lambda: store.get("a"), lambda: store.put("b", b""), lambda: store.listed("")):
        with pytest.raises(StoreError, match="the store is not there any more") as caught:
            use()
        assert str(tmp_path) in str(caught.value) and not caught.value.hopeless
    assert not os.path.exists(store.root), "nothing is written into a folder of the same name"


class Clock:
    """Sleeping makes it later."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def failing(times: int, error: OSError) -> Callable[[], str]:
    left = [error] * times

    def act() -> str:
        if left:
            raise left.pop()
        return "done"

    return act


def test_pauses_grow_and_are_bounded() -> None:
    clock, error = Clock(), OSError(errno.EIO, "Input/output error")
    assert patience.patiently(failing(8, error), 60.0, clock, clock.sleep) == "done"
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    with pytest.raises(OSError) as caught:
        patience.patiently(failing(999, error), 60.0, clock := Clock(), clock.sleep)
    assert caught.value is error and 55 <= clock.now <= 60
    with pytest.raises(OSError):
        patience.patiently(failing(1, error), 0.0, clock := Clock(), clock.sleep)
    assert not clock.slept


S3 = "When completing multiple part upload: AWS Error {} during PutObject operation: said the server"


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(S3.format("NETWORK_CONNECTION")), True),
        (OSError(S3.format("SLOW_DOWN")), True),
        (OSError(S3.format("ACCESS_DENIED")), False),
        (OSError(S3.format("NO_SUCH_BUCKET")), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.EROFS, "Read-only file system"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
    ],
    ids=str,
)
def test_only_what_may_pass_is_waited_for(error: OSError, passes: bool) -> None:
    assert patience.passing(error) == passes
    clock = Clock()
    with suppress(OSError):
        patience.patiently(failing(1, error), 60.0, clock, clock.sleep)
    assert bool(clock.slept) == passes


def test_a_server_that_nobody_reaches_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow's own words; a bucket that was never seen is not waited for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, "true")
    store = Store("s3://bucket?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:1")
    with pytest.raises(StoreError) as caught:
        store.get("a")
    assert isinstance(caught.value.__cause__, OSError) and patience.passing(caught.value.__cause__)


@pytest.mark.parametrize("name", ["read_file", "write_local", "fs.FileSelector"])
def test_an_input_output_error_passes_and_a_missing_file_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = Store(str(tmp_path))
    art = store.artifact("recover", "0" * 12)
    art.write("g0", {}, {"n": 0})
    real, calls, bad = attrgetter(name)(edc_ray.artifacts.store), 0, {2, 3}

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args, **kwargs)

    monkeypatch.setattr(f"edc_ray.artifacts.store.{name}", sometimes)
    assert store.get("nothing") is None and store.listed("nothing") == [] and calls <= 1
    art.write("g1", {}, {"n": 1})
    art.write("g2", {}, {"n": 2})
    assert art.read("g0")[1] == {"n": 0} and sorted(art.units()) == ["g0", "g1", "g2"]
    assert store.get("nothing") is None and calls > max(bad)


# --- several at once ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_clusters_may_build_the_same_keys_on_one_store(
    tmp_path: Path, reference: tuple[Store, tiny.Bits]
) -> None:
    """Each with a Broker and workers of its own, which know nothing of each other."""
    counts = [Counter[str](), Counter[str]()]

    async def both() -> list[Summary]:
        return await asyncio.gather(*(evaluate(Store(str(tmp_path)), count) for count in counts))

    one, other = run(both())
    store = Store(str(tmp_path))
    assert one.curve == other.curve == tiny.curve(reference[0], EXP)
    tiny.assert_same(tiny.bits(store, EXP, HOW), reference[1])
    assert not any(count["unit_failed"] or count["artifact_damaged"] for count in counts)
    for task in pipeline.tasks(EXP):
        assert not store.artifact(task.stage, task.key).verify()


def test_a_second_driver_of_a_sweep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny.sweep_file(tmp_path)
    ready = sweep.prepare(file, [])
    with ready.store.alone("sweeps/tiny/driver.lock"):
        with pytest.raises(ConfigError, match="name = 'tiny': another process is running this sweep"):
            sweep.run(ready)
        assert cli.main(["sweep", file]) == 2
    assert "another process is running this sweep" in capsys.readouterr().err
    assert not os.path.exists(ready.store.path("sweeps/tiny/sweep.json")), "nothing was touched"


# --- a whole sweep ------------------------------------------------------------------------------------------


@contextmanager
def disk(folder: Path) -> Iterator[Callable[[int], object]]:
    """A disk of 1 GiB in memory; what is given makes it so many bytes large."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2**30}", "none", folder], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def may_mount() -> bool:
    return subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="nothing may be mounted here")
def test_a_sweep_whose_disk_is_full_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """All of it: artifacts, the study, Tune's files."""
    file, store = tiny.sweep_file(tmp_path, budget__trials=16), Store(str(tmp_path / "store"))
    with disk(tmp_path / "store") as resize:
        with tiny.sweeping(file) as driver:
            assert driver.stdout is not None
            assert any(line.startswith("trial 1/") for line in driver.stdout)
            resize(4096 * sum(-(-path.stat().st_size // 4096) for path in (tmp_path / "store").rglob("*")))
            said, _ = driver.communicate(timeout=240)
        (failed,) = [line for line in said.splitlines() if line.startswith("failed: ")]
        assert driver.returncode == 1 and "No space left on device" in failed, said
        assert str(tmp_path) in failed and "make room" in failed, said
        resize(2**30)
        before, tried = snapshot(store), space.read_study(folder_of(store, "sweeps/tiny")).trials
        assert len(tried) < 16, "one by one, the rest would have been of no use"
        tiny.sweep(file)
        assert len(space.finished(space.read_study(folder_of(store, "sweeps/tiny")))) == 16
        assert before.items() <= snapshot(store).items(), "what was there is neither lost nor made again"
