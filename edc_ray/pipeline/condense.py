"""Stages that make the condensed images: init, recover.

A stage's function is a generator: it yields `Step`s where it can be interrupted and one `Output` at the end.
It reads its inputs through `job.inputs` and touches nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from edc_ray.core import data, init, models, recover, stats, storage, views
from edc_ray.core.random import generator
from edc_ray.pipeline.observe import moments_of
from edc_ray.pipeline.types import Job, Output, Step

CLASSES_PER_UNIT = 100  # of init, whose classes are independent
DRAWN = 256  # real images of class_form local whose augmentations are drawn together


# --- init and recover ---------------------------------------------------------------------------------------


def _classes(job: Job) -> range:
    """Of the unit."""
    first = int(job.unit.removeprefix("classes-"))
    return range(first, min(first + CLASSES_PER_UNIT, job.task.classes))


def run_init(job: Job) -> Iterator[Step | Output]:
    cfg, classes = job.experiment.init, _classes(job)
    pool = _folder_pools(job) if cfg.kind in init.FROM_FOLDER else _real_pools(job)
    made = list(job.saved["images"].split(cfg.ipc)) if job.saved else []
    for label in classes[len(made) :]:
        made.append(init.class_images(cfg, pool(label), job.experiment.seed, label).cpu())
        yield Step(len(made), len(classes), lambda: {"images": torch.cat(made)})
    yield Output({"images": torch.cat(made)})


def _real_pools(job: Job) -> Callable[[int], init.Pool]:
    """Each class starts from its images of the training part; and who scores them."""
    exp, real, together = job.experiment, job.inputs.real(job.task), job.inputs.runtime.forward_images
    labels, device, norm = real.fit_labels.cpu(), real.fit.device, (real.mean, real.std)
    sources = [real.classes.index(name) for name in _start_classes(job)]
    models = list[nn.Module]()
    if exp.init.kind in init.SCORED:
        observers = job.inputs.observers(job.task)
        models = [observers[name] for name in exp.init.scorers or exp.squeeze.observers[:1]]

    def pool(label: int) -> init.Pool:
        rows = (labels == sources[label]).nonzero().flatten()
        score = partial(init.cross_entropies, models, sources[label], real.size, norm, together)
        return init.Pool(len(rows), lambda ids: real.fit.bytes(rows[ids]).to(device), score, norm)

    return pool


def _folder_pools(job: Job) -> Callable[[int], init.Pool]:
    """Each class starts from the images of its folder."""
    start = data.start_listing(job.experiment.init.path, _start_classes(job))
    size, threads = job.experiment.dataset.size_px, job.inputs.runtime.threads
    return lambda label: init.Pool(
        len(start.files[label]), lambda ids: start.read(label, ids.tolist(), size, threads)
    )


def _start_classes(job: Job) -> tuple[str, ...]:
    """The name of the class whose images each class starts from: its own.

    With quirk B18, which lists the classes of the initial images by name whatever their order: the i-th one
    by name.
    """
    names = job.inputs.real(job.task).classes
    return tuple(sorted(names)) if job.experiment.quirks.alphabetical_init else names


def run_recover(job: Job) -> Iterator[Step | Output]:
    """Groups that go through one forward or, where one takes over from another, in turn."""
    if job.experiment.recover.iterations == 0:
        yield _output(*storage.store(_unmoved(job), job.experiment.recover))
        return
    exp, cfg = job.experiment, job.experiment.recover
    first, last = (int(part) for part in job.unit.removeprefix("groups-").split("-"))
    groups = recover.cut(cfg, job.task.classes, exp.init.ipc)[first : last + 1]
    start = job.inputs.all("init", job.task)["images"][groups[0].images.start : groups[-1].images.stop]
    turns = [groups] if cfg.matching.reset else [[group] for group in groups]
    chain = recover.Chain([partial(problem_of, job, turn) for turn in turns], start, job.saved)
    for done in chain.steps():
        job.work["image_iterations"] += chain.moving
        yield Step(done, len(turns) * cfg.iterations, chain.pack, loss=chain.loss)
    job.work["images_synthesised"] += len(chain.images)
    yield _output(chain.images, chain.bytes)


def problem_of(job: Job, groups: Sequence[recover.Group]) -> recover.Problem:
    """What these groups, in one forward, are matched against."""
    exp, real, every = job.experiment, job.inputs.real(job.task), job.inputs.observers(job.task)
    chosen = {name: every[name] for name in exp.recover.observers or every}
    moments = moments_of(job.inputs.all("statistics", job.task))
    per_observer = [
        {layer.name: moments[f"{name}/{layer.name}"] for layer in models.layers(model)}
        for name, model in chosen.items()
    ]
    local = None
    if exp.recover.matching.class_form == "local":
        by_group = [_local_moments(job, group, chosen) for group in groups]
        local = [[found[name] for found in by_group] for name in chosen]
    return recover.problem(
        exp, groups, list(chosen.values()), per_observer, (real.mean, real.std), real.fit.device, local
    )


def _local_moments(
    job: Job, group: recover.Group, observers: Mapping[str, nn.Module]
) -> dict[str, dict[str, stats.Moments]]:
    """What each observer sees of real images of the group's classes, augmented as for the statistics."""
    exp, real, together = job.experiment, job.inputs.real(job.task), job.inputs.runtime.forward_images // 4
    seeds, cfg = (exp.seed, exp.init.seed), exp.statistics
    picks = recover.local_picks(real.fit_labels.cpu(), group, exp.recover.matching.local_images, seeds)
    total: dict[str, dict[str, stats.Moments]] = {name: {} for name in observers}
    for i, part in enumerate(picks.split(DRAWN)):
        rng = generator("local views", *seeds, group.index, i)
        for images in views.augment(real.fit[part], cfg.augment, rng).split(together):
            labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
            for name, model in observers.items():
                total[name] = stats.add(total[name], stats.observe(model, images, labels, 1, cfg.patch))
    return total


def _unmoved(job: Job) -> torch.Tensor:
    """The initial images of the unit's classes."""
    classes, ipc = _classes(job), job.experiment.init.ipc
    return job.inputs.all("init", job.task)["images"][classes.start * ipc : classes.stop * ipc]


def _output(images: torch.Tensor, size: int) -> Output:
    return Output({"images": images}, meta={"bytes": size})


def join_images(job: Job) -> Iterator[Step | Output]:
    """The units' images in class-major order, with their labels."""
    units = list(job.inputs.parts(job.task))
    images = torch.cat([tensors["images"] for tensors, _ in units])
    size = sum(meta.get("bytes", tensors["images"].nbytes) for tensors, meta in units)
    ipc = job.experiment.init.ipc
    labels = torch.arange(len(images) // ipc).repeat_interleave(ipc)
    yield Output({"images": images, "labels": labels}, meta={"images": len(images), "bytes": size})
