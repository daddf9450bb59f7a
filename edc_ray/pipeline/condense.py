"""Stages that make the condensed images: init, recover.

A stage's function is a generator: it yields `Step`s where it can be interrupted and one `Output` at the end.
It reads its inputs through `job.inputs` and touches nothing else.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from edc_ray.core import data, init, models, recover
from edc_ray.pipeline.observe import moments_of
from edc_ray.pipeline.types import Job, Output, Step

CLASSES_PER_UNIT = 100  # of init, whose classes are independent


# --- init and recover ---------------------------------------------------------------------------------------


def _classes(job: Job) -> range:
    """Of the unit."""
    first = int(job.unit.removeprefix("classes-"))
    return range(first, min(first + CLASSES_PER_UNIT, job.task.classes))


def run_init(job: Job) -> Iterator[Step | Output]:
    cfg, classes = job.experiment.init, _classes(job)
    pool = _folder_pools(job) if cfg.kind == "folder" else _real_pools(job)
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
        return init.Pool(len(rows), lambda ids: real.fit.bytes(rows[ids]).to(device), score)

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
    if job.experiment.recover.iterations == 0:
        yield _kept(job)
        return
    exp, real = job.experiment, job.inputs.real(job.task)
    first, last = (int(part) for part in job.unit.removeprefix("groups-").split("-"))
    groups = recover.cut(len(real.classes), exp.recover.classes_per_group)[first : last + 1]
    start = job.inputs.all("init", job.task)["images"]
    start = start[groups[0].classes.start * exp.init.ipc : groups[-1].classes.stop * exp.init.ipc]
    observers = job.inputs.observers(job.task)
    moments = moments_of(job.inputs.all("statistics", job.task))
    per_observer = [
        {layer.name: moments[f"{name}/{layer.name}"] for layer in models.layers(model)}
        for name, model in observers.items()
    ]
    problem = recover.problem(
        exp, groups, list(observers.values()), per_observer, (real.mean, real.std), real.fit.device
    )
    state = recover.begin(problem, start, job.saved)
    for now in recover.synthesize(problem, state):
        yield Step(now.iteration, exp.recover.iterations, now.pack)
    yield Output({"images": recover.finished(problem, state)})


def _kept(job: Job) -> Output:
    """The initial images of the unit's classes, as they are."""
    classes, ipc = _classes(job), job.experiment.init.ipc
    start = job.inputs.all("init", job.task)["images"]
    return Output({"images": start[classes.start * ipc : classes.stop * ipc]})


def join_images(job: Job) -> Iterator[Step | Output]:
    """The units' images in class-major order, with their labels."""
    units = [
        job.inputs.unit(job.task.stage, job.task.key, name)[0] for name in job.inputs.unit_names(job.task)
    ]
    images = torch.cat([tensors["images"] for tensors in units])
    ipc = job.experiment.init.ipc
    labels = torch.arange(len(images) // ipc).repeat_interleave(ipc)
    yield Output({"images": images, "labels": labels}, meta={"images": len(images), "bytes": images.nbytes})
