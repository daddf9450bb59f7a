"""What a person and a dashboard see of a running job: metrics by stage, and one status line."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray.util import metrics


class Monitor:
    """The Broker's on_event: counts by stage, and Ray metrics `edc_*` with the tag stage (never a trial's
    id).
    """

    def __init__(self) -> None:
        self._done: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        tags = ("stage",)
        self._metrics = {
            name: metrics.Counter(f"edc_{name}", description=text, tag_keys=tags)
            for name, text in (
                ("unit_done", "finished units"),
                ("unit_retried", "units whose worker was lost"),
                ("stage_hit", "artifacts that were there already"),
                ("stage_built", "artifacts made"),
            )
        }

    def __call__(self, name: str, **tags: Any) -> None:
        self._events[name] += 1
        stage = str(tags.get("stage", ""))
        if name == "unit_done":
            self._done[stage] += 1
        if name in self._metrics:
            self._metrics[name].inc(1, {"stage": stage})

    def counts(self) -> dict[str, Any]:
        return {"done": dict(self._done), "events": dict(self._events)}


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
    return "; ".join([*parts, f"{hits} hits, {built} built, {workers}"])
