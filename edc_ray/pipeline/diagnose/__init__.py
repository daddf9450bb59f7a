"""DIAGNOSTICS: looks at how a set is made and at what students learn from it; the stage `diagnose`.

A row's function is a generator like that of a stage. It leaves a table of `table.COLUMNS`: a unit is a group
of the synthesis, or a student.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from edc_ray.core import recover
from edc_ray.pipeline.diagnose import student, synthesis
from edc_ray.pipeline.types import Run, Task


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A row. like: the stage that it does anew, whose fields and inputs it reads."""

    like: str
    units: Callable[[Task], list[str]]
    run: Run


def _groups(task: Task) -> list[str]:
    cfg = task.experiment
    found = recover.cut(cfg.recover, task.classes, cfg.init.ipc)
    return [f"group-{group.index:05d}" for group in found[: cfg.diagnose.groups]]


def _along_synthesis(prepare: synthesis.Prepare) -> Diagnostic:
    return Diagnostic("recover", _groups, partial(synthesis.run, prepare))


def _of_student(run: Run) -> Diagnostic:
    return Diagnostic("evaluate", lambda task: ["student"], run)


DIAGNOSTICS: dict[str, Diagnostic] = {
    "synthesis_sharpness": _along_synthesis(synthesis.sharpness),
    "student_sharpness": _of_student(student.sharpness),
    "gradients": _of_student(student.cosines),
    "initialisation": _along_synthesis(synthesis.progress),
    "landscape": _of_student(student.slices),
    "transport": _along_synthesis(synthesis.transport),
    "class_variance": _along_synthesis(synthesis.class_variance),
    "smoothing": _along_synthesis(synthesis.smoothing),
}
