"""Ray's actors and the Broker against the in-process mapper: the same bits, also when processes die."""

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from edc_ray import pipeline
from edc_ray.artifacts import Attempt, Store, attempts
from edc_ray.config import Experiment, Runtime
from edc_ray.distributed.broker import LeaseEnded, Report, Summary
from edc_ray.distributed.ledger import UnitFailed
from edc_ray.distributed.service import start_broker
from edc_ray.distributed.trial import BrokerHandle
from edc_ray.distributed.workers import RayMapper
from tests import tiny

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
SECONDS = 60  # bound of every wait
LONG = {"evaluate__epochs": 400, "evaluate__reports": 40}  # seconds of training, to interrupt


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, tiny.Bits]:
    """The tiny experiment with stored labels, and its bits."""
    store = Store(str(tmp_path_factory.mktemp("reference")))
    return store, tiny.in_process(store, tiny.experiment(), tiny.runtime(labels="stream"))


@pytest.fixture
def started(tmp_path: Path, reference: tuple[Store, tiny.Bits]) -> Store:
    """A store that has everything but students and labels."""
    for folder in Path(reference[0].root).iterdir():
        if not folder.name.startswith(("evaluate", "relabel")):
            (shutil.copytree if folder.is_dir() else shutil.copy)(folder, tmp_path / folder.name)
    return Store(str(tmp_path))


def lease() -> str:
    return f"test-{uuid.uuid4().hex[:6]}"


def evaluate(broker: BrokerHandle, exp: Experiment) -> Summary:
    with broker.lease(lease()) as name:
        *_, last = broker.evaluate(exp, name)
    assert isinstance(last, Summary)
    return last


@pytest.fixture
def broker_of() -> Iterator[Any]:
    """Starts Brokers; ends them after the test."""
    made: list[BrokerHandle] = []

    def start(store: Store, runtime: Runtime) -> BrokerHandle:
        made.append(start_broker(store.root, runtime))
        return made[-1]

    yield start
    for handle in made:
        ray.kill(handle.actor)


# --- the same bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_actors_give_the_bits_of_the_in_process_mapper(
    store: Store, reference: tuple[Store, tiny.Bits], workers: int
) -> None:
    exp, how = tiny.experiment(), tiny.runtime(workers=workers)
    mapper = RayMapper(store.root, how)
    pipeline.ensure(exp, store, how, mapper)
    tiny.assert_same(tiny.bits(store, exp, how), reference[1])
    told = []
    pipeline.ensure(exp, store, how, mapper, lambda task, unit, item: told.append(item))
    assert set(told) == {None}  # all hits


@pytest.mark.parametrize("labels", ["inline", "stream"])
def test_the_broker_gives_the_bits_of_the_in_process_mapper(
    store: Store, reference: tuple[Store, tiny.Bits], broker_of: Any, labels: str
) -> None:
    exp, how = tiny.experiment(), tiny.runtime(labels=labels)
    broker = broker_of(store, how)
    first = evaluate(broker, exp)
    tiny.assert_same(tiny.bits(store, exp, how), reference[1])
    assert first.curve == tiny.curve(reference[0], exp) and first.hits == 0
    again = evaluate(broker, exp)
    assert (again.built, again.curve, again.accuracies) == (0, first.curve, first.accuracies)


# --- workers that die ---------------------------------------------------------------------------------------


def checkpointed(store: Store, exp: Experiment) -> bool:
    (task,) = [task for task in pipeline.tasks(exp) if task.stage == "evaluate"]
    return store.artifact(task.stage, task.key).load_checkpoint("student") is not None


def test_a_killed_worker_costs_no_bit(started: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    exp, how = tiny.experiment(evaluate__seeds=[0], **LONG), tiny.runtime(checkpoint_seconds=0.1)
    killed, pids = 0, set[int]()

    def tell(task: pipeline.Task, unit: str, item: Any) -> None:
        nonlocal killed
        if task.stage == "evaluate" and isinstance(item, pipeline.Progress):
            pids.update(tiny.processes("ray::evaluate:student"))
            if not killed and checkpointed(started, exp):
                killed = tiny.kill("evaluate:student")

    pipeline.ensure(exp, started, how, RayMapper(started.root, how), tell)
    assert killed and len(pids) == 2
    reference = Store(str(tmp_path_factory.mktemp("whole")))
    tiny.assert_same(tiny.bits(started, exp, how), tiny.in_process(reference, exp, how))


def test_a_unit_that_kills_every_worker_fails(started: Store) -> None:
    exp, how = tiny.experiment(evaluate__seeds=[0], **LONG), tiny.runtime(unit_retries=1)
    pids = set[int]()

    def tell(task: pipeline.Task, unit: str, item: Any) -> None:
        if isinstance(item, pipeline.Progress) and not pids & set(tiny.processes("ray::evaluate:student")):
            pids.add(tiny.kill("evaluate:student"))

    with pytest.raises(UnitFailed, match="unit student: 2 workers were lost") as caught:
        pipeline.ensure(exp, started, how, RayMapper(started.root, how), tell)
    assert caught.value.stage == "evaluate" and len(pids) == 2
    assert [each.outcome for each in logged(started, exp)] == ["lost", "lost"]
    assert str(caught.value).endswith("/logs/student.log")


def test_a_units_own_error_arrives_as_such(started: Store) -> None:
    exp, how = tiny.experiment(evaluate__lr=1e30), tiny.runtime()
    with pytest.raises(FloatingPointError, match="student's loss is not finite before step 4"):
        pipeline.ensure(exp, started, how, RayMapper(started.root, how))
    for task in pipeline.tasks(exp, "recover"):
        assert pipeline.is_hit(task, started, how)


def test_a_units_own_error_ends_its_trial_alone(
    started: Store, reference: tuple[Store, tiny.Bits], broker_of: Any
) -> None:
    broker, good = broker_of(started, tiny.runtime()), tiny.experiment()
    why = r"unit student: FloatingPointError: .* not finite before step 4; log: .*/logs/student.log$"
    with pytest.raises(UnitFailed, match=why) as caught:
        evaluate(broker, tiny.experiment(evaluate__lr=1e30))
    assert caught.value.stage == "evaluate" and caught.value.unit == "student"
    evaluate(broker, good)
    tiny.assert_same(tiny.bits(started, good, tiny.runtime()), reference[1])


# --- the Broker's actor -------------------------------------------------------------------------------------


def logged(store: Store, exp: Experiment) -> list[Attempt]:
    """How the student's attempts have ended."""
    task = pipeline.tasks(exp)[-1]
    return attempts(store.artifact(task.stage, task.key), "student")


def idle(broker: BrokerHandle) -> bool:
    status = broker.status(timeout=SECONDS)
    return not status["busy"] and not status["todo"] and not status["building"] and not status["labelling"]


def events(broker: BrokerHandle) -> dict[str, int]:
    return dict(broker.status(timeout=SECONDS)["events"])


def test_a_lost_worker_is_replaced(started: Store, broker_of: Any) -> None:
    exp, how = tiny.experiment(evaluate__seeds=[0], **LONG), tiny.runtime(workers=1, checkpoint_seconds=0.1)
    broker = broker_of(started, how)
    killed = 0
    with broker.lease(lease()) as name:
        for item in broker.evaluate(exp, name):
            if not killed and isinstance(item, Report) and checkpointed(started, exp):
                killed = tiny.kill("evaluate:student")
    assert killed and isinstance(item, Summary)
    assert events(broker)["unit_retried"] == 1 and events(broker)["worker_spawned"] == 2
    assert broker.status(timeout=SECONDS)["workers"] == 1  # the lost one holds no slot
    assert item.curve == tiny.curve(started, exp)
    assert [each.outcome for each in logged(started, exp)] == ["lost", "done"]


def test_a_worker_that_hangs_is_replaced(started: Store, broker_of: Any) -> None:
    """It is stopped, which its process survives; the unit goes on elsewhere, where it was saved."""
    exp = tiny.experiment(evaluate__seeds=[0], **LONG)
    broker = broker_of(started, tiny.runtime(checkpoint_seconds=0.1, hang_seconds=3))
    pids = list[int]()
    with broker.lease(lease()) as name:
        for item in broker.evaluate(exp, name):  # noqa: B007  # the last one is looked at
            if not pids and checkpointed(started, exp):
                pids = tiny.processes("ray::evaluate:student")
                os.kill(pids[0], signal.SIGSTOP)
    assert isinstance(item, Summary) and item.curve == tiny.curve(started, exp)
    first, last = logged(started, exp)
    assert (first.outcome, last.outcome) == ("lost", "done") and "hang_seconds" in first.why
    tiny.until(lambda: pids[0] not in tiny.titles(), "the hanging process is gone")


def test_two_jobs_on_one_cluster_keep_to_their_own_workers_and_gpus(
    started: Store, reference: tuple[Store, tiny.Bits], broker_of: Any
) -> None:
    """Different experiments on one store, at once, each with a Broker of its own and one of the two GPUs."""
    how = tiny.runtime(workers=1, gpus_per_worker=1)
    jobs = {broker_of(started, how): tiny.experiment(evaluate__seeds=[seed]) for seed in (0, 1)}
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(evaluate, jobs, jobs.values()))
    for broker, exp, summary in zip(jobs, jobs.values(), found, strict=True):
        assert summary.curve == tiny.curve(reference[0], exp)
        assert events(broker)["worker_spawned"] == 1 and events(broker)["unit_done"] == 1
        tiny.assert_same(tiny.bits(started, exp, how), reference[1])


def test_a_killed_broker_is_asked_again(started: Store, broker_of: Any) -> None:
    exp, how = tiny.experiment(**LONG), tiny.runtime(checkpoint_seconds=0.1)
    broker, items = broker_of(started, how), []
    with broker.lease(lease()) as name:
        for item in broker.evaluate(exp, name):
            items.append(item)
            if len(items) == 3:
                ray.kill(broker.actor, no_restart=False)
    *reports, summary = items
    assert isinstance(summary, Summary) and summary.curve == tiny.curve(started, exp)
    assert tuple((report.progress, report.accuracy) for report in reports) == summary.curve  # each once
    assert events(broker)["unit_done"] == 2  # a fresh Broker, which made the students


def test_a_silent_trial_loses_its_workers(started: Store, broker_of: Any) -> None:
    exp = tiny.experiment(evaluate__epochs=100_000, evaluate__reports=10_000)
    broker = broker_of(started, tiny.runtime(lease_seconds=1))
    stream = broker.actor.evaluate.options(num_returns="streaming").remote(exp, lease(), (1.0,))
    with pytest.raises(LeaseEnded):
        for item in stream:
            ray.get(item, timeout=SECONDS)
    tiny.until(lambda: idle(broker), "the students have stopped")
    assert broker.status(timeout=SECONDS)["leases"] == 0


def test_a_stop_is_not_passed_before_the_caller_comes_back(started: Store, broker_of: Any) -> None:
    """Looked at while the caller holds the report: once let go, the next leg may begin before the release."""
    exp = tiny.experiment(evaluate__seeds=[0], evaluate__epochs=40, evaluate__reports=8)
    how = tiny.runtime(labels="stream")
    broker = broker_of(started, how)
    labels, student = (task for task in pipeline.tasks(exp) if task.stage in ("relabel", "evaluate"))
    half, whole = pipeline.units(labels, how, 0.5), pipeline.units(labels, how)
    with broker.lease(lease()) as name:
        for item in broker.evaluate(exp, name, (0.5, 1.0)):
            if isinstance(item, Report) and item.progress == 500:
                tiny.until(lambda: events(broker).get("unit_paused"), "the student has stopped")
                evaluate(broker, tiny.experiment(evaluate__seeds=[1]))  # time in which the Broker could go on
                assert events(broker)["labels_started"] == 2
                assert sorted(started.artifact("relabel", labels.key).units()) == half < whole
                assert not started.artifact("evaluate", student.key).units()
                break
    tiny.until(lambda: idle(broker), "nothing runs")


def test_damaged_files_are_made_again(
    store: Store, reference: tuple[Store, tiny.Bits], broker_of: Any
) -> None:
    """The student finds a page damaged, and the label job that makes it again an observer."""
    how, exp = tiny.runtime(labels="stream"), tiny.experiment(evaluate__seeds=[0])
    broker = broker_of(store, how)
    ray.get(broker.actor.build.remote(exp, "relabel"), timeout=2 * SECONDS)
    damage(store, exp, "squeeze", "vgg5_w16")
    damage(store, exp, "relabel", "page-00002")
    evaluate(broker, exp)
    tiny.assert_same(tiny.bits(store, exp, how), reference[1])
    assert events(broker)["artifact_damaged"] == 2


def damage(store: Store, exp: Experiment, stage: str, unit: str) -> None:
    """Flip the last byte of a finished unit."""
    (task,) = [task for task in pipeline.tasks(exp) if task.stage == stage]
    path = Path(store.root) / store.artifact(stage, task.key).units()[unit].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
