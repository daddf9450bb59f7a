"""Stages that look at the real images: ingest, squeeze, statistics.

A stage's function is a generator: it yields `Step`s where it can be interrupted and one `Output` at the end.
It reads its inputs through `job.inputs` and touches nothing else.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import torch

from edc_ray.core import data, fit, models, stats, views
from edc_ray.core.random import generator, seed_of
from edc_ray.core.squeeze import fit_observer
from edc_ray.pipeline.types import Job, Output, Step, Tensors, finite, unit_of

log = logging.getLogger(__name__)

# --- ingest -------------------------------------------------------------------------------------------------


def run_ingest(job: Job) -> Iterator[Step | Output]:
    """One shard of a dataset that does not fit in memory."""
    part, index = job.unit.split("-")
    found = job.inputs.listing(job.task)
    made = data.shard(job.experiment.dataset, found, part, int(index), job.inputs.runtime.threads)
    columns = {"image": pa.array(made.files, pa.binary()), "label": pa.array(made.labels.numpy(), pa.int32())}
    yield Output(table=pa.table(columns), meta={"sums": made.sums.tolist()})


def finish_ingest(job: Job) -> Iterator[Step | Output]:
    """All images, where they fit in memory; else what the shards say together."""
    cfg, task = job.experiment.dataset, job.task
    if task.shards == (0, 0):
        images = data.read(cfg, job.inputs.runtime.threads)
        tensors = {name: getattr(images, name) for name in ("train", "train_labels", "test", "test_labels")}
        yield Output(tensors, meta={"mean": images.mean, "std": images.std, "classes": images.classes})
        return
    found = job.inputs.listing(task)
    train = [name for name in job.inputs.unit_names(task) if name.startswith("train-")]
    sums = [job.inputs.table_meta(task.stage, task.key, name)["sums"] for name in train]
    mean, std = data.normalization(cfg, torch.tensor(sums).sum(0))
    labels = {"train_labels": found.train.labels, "test_labels": found.test.labels}
    yield Output(labels, meta={"mean": mean, "std": std, "classes": found.classes})


# --- squeeze ------------------------------------------------------------------------------------------------


def run_squeeze(job: Job) -> Iterator[Step | Output]:
    real, cfg, seed = job.inputs.real(job.task), job.experiment.squeeze, job.experiment.seed
    name = next(name for name in cfg.observers if unit_of(name) == job.unit)
    about = name, len(real.classes), real.size
    model = models.build(*about, seed_of("squeeze", seed, name))
    if cfg.weights is not None and job.saved is None:
        models.load_weights(model, cfg.weights, *about, new_head=cfg.epochs > 0)
    model.to(real.fit.device)
    for epoch, pack in fit_observer(cfg, model, real.fit, real.fit_labels, (seed, name), job.saved):
        yield Step(epoch, cfg.checkpoint_epoch or cfg.epochs, pack)
    judge = job.inputs.judge(job.task)
    logits = finite(fit.predict(model.eval(), judge.images, job.inputs.runtime.forward_images), name)
    meta = {"accuracy": fit.top1(logits, judge.labels), "split": judge.split}
    yield Output({f"model.{k}": v for k, v in model.state_dict().items()} | {"logits": logits}, meta=meta)


def finish_squeeze(job: Job) -> Iterator[Step | Output]:
    """The ensemble: mean logits, as the labellers use them."""
    real, names = job.inputs.real(job.task), job.experiment.squeeze.observers
    units = [job.inputs.unit(job.task.stage, job.task.key, unit_of(name)) for name in names]
    logits = torch.stack([tensors["logits"] for tensors, _ in units]).mean(0)
    judge = job.inputs.judge(job.task)
    labels = judge.labels.cpu()
    accuracy = {name: meta["accuracy"] for name, (_, meta) in zip(names, units, strict=True)}
    meta = {
        "accuracy": accuracy,
        "ensemble": fit.top1(logits, labels),
        "split": judge.split,
        "judged": len(labels),
    }
    meta["chance"] = 1 / len(real.classes)
    for warning in at_chance(meta):
        log.warning("%s: %s", job.task, warning)
    yield Output({"logits": logits}, meta=meta)


def at_chance(facts: Mapping[str, Any]) -> list[str]:
    """A warning for each observer within two standard errors of guessing; facts: of a finished squeeze."""
    chance = facts["chance"]
    margin = 2 * math.sqrt(chance * (1 - chance) / facts["judged"])
    return [
        f"observer {name} cannot be told from guessing: accuracy {100 * value:.1f} % on {facts['judged']} "
        f"images of {facts['split']}, chance {100 * chance:.1f} %"
        for name, value in facts["accuracy"].items()
        if value <= chance + margin
    ]


# --- statistics ---------------------------------------------------------------------------------------------


def run_statistics(job: Job) -> Iterator[Step | Output]:
    """One shard of the real images through all observers: one read and one augmentation for all.

    Only the images of a forward are in memory together; their shard may be larger than that.
    """
    cfg, real = job.experiment.statistics, job.inputs.real(job.task)
    observers = job.inputs.observers(job.task)
    shard = int(job.unit.removeprefix("shard-"))
    rows = torch.arange(len(real.fit))[shard * cfg.shard_images : (shard + 1) * cfg.shard_images]
    rng = generator("statistics", job.experiment.seed, shard)
    drawn = views.augmentation(len(rows), real.size, cfg.augment, rng)
    batch = cfg.batch_size if cfg.conv_variance == "per_batch" else None
    sums: dict[str, stats.Moments] = {}
    together = job.inputs.runtime.forward_images // 4  # the inputs of all layers are kept
    if batch is not None:
        together = max(1, together // batch) * batch  # whole batches
    parts = list(zip(*(tensor.split(together) for tensor in (rows, *drawn)), strict=True))
    for done, (ids, box, flip) in enumerate(parts):
        images, labels = real.fit[ids], real.fit_labels[ids.to(real.fit_labels.device)]
        images = views.resample(images, box.to(images.device), flip.to(images.device))
        found: dict[str, stats.Moments] = {}
        for name, model in observers.items():
            seen = stats.observe(model, images, labels, len(real.classes), cfg.patch, batch)
            found |= {f"{name}/{layer}": moments for layer, moments in seen.items()}
        sums = stats.add(sums, found)
        yield Step(done + 1, len(parts))
    yield Output(_flat(sums), meta={"images": len(rows)})


def finish_statistics(job: Job) -> Iterator[Step | Output]:
    """The sum of the shards, folded in their order so that the bits do not depend on who came first."""
    total: dict[str, stats.Moments] = {}
    for tensors, _ in job.inputs.parts(job.task):
        total = stats.add(total, moments_of(tensors))
    yield Output(_flat(total))


def _flat(sums: dict[str, stats.Moments]) -> Tensors:
    return {f"{where}:{name}": tensor for where, m in sums.items() for name, tensor in m.tensors().items()}


def moments_of(tensors: Tensors) -> dict[str, stats.Moments]:
    """'observer/layer' -> Moments, from a unit of statistics."""
    found: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        where, field = name.rsplit(":", 1)
        found.setdefault(where, {})[field] = tensor
    return {where: stats.Moments(**sums) for where, sums in found.items()}
