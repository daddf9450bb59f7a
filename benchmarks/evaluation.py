"""P3: steps of a student with inline labels against the bare student and the bare teachers.

    python benchmarks/evaluation.py [--device cuda] [--repeats 2] [--json OUT]

    cifar10   edc/cifar10/ipc10: ResNet-18, labels of eight observers, batch 25      goal <= 1.15
    small     the same recipe with the networks of the CPU ladder                    told

Ours is the evaluate stage as a worker runs it: views drawn and applied, labels, student, averaged weights,
without the reading of accuracy. Bare: a forward of every teacher on ready pixels, in the same chunks, and
forward, backward and optimiser of the student on ready pixels and labels. Told besides: against teachers that
see one student batch at a time. All networks are drawn at random. On a CPU a page of the large networks has
two steps instead of 81, so that a timing takes seconds.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import torch
from torch import Tensor, nn

from benchmarks import common
from edc_ray import presets
from edc_ray.config import Evaluate, Experiment, Relabel, Runtime, Split, Squeeze
from edc_ray.core import fit, heap, losses, models, relabel, train, views
from edc_ray.core.data import Pixels
from edc_ray.pipeline import Task
from edc_ray.pipeline.judge import run_evaluate
from edc_ray.pipeline.types import Job
from edc_ray.pipeline.worker import Judge, Real

PRESET = "edc/cifar10/ipc10"
SMALL = ("convnet_w32", "resnet10_w8", "vgg5_w16", "convnet_w16_d2")  # the first is the student, too
CPU_PAGE = 50  # images of a page of the large networks
CLASSES, IMAGES, SIZE = 10, 100, 32
GOAL = 1.15


def experiments(device: torch.device) -> dict[str, Experiment]:
    """By the name of their rows. No accuracy is read before the end, which is never reached."""
    changes = presets.PRESETS[PRESET].changes

    def section(name: str) -> dict[str, Any]:
        named = (path for path in changes if path.startswith(f"{name}."))
        return {path.removeprefix(f"{name}."): changes[path] for path in named}

    large = Experiment(
        split=Split(val=0.0), squeeze=Squeeze(observers=tuple(section("squeeze")["observers"])),
        relabel=Relabel(**section("relabel")),
        evaluate=Evaluate(**section("evaluate") | {"seeds": (0,), "epochs": 100_000, "reports": 1}),
    )  # fmt: skip
    small = replace(
        large, squeeze=Squeeze(observers=SMALL), evaluate=replace(large.evaluate, student=SMALL[0])
    )
    if device.type == "cpu":
        large = replace(large, relabel=replace(large.relabel, page_images=CPU_PAGE))
    return {"cifar10": large, "small": small}


@dataclass(frozen=True, slots=True)
class Given:
    """What the stage asks its inputs for: condensed images of noise, teachers drawn at random."""

    experiment: Experiment
    device: torch.device
    teachers: dict[str, nn.Module]
    images: Tensor
    runtime: Runtime

    @classmethod
    def of(cls, exp: Experiment, device: torch.device) -> "Given":
        made = {name: models.build(name, CLASSES, SIZE, name) for name in exp.squeeze.observers}
        teachers = {name: net.to(device).eval().requires_grad_(False) for name, net in made.items()}
        noise = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        return cls(exp, device, teachers, noise.to(device), Runtime(device=device.type))

    def real(self, task: Task) -> Real:
        nothing = Pixels(lambda rows: rows, torch.arange(0), *self.pixels, self.device)
        labels = torch.arange(0)
        names = tuple(map(str, range(CLASSES)))
        return Real(nothing, labels, *self.pixels, names, SIZE)

    def judge(self, task: Task) -> Judge:
        nothing = Pixels(lambda rows: rows, torch.arange(0), *self.pixels, self.device)
        return Judge(nothing, torch.arange(0), "test")

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (0.5,) * 3, (0.25,) * 3

    def observers(self, task: Task) -> dict[str, nn.Module]:
        return self.teachers

    def start_images(self, task: Task) -> tuple[Tensor, Tensor]:
        return self.images, torch.arange(IMAGES, device=self.device) % CLASSES

    def label_tables(self, task: Task, pages: Sequence[str]) -> Iterator[None]:
        """Inline."""
        return repeat(None, len(pages))


def ours(given: Given) -> Callable[[], object]:
    """A call is one page of the evaluate stage."""
    exp = given.experiment
    task = Task("evaluate", exp, "key", (("relabel", "key"),), CLASSES, 0)
    steps = run_evaluate(Job(task, "student", given, None, (), 1.0))  # type: ignore[arg-type]
    return lambda: list(islice(steps, relabel.page_steps(exp.relabel)))


def bare(given: Given) -> dict[str, Callable[[], object]]:
    """The parts of as many steps on ready tensors."""
    exp, cfg, (images, classes) = given.experiment, given.experiment.evaluate, given.start_images(None)
    page = relabel.label_page(exp.relabel, list(given.teachers.values()), images, given.pixels, 0, 0)
    student = models.build(cfg.student, CLASSES, SIZE, "student").to(given.device).train()
    optimizer = train.OPTIMIZERS[cfg.optimizer](fit.parameter_groups(student, cfg.weight_decay), cfg)
    pixels = [views.apply(view, images, given.pixels) for view in page.views]
    soft = [logits.to(given.device).float() for logits in page.logits]
    hard = [classes[view.ids.to(given.device)] for view in page.views]

    def learn() -> None:
        for batch, logits, target in zip(pixels, soft, hard, strict=True):
            optimizer.zero_grad()
            losses.student_loss(cfg, student(batch), logits, target).backward()
            optimizer.step()

    @torch.no_grad()
    def teach() -> None:
        for teacher in given.teachers.values():
            for chunk in together:
                teacher(chunk)

    together = torch.cat(pixels).split(given.runtime.forward_images)
    return {"student": learn, "teachers": teach}


def rows(name: str, exp: Experiment, repeats: int, device: torch.device) -> list[common.Row]:
    given = Given.of(exp, device)
    found = common.interleaved({"ours": ours(given)} | bare(given), repeats, device)
    whole = [sum(parts) for parts in zip(found["student"], found["teachers"], strict=True)]
    steps, goal = relabel.page_steps(exp.relabel), GOAL if name == "cifar10" else None
    told = {"ours": found["ours"], "bare student": found["student"], "bare teachers": found["teachers"]}
    return [
        common.Row(f"{name}: ours / bare", common.ratios(found["ours"], whole), goal),
        *(common.Row(f"{name}: {side}", [1000 * s / steps for s in values], unit="ms a step")
          for side, values in told.items()),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__, repeats=2).parse_args(argv)
    device = common.begin(args)
    heap.keep_freed()  # as a worker does
    found = [rows(name, exp, args.repeats, device) for name, exp in experiments(device).items()]
    return common.finish(args, [row for part in found for row in part])


if __name__ == "__main__":
    sys.exit(main())
