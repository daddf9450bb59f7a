"""What units took, by the manifests of a store: the rates that a plan is estimated with.

A rate is of units of the same stage with the same data, observers and whatever else drives their cost, on the
same kind of device. Work is what a stage's time grows with: image-iterations, trained images, labelled views.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from edc_ray import pipeline
from edc_ray.artifacts import Damaged, Store, every_artifact
from edc_ray.config import Runtime
from edc_ray.pipeline import Task

Like = tuple[Any, ...]  # what two artifacts have in common whose rates can be compared
COST = {  # fields that change what a unit of work costs
    "squeeze": (),
    "init": ("init.kind",),
    "recover": ("recover.visit", "recover.observers", "recover.flatness.kind"),
    "evaluate": ("evaluate.student",),
}


@dataclass(frozen=True, slots=True)
class Rate:
    """Of `units` that were measured; sums. A GPU second of a worker with half a GPU is half a one."""

    device: str
    units: int = 0
    work: float = 0.0
    seconds: float = 0.0  # of workers
    gpu_seconds: float = 0.0
    bytes: int = 0
    memory: int = 0  # the largest peak of a worker; 0 = not measured

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(
            self.device, self.units + other.units, self.work + other.work, self.seconds + other.seconds,
            self.gpu_seconds + other.gpu_seconds, self.bytes + other.bytes, max(self.memory, other.memory),
        )  # fmt: skip


class Rates:
    """Those of all finished artifacts of a store, which are read once. Raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._manifests = dict[str, dict[str, Any]]()
        for artifact in every_artifact(store):
            try:
                if (found := artifact.manifest()) is not None:
                    self._manifests[artifact.key] = found
            except Damaged:
                continue  # who reads it will say so
        self._rates = dict[Like, dict[str, Rate]]()
        for key, manifest in self._manifests.items():
            if (work := self._work(manifest)) > 0:
                by_device, new = self._rates.setdefault(self._like(key, manifest), {}), _rate(manifest, work)
                by_device[new.device] = by_device[new.device] + new if new.device in by_device else new

    def of(self, task: Task, runtime: Runtime, device: str) -> Rate | None:
        """Measured on devices whose names have `device` in them: cpu, H200; "" is any GPU."""
        found = self._rates.get(like(task, runtime), {}).values()
        fitting = [r for r in found if (device.lower() in r.device.lower() if device else r.device != "cpu")]
        return max(fitting, key=lambda rate: rate.units, default=None)

    def devices(self, task: Task, runtime: Runtime) -> list[str]:
        """Those that there are rates of."""
        return sorted(self._rates.get(like(task, runtime), {}))

    def peak(self, device: str) -> int:
        """The most memory that any worker took on such devices; 0 = not measured."""
        found = [rate.memory for by in self._rates.values() for rate in by.values() if rate.device == device]
        return max(found, default=0)

    def _like(self, key: str, manifest: Mapping[str, Any]) -> Like:
        stage, inputs = manifest["stage"], manifest["inputs"]
        squeeze = manifest if stage == "squeeze" else self._manifests.get(inputs.get("squeeze", ""), {})
        observers = _field(squeeze.get("reads", {}), "squeeze.observers")
        costs = [_plain(_field(manifest["reads"], path)) for path in COST.get(stage, ())]
        inline = manifest["runtime"]["labels"] == "inline" if stage == "evaluate" else None
        return stage, inputs.get("ingest", key), _plain(observers), inline, *costs

    def _work(self, manifest: Mapping[str, Any]) -> float:
        """As `planned`, of what was made; 0 where it cannot be told."""
        stage, units = manifest["stage"], manifest["units"]
        images = units.get("all", {}).get("meta", {}).get("images", 0)

        def field(path: str) -> int:
            return int(_field(manifest["reads"], path) or 0)

        if stage == "squeeze":
            return max(1, field("squeeze.epochs")) * (len(units) - 1)
        if stage == "statistics":
            return (len(units) - 1) * field("statistics.shard_images")
        if stage == "recover":
            return float(images * max(1, field("recover.iterations")))
        if stage == "relabel":
            batch = field("relabel.batch_size")
            return len(units) * max(1, field("relabel.page_images") // batch) * batch
        if stage == "evaluate":
            made = self._manifests.get(manifest["inputs"]["recover"], {"units": {}})
            of = made["units"].get("all", {}).get("meta", {}).get("images", 0)
            return field("evaluate.epochs") * of
        return float(images or len(units))


def _rate(manifest: Mapping[str, Any], work: float) -> Rate:
    metas = [unit["meta"] for unit in manifest["units"].values()]
    gpus = manifest["runtime"]["gpus_per_worker"]
    device = metas[0]["device"]
    seconds = math.fsum(meta["seconds"] for meta in metas)
    return Rate(
        device, len(metas), work, seconds, 0.0 if device == "cpu" else seconds * (gpus or 1.0),
        sum(unit["bytes"] for unit in manifest["units"].values()),
        max(meta.get("memory_bytes", 0) for meta in metas),
    )  # fmt: skip


def like(task: Task, runtime: Runtime) -> Like:
    """Of an artifact that is to be made."""
    inputs, exp = dict(task.inputs), task.experiment
    observers = exp.squeeze.observers if task.stage == "squeeze" or "squeeze" in inputs else None
    costs = [_plain(attrgetter(path)(exp)) for path in COST.get(task.stage, ())]
    if task.stage == "recover" and exp.recover.iterations == 0:  # then it reads none of them
        costs = [None for _ in costs]
    inline = runtime.labels == "inline" if task.stage == "evaluate" else None
    return task.stage, inputs.get("ingest", task.key), _plain(observers), inline, *costs


def planned(task: Task, runtime: Runtime) -> float:
    """The work of a whole artifact."""
    exp, images = task.experiment, float(task.classes * task.experiment.init.ipc)
    return {
        "ingest": lambda: 1.0,
        "squeeze": lambda: float(max(1, exp.squeeze.epochs) * len(exp.squeeze.observers)),
        "statistics": lambda: float(len(pipeline.units(task, runtime)) * exp.statistics.shard_images),
        "init": lambda: images,
        "recover": lambda: images * max(1, exp.recover.iterations),
        "relabel": lambda: images * exp.evaluate.epochs,
        "evaluate": lambda: images * exp.evaluate.epochs,
    }[task.stage]()


def _field(reads: Mapping[str, Any], path: str) -> Any:
    """Of a manifest, which has whole sections or single fields."""
    section, _, rest = path.partition(".")
    found: Any = reads.get(path, reads.get(section))
    for name in rest.split(".") if path not in reads else ():
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# --- words --------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """For a person, of two digits."""
    for unit, length in (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86400.0)):
        if seconds < 99.5 * length or unit == "days":
            return f"{seconds / length:.2g} {unit}"
    raise AssertionError("unreachable")


def size(count: float) -> str:
    """Bytes for a person, of two digits."""
    for unit, many in (("bytes", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)):
        if count < 99.5 * many or unit == "TB":
            return f"{count / many:.2g} {unit}"
    raise AssertionError("unreachable")
