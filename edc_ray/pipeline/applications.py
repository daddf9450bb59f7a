"""APPLICATIONS: what a condensed set is used for, as units of the stage "apply".

A unit is one training, or one run of trainings; its facts are `rows`: (series, x, accuracy), read on val or
test. To add one, write a row: what it reads, its units, and the function that runs one.
"""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edc_ray import config
from edc_ray.config import ConfigError, Evaluate, Experiment, Squeeze
from edc_ray.core import fit, models, relabel, train
from edc_ray.core.applications import continual, nas, robustness, slimming
from edc_ray.core.random import seed_of
from edc_ray.core.squeeze import fit_observer
from edc_ray.pipeline.judge import evaluate_inputs, evaluate_reads, hard, label, pages, student_of, unlabelled
from edc_ray.pipeline.types import Job, Names, Output, Run, Step, Task, finite, unit_of

if TYPE_CHECKING:
    from edc_ray.pipeline.worker import Judge

Rows = list[tuple[str, float, float]]


@dataclass(frozen=True, slots=True)
class Application:
    """A row of APPLICATIONS.

    reads, inputs: as of a Stage, beside `apply` itself. builds: the networks that learn. units: their names.
    check: refuses what the experiment, with so many classes, does not allow. axes: what x and the value of a
    row are. note: what the paper reports, and of which setting.
    """

    reads: Names
    inputs: Names
    builds: Names
    units: Callable[[Task], tuple[str, ...]]
    run: Run
    check: Callable[[Experiment, int], None]
    axes: tuple[str, str]
    note: str


def _output(job: Job, rows: Rows, **facts: object) -> Output:
    judge = job.inputs.judge(job.task)
    return Output(meta={"rows": rows, "split": judge.split, "judged": len(judge.images), **facts})


# --- networks that learn on the set, or on everything -------------------------------------------------------

_STARTS = ("observers", "weights", "checkpoint_epoch")  # fields of Squeeze that are about observers alone
_TRAINING = tuple(f"squeeze.{field.name}" for field in fields(Squeeze) if field.name not in _STARTS)
_LOOKS = ("reports", "report_epochs", "select")  # fields of Evaluate that are about looks while it learns
_RECIPE = tuple(f"evaluate.{f.name}" for f in fields(Evaluate) if f.name not in ("student", *_LOOKS))


def _student(experiment: Experiment) -> tuple[str, ...]:
    return (experiment.evaluate.student,)


def _recipe_reads(experiment: Experiment) -> tuple[str, ...]:
    """As of `evaluate`, without its network."""
    return *_RECIPE, *(path for path in evaluate_reads(experiment) if path != "evaluate")


def _on_all(experiment: Experiment) -> bool:
    return experiment.apply.images == "all"


def _learning_reads(experiment: Experiment) -> tuple[str, ...]:
    if _on_all(experiment):
        return "split", *_TRAINING, "evaluate.seeds", "precision"
    return _recipe_reads(experiment)


def _learning_inputs(experiment: Experiment) -> tuple[str, ...]:
    return ("ingest",) if _on_all(experiment) else evaluate_inputs(experiment)


def _taught(job: Job, model: nn.Module) -> Generator[Step, None, nn.Module]:
    """The network, trained on the set as students are; frozen."""
    student = student_of(job, model)
    for step in student.advance(pages(job, student.step, student.total), student.total):
        yield Step(step, student.total, student.pack)
    return student.averaged()


def _learned(job: Job, name: str, model: nn.Module) -> Generator[Step, None, nn.Module]:
    """The network, trained on the set, or on everything as observers are; frozen."""
    if not _on_all(job.experiment):
        return (yield from _taught(job, model))
    cfg, real = replace(job.experiment.squeeze, checkpoint_epoch=None), job.inputs.real(job.task)
    (seed,) = job.experiment.evaluate.seeds
    model.to(real.fit.device)
    for epoch, pack in fit_observer(cfg, model, real.fit, real.fit_labels, (seed, name), job.saved):
        yield Step(epoch, cfg.epochs, pack)
    return model.eval().requires_grad_(False)


def _check_learning(experiment: Experiment, classes: int) -> None:
    if _on_all(experiment) and experiment.squeeze.epochs == 0:
        legal = "must be >= 1: networks are to learn on all training images (apply.images)"
        raise ConfigError("squeeze.epochs", 0, legal)


# --- robustness ---------------------------------------------------------------------------------------------


def _robustness_reads(experiment: Experiment) -> tuple[str, ...]:
    return "evaluate.student", *_learning_reads(experiment)


def _run_robustness(job: Job) -> Iterator[Step | Output]:
    cfg, real, judge = job.experiment.apply, job.inputs.real(job.task), job.inputs.judge(job.task)
    (seed,), name = job.experiment.evaluate.seeds, job.experiment.evaluate.student
    model = models.build(name, len(real.classes), real.size, seed_of("student", seed))
    model = yield from _learned(job, name, model)
    boxes = [robustness.Box(real.mean, real.std, epsilon) for epsilon in cfg.epsilon]
    told = robustness.accuracies(model, judge.images, judge.labels, boxes, cfg.pgd_steps, cfg.pgd_step, seed)
    yield _output(job, told)


def _check_robustness(experiment: Experiment, classes: int) -> None:
    _check_learning(experiment, classes)
    epsilon = experiment.apply.epsilon
    if not epsilon or list(epsilon) != sorted(set(epsilon)) or epsilon[0] == 0:
        raise ConfigError("apply.epsilon", epsilon, "needs at least one number > 0, and must increase")


# --- architecture search ------------------------------------------------------------------------------------


def networks(experiment: Experiment) -> tuple[str, ...]:
    """Those that `nas` ranks."""
    asked = experiment.apply.networks
    return tuple(nas.SPACE) if asked is None else asked


def _run_nas(job: Job) -> Iterator[Step | Output]:
    """One architecture, trained from scratch."""
    name = next(name for name in networks(job.experiment) if unit_of(name) == job.unit)
    real, judge, (seed,) = (
        job.inputs.real(job.task),
        job.inputs.judge(job.task),
        job.experiment.evaluate.seeds,
    )
    model = nas.build(name, len(real.classes), real.size, seed_of("nas", seed, name))
    model = yield from _learned(job, name, model)
    logits = finite(fit.predict(model, judge.images, job.inputs.runtime.forward_images), name)
    yield _output(job, [(name, 0.0, fit.top1(logits, judge.labels))])


def _check_nas(experiment: Experiment, classes: int) -> None:
    _check_learning(experiment, classes)
    names = networks(experiment)
    if len(names) < 3 or len(set(names)) < len(names):
        raise ConfigError(
            "apply.networks", names, "needs at least three networks, each once: ranks are compared"
        )
    for i, name in enumerate(names):
        if name not in nas.SPACE:
            where = f"apply.networks.{i}"
            models.check(where, name, classes, experiment.dataset.size_px, matched=False)


# --- class-incremental learning -----------------------------------------------------------------------------


def _continual_reads(experiment: Experiment) -> tuple[str, ...]:
    own = ("init.ipc", "squeeze.observers") if experiment.apply.memory == "herding" else ()
    return "relabel", *own, "evaluate.student", *_recipe_reads(experiment)


def _continual_inputs(experiment: Experiment) -> tuple[str, ...]:
    """The labels are made for the memory of each step: mixed images are of the classes seen."""
    herding = experiment.apply.memory == "herding"
    observers = () if hard(experiment) and not herding else ("squeeze",)
    return "ingest", *observers, *(() if herding else ("recover",))


def _counts(task: Task) -> tuple[str, ...]:
    """Each number of classes that some run has seen after a step; runs share what they have in common."""
    steps = task.experiment.apply.steps
    found = {count for each in steps for count in continual.seen_after(task.classes, each)}
    return tuple(f"classes-{count:05d}" for count in sorted(found))


def _run_continual(job: Job) -> Iterator[Step | Output]:
    """One network, for so many classes seen; a row for each run that comes by there."""
    count, (seed,) = int(job.unit.removeprefix("classes-")), job.experiment.evaluate.seeds
    judge, classes = job.inputs.judge(job.task), job.task.classes
    seen = continual.arrival(classes, seed)[:count]
    images, labels = _memory(job, seen)
    truth = continual.relabelled(judge.labels, seen)
    student = _student_of_memory(job, images, continual.relabelled(labels, seen), count)
    for step in student.advance(_memory_pages(job, student, seen), student.total):
        yield Step(step, student.total, student.pack)
    ids = (truth >= 0).nonzero()[:, 0]
    logits = student.predict(judge.images.subset(ids.cpu()), job.inputs.runtime.forward_images)
    accuracy = fit.top1(finite(logits, f"the student of {count} classes"), truth[ids])
    runs = [n for n in job.experiment.apply.steps if count in continual.seen_after(classes, n)]
    yield _output(job, [(f"{n} steps", float(count), accuracy) for n in runs])


def _memory(job: Job, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images of the classes seen, class by class, and their labels: of the set, or real ones."""
    if job.experiment.apply.memory == "set":
        images, labels = job.inputs.start_images(job.task)
        mine = torch.isin(labels, seen.to(labels.device))
        return images[mine], labels[mine]
    real = job.inputs.real(job.task)
    ids = torch.cat([_herded(job, name) for name in sorted(seen.tolist())])
    return real.fit[ids], real.fit_labels[ids.to(real.fit_labels.device)]


def _herded(job: Job, name: int) -> Tensor:
    """Positions in fit of the real images that stand for the mean of their class; kept for the next unit."""
    cfg, ipc = job.experiment.squeeze, job.experiment.init.ipc
    what = "herding", dict(job.task.inputs)["squeeze"], cfg.observers[0], str(ipc)
    known = job.inputs.keep(dict[int, Tensor], *what)
    if name not in known:
        real, together = job.inputs.real(job.task), job.inputs.runtime.forward_images
        ids = (real.fit_labels == name).nonzero()[:, 0].cpu()
        observer = job.inputs.observers(job.task)[cfg.observers[0]]
        known[name] = ids[continual.herding(fit.features(observer, real.fit.subset(ids), together), ipc)]
    return known[name]


def _student_of_memory(job: Job, images: Tensor, labels: Tensor, classes: int) -> train.Student:
    exp, real = job.experiment, job.inputs.real(job.task)
    seed = seed_of("student", *exp.evaluate.seeds)
    model = models.build(exp.evaluate.student, classes, real.size, seed).to(images.device)
    return train.Student(exp, model, images, labels, (real.mean, real.std), job.saved)


def _memory_pages(job: Job, student: train.Student, seen: Tensor) -> Iterator[relabel.Page]:
    """Labels of the classes seen alone; the observers know the others too."""
    steps = relabel.page_steps(job.experiment.relabel)
    make = unlabelled if hard(job.experiment) else label
    for page in range(student.step // steps, math.ceil(student.total / steps)):
        made = make(job, student.images, page)
        yield replace(made, logits=continual.cut(made.logits, seen))


def _check_continual(experiment: Experiment, classes: int) -> None:
    steps = experiment.apply.steps
    if not steps or len(set(steps)) < len(steps) or max(steps) > classes:
        legal = f"needs at least one number, each once, and none larger than the {classes} classes"
        raise ConfigError("apply.steps", steps, legal)
    fewest = min(continual.seen_after(classes, each)[0] for each in steps)
    size_px, student = experiment.dataset.size_px, experiment.evaluate.student
    models.check("evaluate.student", student, fewest, size_px, matched=False)


# --- slimming -----------------------------------------------------------------------------------------------


def sparse_reads(experiment: Experiment) -> tuple[str, ...]:
    recipe = (path for path in _TRAINING if path != "squeeze.epochs")
    return "split", *recipe, "apply.network", "apply.l1", "apply.epochs", "evaluate.seeds", "precision"


def run_sparse(job: Job) -> Iterator[Step | Output]:
    """The network that is to be cut, trained on all training images with L1 on the scales of BatchNorm.

    One for each seed of the students: what it is like is part of their spread.
    """
    cfg, real, (seed,) = job.experiment.apply, job.inputs.real(job.task), job.experiment.evaluate.seeds
    squeeze = replace(job.experiment.squeeze, epochs=cfg.epochs, checkpoint_epoch=None)
    seeds = seed, f"sparse/{cfg.network}"
    model = models.build(cfg.network, len(real.classes), real.size, seed_of("squeeze", *seeds))
    model.to(real.fit.device)
    steps = fit_observer(
        squeeze, model, real.fit, real.fit_labels, seeds, job.saved,
        lambda model: cfg.l1 * slimming.penalty(model),
    )  # fmt: skip
    for epoch, pack in steps:
        yield Step(epoch, squeeze.epochs, pack)
    yield Output(dict(model.state_dict()))


def _slimming_inputs(experiment: Experiment) -> tuple[str, ...]:
    return *evaluate_inputs(experiment), "sparse"


def _shares(experiment: Experiment) -> tuple[float, ...]:
    """Those that are asked for; and all of the network, as it is."""
    kept = experiment.apply.kept
    return kept if 1.0 in kept else (*kept, 1.0)


def _share(kept: float) -> str:
    return f"kept-{round(1000 * kept):04d}"


def _run_slimming(job: Job) -> Iterator[Step | Output]:
    """One share of the channels: cut, then trained further on the images, as students are."""
    exp, real, judge = job.experiment, job.inputs.real(job.task), job.inputs.judge(job.task)
    kept = next(share for share in _shares(exp) if _share(share) == job.unit)
    model = models.build(exp.apply.network, len(real.classes), real.size, 0)
    model.load_state_dict(job.inputs.unit("sparse", dict(job.task.inputs)["sparse"], "network")[0])
    keep = slimming.masks(model, kept)
    model = slimming.prune(model, keep).to(real.fit.device)
    size = {"channels": sum(slimming.sizes(keep)), "parameters": sum(map(Tensor.numel, model.parameters()))}
    rows: Rows = [("cut", kept, _accuracy(job, model.eval(), judge))]
    if kept in exp.apply.kept:
        model = yield from _taught(job, model)
        rows.append(("fine-tuned", kept, _accuracy(job, model, judge)))
    yield _output(job, rows, **size)


def _accuracy(job: Job, model: nn.Module, judge: "Judge") -> float:
    logits = fit.predict(model, judge.images, job.inputs.runtime.forward_images)
    return fit.top1(finite(logits, job.unit), judge.labels)


def _check_slimming(experiment: Experiment, classes: int) -> None:
    cfg, size_px = experiment.apply, experiment.dataset.size_px
    models.check("apply.network", cfg.network, classes, size_px, matched=False)
    if not slimming.is_chain(models.skeleton(cfg.network, classes, size_px)):
        legal = "must be a chain of convolutions, each with a BatchNorm, and a linear layer, as vgg11_bn"
        raise ConfigError("apply.network", cfg.network, legal)
    units = list(map(_share, _shares(experiment)))
    if not cfg.kept or units != sorted(set(units)):
        raise ConfigError(
            "apply.kept", cfg.kept, "needs at least one share, and must increase by 0.001 or more"
        )


APPLICATIONS: dict[str, Application] = {
    "robustness": Application(
        _robustness_reads, _learning_inputs, _student, lambda task: ("student",),
        _run_robustness, _check_robustness, ("epsilon", "accuracy"),
        "DD-RobustBench, Tiny-ImageNet, IPC 50, in % (MTT / SRe2L / EDC): clean 26.16 / 43.24 / 57.21, "
        "FGSM 1.82 / 5.73 / 12.39, PGD 0.41 / 2.70 / 10.71 (its Table 24)",
    ),
    "nas": Application(
        _learning_reads, _learning_inputs, networks,
        lambda task: tuple(map(unit_of, networks(task.experiment))),
        _run_nas, _check_nas, ("", "accuracy"), "no numbers of its own on architecture search",
    ),
    "continual": Application(
        _continual_reads, _continual_inputs, _student,
        _counts, _run_continual, _check_continual, ("classes", "accuracy"),
        "ImageNet-1k, ResNet-18, 200 to 1,000 classes: curves only, EDC above SRe2L and G-VBSM (Figure 4)",
    ),
    "slimming": Application(
        _recipe_reads, _slimming_inputs, lambda experiment: (experiment.apply.network,),
        lambda task: tuple(map(_share, _shares(task.experiment))),
        _run_slimming, _check_slimming, ("kept", "accuracy"),
        "VGG11-BN, ImageNet-1k, accuracy in % (SRe2L / EDC): IPC 10 12.5 / 25.0, IPC 50 31.7 / 47.1 (bar "
        "labels of Figure 4, in reading order; the share that is kept is not said)",
    ),
}  # fmt: skip


def check_application(experiment: Experiment, classes: int) -> None:
    """Refuse what the chosen application does not allow.

    Raises:
        ConfigError: names the field, its value and what is legal.
    """
    if experiment.apply.name not in APPLICATIONS:
        raise config.unknown("apply.name", experiment.apply.name, APPLICATIONS)
    APPLICATIONS[experiment.apply.name].check(experiment, classes)
