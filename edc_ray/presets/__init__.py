"""PRESETS: one aligned row per published result or baseline; the last columns are the number to reproduce.

A row is a set of changes to the default Experiment. `edc-ray condense NAME` runs one, `edc-ray presets` lists
them, docs/presets.md has the whole table and what differs between the versions of one result.
"""

import fnmatch
import functools

from edc_ray.config import ConfigError, Experiment, override, unknown
from edc_ray.presets.baselines import BASELINES, LADDER
from edc_ray.presets.edc import EDC, STUDENTS, STUDENTS_224, STUDENTS_SMALL
from edc_ray.presets.table import CIFAR_OBSERVERS, Measured, Preset

__all__ = ["CIFAR_OBSERVERS", "PRESETS", "Measured", "Preset", "experiment", "find", "students"]

_DIGITS = {
    "split.val": 0.3, "squeeze.epochs": 8, "squeeze.augment.flip": False, "squeeze.augment.pad_px": 1,
    "statistics.augment.flip": False, "statistics.augment.pad_px": 1, "recover.flip": False,
    "recover.classes_per_group": 2, "relabel.flip": False, "relabel.page_images": 400,
    "relabel.batch_size": 10, "evaluate.epochs": 100, "evaluate.lr": 3e-3,
}  # fmt: skip

PRESETS: dict[str, Preset] = {
    "digits/ipc1": Preset(_DIGITS | {"init.ipc": 1}, None, "real digits, 16 px; nothing published"),
    "digits/ipc2": Preset(_DIGITS | {"init.ipc": 2}, None, "real digits, 16 px; nothing published"),
    **EDC,
    **LADDER,
    **BASELINES,
}  # fmt: skip


@functools.cache
def experiment(name: str | None) -> Experiment:
    """The experiment of a preset; None = the defaults.

    Raises:
        ConfigError: no such preset (with near matches).
    """
    if name is None:
        return Experiment()
    if name not in PRESETS:
        raise _unknown(name)
    return override(Experiment(), PRESETS[name].changes)


def find(pattern: str | None) -> dict[str, Preset]:
    """The presets whose name has the pattern in it, or matches it as a shell pattern; None = all.

    Raises:
        ConfigError: there is none (with near matches).
    """
    found = {
        name: preset
        for name, preset in PRESETS.items()
        if pattern is None or pattern in name or fnmatch.fnmatchcase(name, pattern)
    }
    if not found:
        raise _unknown(str(pattern))
    return found


def _unknown(name: str) -> ConfigError:
    error = unknown("preset", name, PRESETS)
    if error.legal.startswith("unknown; did"):
        return error
    return ConfigError("preset", name, f"unknown; `edc-ray presets` lists the {len(PRESETS)} that there are")


def students(name: str) -> dict[str, float]:
    """Published accuracies (fractions) of other students than the preset's own on its images."""
    numbers = STUDENTS.get(name, ())
    order = STUDENTS_224 if "/imagenet" in name else STUDENTS_SMALL
    return {student: value / 100 for student, value in zip(order, numbers, strict=False)}
