"""Metrics: what is counted, how often, and what the exporter of a real Ray shows of it."""

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from edc_ray import pipeline
from edc_ray.artifacts import Receipt, Store
from edc_ray.config import Runtime
from edc_ray.distributed.ledger import UnitFailed
from edc_ray.distributed.service import start_broker
from edc_ray.distributed.trial import BrokerHandle
from edc_ray.monitor import COUNTERS, GAUGES, exported, status_line
from edc_ray.pipeline import Progress, Task, Worker
from tests import tiny

ITERATIONS = 300  # of recover: long enough that its units tell of themselves


def work_of(store: Store, runtime: Runtime, task: Task) -> dict[str, int]:
    """What the units of a task count, told in any number of pieces."""
    total: dict[str, int] = {}
    for unit in pipeline.units(task, runtime):
        for item in Worker(store, runtime).run(task, unit):
            for name, amount in item.work.items():
                total[name] = total.get(name, 0) + amount
    return total


@pytest.mark.slow
def test_units_count_what_they_make(store: Store) -> None:
    """Also in several goes: what a checkpoint has is not counted again."""
    exp, how = tiny.experiment(evaluate__seeds=[0]), tiny.runtime(checkpoint_seconds=0)
    tiny.in_process(store, exp, how)
    by_stage = {task.stage: task for task in pipeline.tasks(exp)}
    assert work_of(store, how, by_stage["recover"]) == {"images_synthesised": 10, "image_iterations": 3 * 10}
    assert work_of(store, tiny.runtime(labels="stream"), by_stage["relabel"]) == {"label_views": 12 * 5}
    assert work_of(store, how, by_stage["evaluate"]) == {"label_views": 12 * 5}  # inline
    assert work_of(store, how, by_stage["squeeze"]) == {}

    first, *_ = Worker(store, how).run(by_stage["recover"], "groups-00000-00000")
    assert isinstance(first, Receipt) and first.work == {"images_synthesised": 4, "image_iterations": 3 * 4}


def test_a_resumed_unit_counts_its_own_iterations(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edc_ray.pipeline.worker.TELL_SECONDS", 0.0)
    exp, how = tiny.experiment(), tiny.runtime(checkpoint_seconds=0)
    pipeline.ensure(exp, store, how, pipeline.in_process(store, how), upto="init")
    pipeline.ensure(exp, store, how, pipeline.in_process(store, how), upto="statistics")
    task = pipeline.tasks(exp, "recover")[-1]
    items = Worker(store, how).run(task, "groups-00000-00000")
    first = next(items)
    items.close()  # type: ignore[attr-defined]
    assert isinstance(first, Progress) and first.work == {"image_iterations": 4}
    assert first.loss is not None and first.loss > 0
    rest = [item.work for item in Worker(store, how).run(task, "groups-00000-00000")]
    assert rest == [{"image_iterations": 4}, {"image_iterations": 4}, {"images_synthesised": 4}]


def test_status_line() -> None:
    earlier = {"done": {"recover": 2}}
    now = {
        "todo": {"recover": 6, "evaluate": 1}, "done": {"recover": 4}, "workers": 1, "slots": 2,
        "events": {"stage_hit": 3},
    }  # fmt: skip
    assert status_line(now, earlier, 10.0) == (
        "recover 4/10 (0.2/s, 30 s left); evaluate 0/1; 3 hits, 0 built, 1 of 2 workers"
    )


# --- Ray ----------------------------------------------------------------------------------------------------

Series = dict[tuple[str, str, str], float]


def series() -> Series:
    """(metric, stage, process) -> value, of our metrics on the page that Prometheus would read."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=60) as page:
        lines = re.findall(r"^(ray_edc_\w+)\{(.*)\} (\S+)$", page.read().decode(), re.M)
    found = [(name, dict(re.findall(r'(\w+)="(.*?)"', tags)), float(value)) for name, tags, value in lines]
    assert all({"stage", "SessionName"} < tags.keys() for _, tags, _ in found)  # what the board asks for
    assert {tags["dataset"] for _, tags, _ in found} <= {"", "digits"}
    return {(name, tags["stage"], tags["WorkerId"]): value for name, tags, value in found}


@contextmanager
def collecting() -> Iterator[Series]:
    """All series that come up while the block runs: a gauge goes when what it tells of has ended."""
    before, seen, ended = series(), Series(), threading.Event()

    def collect() -> None:
        while not ended.wait(1.0):
            seen.update({name: value for name, value in series().items() if name not in before})

    with ThreadPoolExecutor() as threads:
        collecting = threads.submit(collect)
        try:
            yield seen
        finally:
            ended.set()
            collecting.result(timeout=60)


def provoke(broker: BrokerHandle) -> None:
    """A lost worker, an experiment that fails, and one that finds everything there."""
    changes = {"recover__iterations": ITERATIONS, "evaluate__seeds": [0]}
    good, bad = tiny.experiment(**changes), tiny.experiment(**changes, evaluate__lr=1e30)
    with broker.lease("test") as lease, ThreadPoolExecutor() as threads:
        first = threads.submit(lambda: list(broker.evaluate(good, lease)))
        tiny.until(lambda: tiny.processes("ray::recover:groups-00000"), "the first group is at work")
        tiny.kill("recover:groups-00000-00000")
        first.result(timeout=120)
        with pytest.raises(UnitFailed):
            list(broker.evaluate(bad, lease))
        list(broker.evaluate(good, lease))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_the_exporter_shows_every_metric(store: Store) -> None:
    with collecting() as seen:
        broker = start_broker(store.root, tiny.runtime(workers=1), "tiny")
        provoke(broker)
        last = "ray_edc_stage_hits_total", "evaluate"
        tiny.until(lambda: last in [name[:2] for name in list(seen)], "the last event is exported")
        status = broker.status(timeout=60)
        ray.kill(broker.actor)
    found = {name[:2]: value for name, value in seen.items()}
    assert {name for name, _ in found} == {exported(name) for name in (*COUNTERS, *GAUGES)}
    assert found["ray_edc_images_synthesised_total", "recover"] == 10
    assert found["ray_edc_image_iterations_total", "recover"] >= 10 * ITERATIONS
    assert found["ray_edc_label_views_total", "evaluate"] == 60
    assert found["ray_edc_unit_retries_total", "recover"] == status["events"]["unit_retried"] == 1
    assert found["ray_edc_unit_failures_total", "evaluate"] == 1
    assert found["ray_edc_ledger_slots", ""] == 1
    assert found["ray_edc_best_val_accuracy", "evaluate"] == pytest.approx(status["best"])
    assert "not finite before step" in status["errors"][0]["why"] and status["name"] == "tiny"


# --- the board ----------------------------------------------------------------------------------------------

BOARD = json.loads((Path(__file__).parents[1] / "cluster/grafana/edc.json").read_text())


def queries() -> list[tuple[str, str, str]]:
    """(panel, query, legend) of every line of the board; its variables too."""
    variables = [("variable", item["definition"], "") for item in BOARD["templating"]["list"][1:]]
    panels = [(panel["title"], panel["targets"]) for panel in BOARD["panels"]]
    return variables + [(title, each["expr"], each["legendFormat"]) for title, ts in panels for each in ts]


def test_the_board_asks_for_what_is_exported_and_nothing_else() -> None:
    asked = {name for _, query, _ in queries() for name in re.findall(r"\bray_\w+", query)}
    assert asked == {exported(name) for name in (*COUNTERS, *GAUGES)}


def test_the_board_knows_only_our_tags() -> None:
    for title, query, legend in queries():
        tags = set(re.findall(r"(\w+)\s*=~", query))
        for names in re.findall(r"by \((.*?)\)", query):
            tags |= set(names.split(", "))
        assert tags <= {"stage", "dataset", "SessionName"}, title
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= {"stage", "dataset"}, title
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}"), title


def test_counters_are_looked_at_as_counters() -> None:
    """A rate of a gauge, or a counter's name without _total, would show nothing."""
    for title, query, _ in queries():
        assert all(name.endswith("_total") for name in re.findall(r"rate\((\w+)", query)), title


def test_panels_do_not_overlap() -> None:
    taken = set[tuple[int, int]]()
    for panel in BOARD["panels"]:
        x, y, w, h = (panel["gridPos"][side] for side in "xywh")
        cells = {(i, j) for i in range(x, x + w) for j in range(y, y + h)}
        assert x + w <= 24 and not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
