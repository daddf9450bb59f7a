"""Stages that make the condensed images: init, recover.

A stage's function is a generator: it yields `Step`s where it can be interrupted and one `Output` at the end.
It reads its inputs through `job.inputs` and touches nothing else.
"""

from collections.abc import Iterator

import torch

from edc_ray.core import init, models, recover
from edc_ray.pipeline.observe import moments_of
from edc_ray.pipeline.types import Job, Output, Step

CLASSES_PER_UNIT = 100  # of init, whose classes are independent


# --- init and recover ---------------------------------------------------------------------------------------


def _classes(job: Job) -> range:
    """Of the unit."""
    first = int(job.unit.removeprefix("classes-"))
    return range(first, min(first + CLASSES_PER_UNIT, job.task.classes))


def run_init(job: Job) -> Iterator[Step | Output]:
    real, exp, classes = job.inputs.real(job.task), job.experiment, _classes(job)
    seeds = (exp.seed, exp.init.seed)
    yield Output(
        {"images": init.initial_images(exp.init.kind, *real.fit_bytes, classes, exp.init.ipc, seeds)}
    )


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
