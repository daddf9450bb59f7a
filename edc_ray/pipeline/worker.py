"""Runs one unit at a time in this process: inputs, checkpoints, the clock, the written file.

The in-process mapper, Ray's actors and the label job all run this same code.
"""

import functools
import itertools
import logging
import os
import platform
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from edc_ray.artifacts import Artifact, Attempt, Damaged, Receipt, Store, UnitFile, add_attempt
from edc_ray.config import Runtime
from edc_ray.core import data, heap, models, storage
from edc_ray.pipeline import graph
from edc_ray.pipeline.memory import forget_peak, out_of_memory, peak_bytes
from edc_ray.pipeline.stages import ROWS
from edc_ray.pipeline.types import Job, Output, Progress, Step, Task, Tensors, unit_of

log = logging.getLogger(__name__)
T = TypeVar("T")
CACHED = 12  # inputs kept in memory, least recently used first out
TELL_SECONDS = 0.5  # time between two Progress without news


@dataclass(frozen=True, slots=True)
class Real:
    """The training images of an experiment without val, and their labels on the worker's device."""

    fit: data.Pixels  # what observers and statistics see
    fit_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Judge:
    """The images that an accuracy is read on: val or, where nothing is held out, test."""

    images: data.Pixels
    labels: Tensor
    split: str


class Inputs:
    """What a unit reads: artifacts, checked and turned into what core wants, kept for the next unit."""

    def __init__(self, store: Store, runtime: Runtime, device: torch.device) -> None:
        self.store, self.runtime, self.device = store, runtime, device
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def keep(self, make: Callable[[], T], *key: str) -> T:
        """What was made under this key, while it is kept; else made now."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return cast(T, self._kept[key])

    def unit(self, stage: str, key: str, unit: str) -> tuple[Tensors, dict[str, Any]]:
        return self.store.artifact(stage, key).read(unit)

    def parts(self, task: Task) -> Iterator[tuple[Tensors, dict[str, Any]]]:
        """What the units of this very artifact left, in order, for its fold."""
        return self.store.artifact(task.stage, task.key).read_each(self.unit_names(task))

    def unit_names(self, task: Task) -> list[str]:
        return graph.units(task, self.runtime)

    def all(self, stage: str, task: Task) -> Tensors:
        """The folded result of an input stage."""
        key = dict(task.inputs)[stage]
        return self.keep(lambda: self.unit(stage, key, "all")[0], "all", stage, key)

    def real(self, task: Task) -> Real:
        key, split = dict(task.inputs)["ingest"], task.experiment.split
        return self.keep(lambda: self._real(task, key), "real", key, str(split))

    def _real(self, task: Task, key: str) -> Real:
        (train, labels, classes), split = self._part(task, "train"), task.experiment.split
        fit, _ = data.split(labels, split.val, split.seed)
        return Real(
            fit=train.subset(fit), fit_labels=labels[fit].to(self.device),
            mean=tuple(train.mean), std=tuple(train.std), classes=classes,
            size=task.experiment.dataset.size_px,
        )  # fmt: skip

    def judge(self, task: Task) -> Judge:
        """The only place where val or test is opened, and only for stages whose accuracies are in a manifest.

        A read of test is on record from then on, also of a unit that is killed; in a bucket, where lines of
        several writers may be lost, from the commit.
        """
        if task.stage not in graph.JUDGED:
            raise RuntimeError(f"{task} may read neither val nor test")
        key, split = dict(task.inputs)["ingest"], task.experiment.split
        found = self.keep(lambda: self._judge(task), "judge", key, str(split))
        if found.split == "test" and self.store.local:
            self.keep(lambda: graph.note_test_read(task, self.store), "noted", task.key)
        return found

    def _judge(self, task: Task) -> Judge:
        split = task.experiment.split
        if split.val == 0:
            test, labels, _ = self._part(task, "test")
            return Judge(test, labels.to(self.device), "test")
        train, labels, _ = self._part(task, "train")
        _, held = data.split(labels, split.val, split.seed)
        return Judge(train.subset(held), labels[held].to(self.device), "val")

    def _part(self, task: Task, part: str) -> tuple[data.Pixels, Tensor, tuple[str, ...]]:
        """All images of "train" or "test", their labels (on the CPU), and the names of the classes."""
        key = dict(task.inputs)["ingest"]

        def make() -> tuple[data.Pixels, Tensor, tuple[str, ...]]:
            tensors, meta = self.unit("ingest", key, "all")
            read = self._in_memory(tensors[part]) if part in tensors else self._in_shards(task, key, part)
            labels, norm = tensors[f"{part}_labels"], (tuple(meta["mean"]), tuple(meta["std"]))
            rows = torch.arange(len(labels))
            return data.Pixels(read, rows, *norm, self.device), labels, tuple(meta["classes"])

        return self.keep(make, part, key)

    def _in_memory(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        images = images.to(self.device)  # bytes: a quarter of the floats, which are made when they are read
        return lambda rows: images[rows.to(self.device)]

    def _in_shards(self, task: Task, key: str, part: str) -> Callable[[Tensor], Tensor]:
        cfg, artifact = task.experiment.dataset, self.store.artifact("ingest", key)
        files, size = artifact.units(), data.shard_images(cfg)

        def read(rows: Tensor) -> Tensor:
            """Only these are read, in the order of the shards, and decoded."""
            order = rows.argsort(stable=True)
            blobs: list[tuple[str, bytes | Tensor]] = []
            shards, counts = (rows[order] // size).unique_consecutive(return_counts=True)
            for shard, run in zip(shards.tolist(), rows[order].split(counts.tolist()), strict=True):
                name = f"{part}-{shard:05d}"
                found = _rows(artifact, files, name, (run % size).tolist())["image"]
                blobs += [(name, blob.as_py()) for blob in found]
            images = torch.empty((len(rows), 3, cfg.size_px, cfg.size_px), dtype=torch.uint8)
            images[order] = data.decoded(cfg, part, blobs, len(blobs), self.runtime.threads)
            return images

        return read

    def listing(self, task: Task) -> data.Listing:
        """What there is to ingest."""
        return self.keep(lambda: data.listing(task.experiment.dataset), "listing", task.key)

    def table_meta(self, stage: str, key: str, unit: str) -> dict[str, Any]:
        artifact = self.store.artifact(stage, key)
        return artifact.table_meta(artifact.units()[unit])

    def observers(self, task: Task) -> dict[str, nn.Module]:
        """The trained observers in eval mode, frozen, in visiting order."""
        key = dict(task.inputs)["squeeze"]
        return self.keep(lambda: self._observers(task, key), "observers", key)

    def _observers(self, task: Task, key: str) -> dict[str, nn.Module]:
        real, nets = self.real(task), {}
        for name in task.experiment.squeeze.observers:
            tensors, _ = self.unit("squeeze", key, unit_of(name))
            net = models.build(name, len(real.classes), real.size, 0)
            net.load_state_dict(
                {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            )
            nets[name] = net.to(self.device).eval().requires_grad_(False)
        return nets

    def start_images(self, task: Task) -> tuple[Tensor, Tensor]:
        """(normalised condensed images, labels), as stored, on the device."""
        return self.keep(lambda: self._start_images(task), "start", dict(task.inputs)["recover"])

    def _start_images(self, task: Task) -> tuple[Tensor, Tensor]:
        real, tensors = self.real(task), self.all("recover", task)
        images = storage.normalized(tensors["images"], real.mean, real.std)
        return images.to(self.device), tensors["labels"].to(self.device)

    def label_tables(self, task: Task, pages: Sequence[str]) -> Iterator[pa.Table | None]:
        """Stored pages of labels, in order; None for each where they are made inline."""
        if self.runtime.labels == "inline":
            return itertools.repeat(None, len(pages))
        artifact = self.store.artifact("relabel", dict(task.inputs)["relabel"])
        return (table for table, _ in artifact.read_tables(pages))


def _rows(artifact: Artifact, files: dict[str, UnitFile], name: str, rows: list[int]) -> pa.Table:
    """Images of a shard. It may have been made anew since `files` were listed."""
    try:
        return artifact.read_rows(files[name], rows, ["image"])
    except Damaged:
        files |= artifact.units()
        return artifact.read_rows(files[name], rows, ["image"])


def log_attempt(
    store: Store, task: Task, unit: str, new: Attempt, error: Exception | None = None, details: str = ""
) -> None:
    """Add it to the unit's log and, to the error, a note of where that is.

    Neither where the store is the trouble, which then is no error of its own.
    """
    try:
        path = add_attempt(store.artifact(task.stage, task.key), unit, new, details)
    except OSError as trouble:
        log.warning("the log of %s, unit %s, cannot be written: %s", task, unit, trouble)
        return
    if error is not None:
        error.add_note(f"log: {path}")


def pick_device(runtime: Runtime) -> torch.device:
    """ "auto" is the GPU where there is one."""
    if runtime.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(runtime.device)


class Worker:
    """Keeps the inputs of earlier units; `run` is a generator, and closing it leaves only checkpoints."""

    def __init__(self, store: Store, runtime: Runtime, inputs: Inputs | None = None) -> None:
        heap.keep_freed()
        self.store, self.runtime = store, runtime
        device = pick_device(runtime)
        self._inputs = inputs or Inputs(store, runtime, device)
        self._device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self._place = {"host": platform.node(), "device": name}

    def run(self, task: Task, unit: str, until: float = 1.0) -> Iterator[Progress | Receipt]:
        """Resume the unit from its checkpoint, run it, write its file; the last item is its Receipt.

        until: an evaluation stops at this share of the training, leaving a checkpoint and no Receipt.

        Raises:
            FloatingPointError: a loss is not finite. Damaged: an input did not pass its check.
            OutOfMemory: that of the GPU; names the field to lower. A note of each names the unit's log.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.runtime.threads)
        torch.set_float32_matmul_precision("high" if task.experiment.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = task.experiment.precision == "tf32"
        try:
            yield from self._logged(task, unit, until)
        finally:
            torch.set_num_threads(threads)

    def _logged(self, task: Task, unit: str, until: float) -> Iterator[Progress | Receipt]:
        """`_run`, and a line in the unit's log about how it ended."""
        began = time.monotonic()
        try:
            for item in self._run(task, unit, until):
                if isinstance(item, Receipt):
                    self._log(task, unit, "done", item.meta["seconds"])
                yield item
        except torch.OutOfMemoryError as error:
            told = out_of_memory(task, unit, self.runtime, str(error))
            self._log(task, unit, "failed", time.monotonic() - began, told)
            raise told from None
        except Exception as error:
            self._log(task, unit, "failed", time.monotonic() - began, error)
            raise

    def _log(
        self, task: Task, unit: str, outcome: str, seconds: float, error: Exception | None = None
    ) -> None:
        where = f"{self._place['host']} ({self._place['device']}, process {os.getpid()})"
        why = f"{type(error).__name__}: {error}" if error else ""
        details = traceback.format_exc() if error else ""
        log_attempt(self.store, task, unit, Attempt(outcome, seconds, where, why), error, details)

    def _run(self, task: Task, unit: str, until: float) -> Iterator[Progress | Receipt]:
        artifact, stage = self.store.artifact(task.stage, task.key), ROWS[task.stage]
        saved, meta = artifact.load_checkpoint(unit) or (None, {})
        reports = tuple((int(at), float(value)) for at, value in meta.get("reports", ()))
        job = Job(task, unit, self._inputs, saved, reports, until)
        function = stage.finish if unit == "all" and stage.finish else stage.run
        watch = _Stopwatch(meta.get("seconds", 0.0), meta.get("core_seconds", 0.0))
        forget_peak(self._device)
        step, told = Step(0, 1, reports=reports), reports
        for item in function(job):
            if isinstance(item, Output):
                facts = item.meta | watch.read() | {"memory_bytes": peak_bytes(self._device)} | self._place
                write = functools.partial(artifact.write, unit, item.tensors)
                if item.table is not None:
                    write = functools.partial(artifact.write_table, unit, item.table)
                receipt = write(facts)
                artifact.drop_checkpoints(unit)
                yield replace(receipt, work=_since(job))
                return
            step = item
            if step.pack is not None and watch.since("saved") >= self.runtime.checkpoint_seconds:
                watch.mark("saved")
                artifact.save_checkpoint(unit, step.pack(), watch.read() | {"reports": step.reports})
            if step.reports != told or watch.since("told") >= TELL_SECONDS:
                watch.mark("told")
                told = step.reports
                yield _progress(step, job)
        if step.pack is not None:
            artifact.save_checkpoint(unit, step.pack(), watch.read() | {"reports": step.reports})
        yield _progress(step, job)


def _progress(step: Step, job: Job) -> Progress:
    return Progress(step.done, step.total, step.reports, _since(job), step.loss() if step.loss else None)


def _since(job: Job) -> dict[str, int]:
    """What it has made since this was last asked."""
    work = dict(job.work)
    job.work.clear()
    return work


class _Stopwatch:
    """Wall and processor seconds of a unit, those before an interruption included; and marks in time."""

    def __init__(self, seconds: float, core_seconds: float) -> None:
        now = time.monotonic()
        self._start, self._core = now - seconds, time.process_time() - core_seconds
        self._marks = {"saved": now, "told": now}

    def read(self) -> dict[str, float]:
        return {"seconds": time.monotonic() - self._start, "core_seconds": time.process_time() - self._core}

    def since(self, mark: str) -> float:
        return time.monotonic() - self._marks[mark]

    def mark(self, mark: str) -> None:
        self._marks[mark] = time.monotonic()
