"""The few types that stages, workers and mappers share."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from edc_ray.config import Experiment, Runtime

if TYPE_CHECKING:
    from edc_ray.pipeline.worker import Inputs

Tensors = dict[str, torch.Tensor]
Report = tuple[int, float]  # (per mille of the student's training, accuracy)
COSTS = ("seconds", "core_seconds", "memory_bytes")  # facts of a unit that differ from run to run


@dataclass(frozen=True, slots=True)
class Task:
    """One artifact to make: small and picklable.

    inputs: every ancestor, as (stage, key).
    classes, fit: how many classes and training images (without val) there are.
    shards: of the training and of the test images; none where they fit in memory.
    """

    stage: str
    experiment: Experiment
    key: str
    inputs: tuple[tuple[str, str], ...]
    classes: int
    fit: int
    shards: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"{self.stage}-{self.key}"


@dataclass(frozen=True, slots=True)
class Step:
    """A moment inside a unit where it can be interrupted. pack() makes the checkpoint; None = start again.

    loss: reads what the unit minimises, which may have to wait for the GPU.
    """

    done: int
    total: int
    pack: Callable[[], Tensors] | None = None
    reports: tuple[Report, ...] = ()
    loss: Callable[[], float] | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What a unit leaves: tensors or, where rows are its nature, a table; and facts for the manifest."""

    tensors: Tensors = field(default_factory=dict)
    table: pa.Table | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a running unit tells its mapper.

    Only for metrics: work, see Job, since the Progress before; loss, see Step.
    """

    done: int
    total: int
    reports: tuple[Report, ...] = ()
    work: dict[str, int] = field(default_factory=dict, compare=False)
    loss: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Job:
    """One unit at work: what a stage's function gets.

    work: where it counts what it makes, by the name of a metric (monitor.py). No result depends on it.
    """

    task: Task
    unit: str
    inputs: "Inputs"
    saved: Tensors | None
    saved_reports: tuple[Report, ...]
    until: float
    work: Counter[str] = field(default_factory=Counter)

    @property
    def experiment(self) -> Experiment:
        return self.task.experiment


Run = Callable[[Job], Iterator[Step | Output]]
Names = Callable[[Experiment], tuple[str, ...]]


def always(*names: str) -> Names:
    """The same of every experiment."""
    return lambda experiment: names


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of STAGES.

    reads: the config paths that enter the key. inputs: the stages it reads. Both depend on the experiment,
    so that no key holds what this experiment does not use. units: their names, in order, given the share of
    the student's training that is wanted. finish: folds them into the unit "all". files: digest of the raw
    files that it reads beside its inputs.
    """

    version: int
    reads: Names
    inputs: Names
    units: Callable[[Task, Runtime, float], list[str]]
    run: Run
    finish: Run | None = None
    files: Callable[[Experiment], str | None] = lambda experiment: None


def unit_of(observer: str) -> str:
    """The unit of an observer: its name without what a file name may not have; no two become one."""
    return observer.replace("/", "-").replace(".", "=").replace(":", "==")


def finite(logits: torch.Tensor, who: str) -> torch.Tensor:
    """The logits. Raises FloatingPointError where one is not finite; names `who`."""
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(f"the logits of {who} are not finite")
    return logits
