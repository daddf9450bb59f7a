"""PRESETS: one aligned row per published result or baseline; the last columns are the number to reproduce.

A row is a set of changes to the default Experiment. `edc-ray condense NAME` runs one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edc_ray.config import Experiment, override, unknown

CIFAR_OBSERVERS = [
    "resnet18", "convnet_w128", "mobilenet_v2_half", "wrn_16_2",
    "shufflenet_v2_x0_5", "convnet_d1", "convnet_d2", "convnet_w32",
]  # fmt: skip  # method.md 1.1

_DIGITS = {
    "split.val": 0.3, "squeeze.epochs": 8, "squeeze.augment.flip": False, "squeeze.augment.pad_px": 1,
    "statistics.augment.flip": False, "statistics.augment.pad_px": 1, "recover.flip": False,
    "recover.classes_per_group": 2, "relabel.flip": False, "relabel.page_images": 400,
    "relabel.batch_size": 10, "evaluate.epochs": 100, "evaluate.lr": 3e-3,
}  # fmt: skip
# Settings of the paper's CIFAR-10 tables (method.md 3.3, 5.3); the squeeze is ours, for as many epochs.
_CIFAR10 = {
    "dataset.name": "parquet", "dataset.path": "data/cifar10", "dataset.size_px": 32, "split.val": 0.0,
    "squeeze.observers": CIFAR_OBSERVERS, "squeeze.epochs": 10, "squeeze.augment.pad_px": 4,
    "statistics.augment.pad_px": 4, "statistics.shard_images": 5000,
    "recover.iterations": 75, "recover.crop_min": 0.08, "relabel.crop_min": 0.08, "relabel.batch_size": 25,
    "recover.flatness.kind": "logits", "evaluate.student": "resnet18", "evaluate.epochs": 1000,
}  # fmt: skip


_TABLE_1 = "paper Table 1, ResNet-18"


@dataclass(frozen=True, slots=True)
class Preset:
    """Changes to the default Experiment, and the published top-1 accuracy (a fraction) with its source."""

    changes: Mapping[str, Any]
    target: float | None
    source: str


PRESETS: dict[str, Preset] = {
    "digits/ipc1":       Preset(_DIGITS | {"init.ipc": 1}, None, "real digits, 16 px; nothing published"),
    "digits/ipc2":       Preset(_DIGITS | {"init.ipc": 2}, None, "real digits, 16 px; nothing published"),
    "edc/cifar10/ipc1":  Preset(_CIFAR10 | {"init.ipc": 1, "relabel.batch_size": 10}, 0.326, _TABLE_1),
    "edc/cifar10/ipc10": Preset(_CIFAR10 | {"init.ipc": 10}, 0.791, _TABLE_1),
    "edc/cifar10/ipc50": Preset(_CIFAR10 | {"init.ipc": 50}, 0.870, _TABLE_1),
}  # fmt: skip


def experiment(name: str | None) -> Experiment:
    """The experiment of a preset; None = the defaults.

    Raises:
        ConfigError: no such preset (with near matches).
    """
    if name is None:
        return Experiment()
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return override(Experiment(), PRESETS[name].changes)
