"""Runtime, how it is computed, and Sweep, what is searched."""

import dataclasses
import re
from typing import Any, Literal

from edc_ray.config.fields import ConfigError, check_uri, config, knob


@config
class Runtime:
    """How it is computed. Changes no result beyond float rounding, and is never part of a name."""

    store: str = knob("store", "folder or URI (s3://, gs://) of the artifacts")
    workers: int = knob(2, "most worker processes at once", low=1)
    cpus_per_worker: float = knob(1.0, "reserved in Ray", low=0)
    gpus_per_worker: float = knob(0.0, "reserved in Ray; may be a fraction", low=0)
    device: Literal["auto", "cpu", "cuda"] = knob("auto", "of the tensors; auto = the GPU where there is one")
    threads: int = knob(1, "threads of a worker's tensor operations", low=1)
    groups_per_forward: int = knob(1, "groups optimised in one forward; also one unit of recover", low=1)
    forward_images: int = knob(
        1024, "most images in a forward that only labels or scores them; a quarter where statistics are kept",
        low=4,
    )  # fmt: skip
    labels: Literal["inline", "stream"] = knob(
        "inline", "the student's worker labels its views, or Ray Data does"
    )
    label_workers: int = knob(1, "of the workers, at most so many label at once for labels: stream", low=1)
    label_budget_gb: float | None = knob(
        None, "stored labels over it are removed, the least recently used first", low=0, unit="GB"
    )
    checkpoint_seconds: float = knob(30.0, "time between the checkpoints inside a unit", low=0, unit="s")
    idle_seconds: float = knob(30.0, "an idle worker is given back after this", low=0, unit="s")
    lease_seconds: float = knob(60.0, "a silent trial loses its evaluation after this", low=1, unit="s")
    hang_seconds: float = knob(
        3600.0, "a worker that tells nothing for so long counts as lost", low=1, unit="s"
    )
    unit_retries: int = knob(3, "lost workers that one unit survives", low=0)

    def __post_init__(self) -> None:
        if not self.store:
            raise ConfigError("store", self.store, "must be a folder or a URI")
        check_uri("store", self.store)


@config
class Knob:
    """One searched field: a range (`low`, `high`) or `choices`; `when` makes it depend on other knobs."""

    low: float | None = knob(None, "lower end of the range, included")
    high: float | None = knob(None, "upper end of the range, included")
    log: bool = knob(False, "sample the logarithm")
    step: float | None = knob(None, "only low, low + step, ...")
    choices: tuple[Any, ...] | None = knob(None, "the values, instead of a range")
    when: dict[str, Any] = dataclasses.field(default_factory=dict)


@config
class Budget:
    """When the search ends: at the first of these. The confirmation comes on top."""

    trials: int = knob(16, "finished trials (complete, pruned or failed)", low=1)
    hours: float | None = knob(None, "no new trial starts after this", low=0, unit="h")
    core_hours: float | None = knob(
        None, "no new trial starts once the trials have taken so much of CPU cores", low=0, unit="h"
    )
    gpu_hours: float | None = knob(None, "as core_hours, of GPUs", low=0, unit="h")


@config
class Scheduler:
    """Which trials are stopped early. ASHA's rungs are shares of the student's training."""

    kind: Literal["fifo", "asha"] = knob("fifo", "stop nothing, or asynchronous successive halving")
    reduction: float = knob(3.0, "one in so many goes on at each rung", low=1.5)
    grace: float = knob(0.25, "share of the training before the first rung; at least five EMA horizons", 0, 1)


@config
class Confirm:
    """The final claim: new seeds, refitted on all training images, read on test once."""

    seeds: int = knob(
        5, "independent repetitions; init, recover, labels and student all vary", low=0, high=500
    )
    best: int = knob(
        1, "so many of the search's best run again on val, with new seeds; their mean there chooses", low=1
    )
    students: int = knob(
        1, "students of each condensed set; from 2 on their spread is told apart from the synthesis'", low=1,
        high=100,
    )  # fmt: skip


@config
class WarmStart:
    """Where the search begins: with the best configurations of another sweep, which are tried here anew."""

    folder: str | None = knob(None, "folder or URI of that sweep; null = none")
    best: int = knob(5, "so many of its finished trials", low=1)

    def __post_init__(self) -> None:
        check_uri("folder", self.folder or "")


def check_name(name: str) -> None:
    """Raises ConfigError where it cannot be the name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ConfigError("name", name, "must be letters, digits, '-', '_' and '.', as it names a folder")


@config
class Sweep:
    """One sweep file."""

    name: str = knob("sweep", "folder of the results under the store")
    preset: str | None = knob(None, "row of presets.PRESETS that `experiment` changes")
    experiment: dict[str, Any] = dataclasses.field(default_factory=dict)
    search: dict[str, Knob] = dataclasses.field(default_factory=dict)
    inner: int = knob(1, "trials that share a sampled synthesis; in a file it is `search.inner`", low=1)
    sampler: Literal["tpe", "random", "nsga2", "grid"] = knob("tpe", "of Optuna")
    objectives: tuple[Literal["accuracy", "label_bytes", "core_seconds", "gpu_seconds"], ...] = knob(
        ("accuracy",),
        "accuracy on val, and costs to keep low: sums over a trial's artifacts, whoever made them",
    )
    scheduler: Scheduler = dataclasses.field(default_factory=Scheduler)
    budget: Budget = dataclasses.field(default_factory=Budget)
    confirm: Confirm = dataclasses.field(default_factory=Confirm)
    warm_start: WarmStart = dataclasses.field(default_factory=WarmStart)
    callbacks: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = knob((), "of Tune, for a live view")
    concurrent: int = knob(2, "trials at once", low=1)
    seed: int = knob(0, "of the sampler", low=0)
    runtime: Runtime = dataclasses.field(default_factory=Runtime)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.objectives[:1] != ("accuracy",) or len(set(self.objectives)) < len(self.objectives):
            raise ConfigError("objectives", self.objectives, "must begin with accuracy, each once")
        if len(self.objectives) > 1 and self.scheduler.kind != "fifo":
            legal = "must be fifo with several objectives: only at its end is a trial's cost known"
            raise ConfigError("scheduler.kind", self.scheduler.kind, legal)
        if self.warm_start.folder is not None and self.sampler == "grid":
            legal = "must be null with sampler grid, which visits each point once"
            raise ConfigError("warm_start.folder", self.warm_start.folder, legal)
