"""What a person and a dashboard see of a running job: Ray metrics `edc_*`, and one status line.

Prometheus gets them as `ray_edc_*`, counters with `_total` behind. Their tags are stage and dataset, never a
trial's id. `cluster/grafana/edc.json` is a board of them.
"""

import time
from collections import Counter, deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ray.util import metrics

from edc_ray.artifacts import Receipt
from edc_ray.config import Experiment
from edc_ray.pipeline import Progress, Task

COUNTERS = {  # of the whole job, from when its Broker was last started
    "units_done": "finished units",
    "unit_retries": "units queued again, as their worker was lost",
    "unit_failures": "units that could not be finished",
    "stage_hits": "artifacts that were there already",
    "stage_misses": "artifacts that were made",
    "images_synthesised": "condensed images that were made",
    "image_iterations": "iterations of the synthesis, each times the images that it moved",
    "label_views": "views that the teachers have labelled",
}
GAUGES = {
    "recover_loss": "what the synthesis minimises (matching and all), mean of the groups that told it last",
    "best_val_accuracy": "best of the finished trials, a fraction",
    "ledger_slots": "workers that there may be at once; each has runtime.gpus_per_worker GPUs",
    "ledger_workers": "workers that there are, pending ones included",
    "ledger_busy": "workers that have a unit, by its stage",
    "ledger_queued": "units that somebody waits for, running ones included, by stage",
}
_EVENTS = {
    "unit_done": "units_done",
    "unit_retried": "unit_retries",
    "unit_failed": "unit_failures",
    "stage_hit": "stage_hits",
    "stage_built": "stage_misses",
}
ERRORS = 5  # that are remembered


def exported(name: str) -> str:
    """What Prometheus calls it."""
    return f"ray_edc_{name}_total" if name in COUNTERS else f"ray_edc_{name}"


class Monitor:
    """Hears of the Broker's events, of its workers' progress and of accuracies, and keeps the metrics."""

    def __init__(self, best: float | None = None) -> None:
        """best: val accuracy of the trials before this job."""
        self._began, self._best, self._judged = time.monotonic(), best, ""
        self._done: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._errors: deque[dict[str, str]] = deque(maxlen=ERRORS)
        self._stages: set[str] = set()  # that the ledger has had
        tags = "stage", "dataset"
        self._counters = {name: metrics.Counter(f"edc_{name}", text, tags) for name, text in COUNTERS.items()}
        self._gauges = {name: metrics.Gauge(f"edc_{name}", text, tags) for name, text in GAUGES.items()}

    def __call__(self, name: str, **tags: Any) -> None:
        """An event of the Broker."""
        self._events[name] += 1
        if name == "unit_done":
            self._done[tags["stage"]] += 1
        if name == "unit_failed":
            self._errors.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), "why": tags["why"]})
        if name in _EVENTS:
            self._counters[_EVENTS[name]].inc(1, _tags(tags["task"]))

    def heard(self, task: Task, item: Progress | Receipt) -> None:
        """What a unit tells."""
        for name, amount in item.work.items():
            self._counters[name].inc(amount, _tags(task))
        if isinstance(item, Progress) and item.loss is not None:
            self._gauges["recover_loss"].set(item.loss, _tags(task))

    def judged(self, experiment: Experiment, accuracy: float) -> None:
        """The end of an evaluation. One on test is no val accuracy."""
        if experiment.split.val == 0:
            return
        self._best, self._judged = max(accuracy, self._best or 0.0), experiment.dataset.name

    def tick(self, status: Mapping[str, Any]) -> None:
        """What holds now. status: the Broker's. Ray forgets a gauge that is not set for twice 10 seconds."""
        if self._judged and self._best is not None:
            tags = {"stage": "evaluate", "dataset": self._judged}
            self._gauges["best_val_accuracy"].set(self._best, tags)
        busy = Counter(unit.partition("-")[0] for unit in status["busy"])
        self._stages |= busy.keys() | status["todo"].keys()
        for stage in self._stages:
            tags = {"stage": stage, "dataset": ""}
            self._gauges["ledger_busy"].set(busy[stage], tags)
            self._gauges["ledger_queued"].set(status["todo"].get(stage, 0), tags)
        for name in ("slots", "workers"):
            self._gauges[f"ledger_{name}"].set(status[name], {"stage": "", "dataset": ""})

    def counts(self) -> dict[str, Any]:
        """Plain data, from when the Broker was last started, `seconds` ago."""
        return {
            "done": dict(self._done),
            "events": dict(self._events),
            "errors": list(self._errors),
            "best": self._best,
            "seconds": time.monotonic() - self._began,
        }


def _tags(task: Task) -> dict[str, str]:
    return {"stage": task.stage, "dataset": task.experiment.dataset.name}


def status_line(status: Mapping[str, Any], earlier: Mapping[str, Any], seconds: float) -> str:
    """One line: per stage units done / all so far, with the rate since `earlier`, that many seconds ago, and
    the time left at it; hits; workers.
    """
    parts = []
    for stage, left in status["todo"].items():
        done = status["done"].get(stage, 0)
        rate = (done - earlier["done"].get(stage, 0)) / seconds
        pace = f" ({rate:.2g}/s, {left / rate:.0f} s left)" if rate else ""
        parts.append(f"{stage} {done}/{done + left}{pace}")
    hits, built = (status["events"].get(name, 0) for name in ("stage_hit", "stage_built"))
    workers = f"{status['workers']} of {status['slots']} workers"
    waiting = [status["waiting"]] if status.get("waiting") else []
    return "; ".join([*parts, f"{hits} hits, {built} built, {workers}", *waiting])
