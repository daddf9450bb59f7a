"""EDC (arXiv 2404.13733) in three versions: `fixed` (the plain name), `paper` and `official`.

fixed: what the paper intends, without the defects of its code, on observers that are trained to the end.
paper: its appendix, and Eq. 5 to 7 as written. Where it says nothing: the script's choice, but no B-row.
official: the values of the shipped scripts, with what method.md 6 found in the code.

What a block does not say is Experiment's default, which are method.md's values: Adam(.5, .9) with 0.05, r =
0.01, alpha = .5, first multiplier 10, m = 0.8, flatness .25/.99/4, MSE + 0.025 CE, AdamW 1e-3, cos zeta 2,
CutMix, crops of at least half the image. `presets.WHY` gives the reason of each difference between versions.
"""

from typing import Any

from edc_ray.presets.table import (
    ALEXNET,
    CIFAR_10,
    CIFAR_100,
    CIFAR_OBSERVERS,
    EFF_B0,
    IMAGENET_1K,
    IMAGENET_10,
    IPC_1,
    IPC_10,
    IPC_50,
    LONG_SQUEEZE,
    MBV2,
    R18,
    SHUFFLE,
    TINY,
    Preset,
)

Changes = dict[str, Any]


def _looks(every: int, epochs: int, first: int = 0) -> list[int]:
    """The epochs after which the official code reads test: indices first, first + every, ... and the last."""
    return [*range(first + 1, epochs, every), epochs]


# --- what all datasets share --------------------------------------------------------------------------------

_FIXED: Changes = {
    "recover.iterations": 2000, "recover.group_images": 100, "recover.flatness.kind": "logits",
    "evaluate.epochs": 1000, "evaluate.ema_rate": 0.99,
}  # fmt: skip
_RAND = {"relabel.randaugment_ops": 2, "relabel.randaugment_magnitude": 9}
_RDED = {"init.kind": "rded", "init.factor": 2}  # mipc 300 and 5 crops are the defaults

_PAPER: Changes = {
    "recover.matching.class_form": "per_class",
    "evaluate.ema_bias_correction": False, "evaluate.ema_buffers": False,
}  # fmt: skip
_DRAW_AGAIN = {"init.replacement": True}
_POOL = {"init.pool": 50}

_OFFICIAL: Changes = {
    "statistics.conv_variance": "per_batch",
    "recover.matching.class_form": "within_image", "recover.matching.bias_correction": False,
    "recover.matching.reset": False, "recover.flatness.kind": "none", "recover.format": "uint8_truncated",
    "evaluate.ema_bias_correction": False, "evaluate.ema_buffers": False,
    "quirks.swap_class_patch": True, "quirks.verifier_updates": True,
}  # fmt: skip
_JPEG = {"recover.format": "jpeg"}  # of Pillow's default quality, ours too
_SGD = {
    "evaluate.optimizer": "sgd", "evaluate.lr": 0.1, "evaluate.momentum": 0.875,
    "evaluate.weight_decay": 5e-4,
}  # fmt: skip
_SQUEEZE_50 = {
    "squeeze.epochs": 50, "squeeze.batch_size": 64, "squeeze.lr": 0.05, "squeeze.schedule": "constant",
    "squeeze.weight_decay": 0.0, "squeeze.clip_norm": 5.0,
}  # fmt: skip

# --- CIFAR-10 -----------------------------------------------------------------------------------------------

C10 = CIFAR_10 | _FIXED | LONG_SQUEEZE | _RAND | {
    "squeeze.observers": CIFAR_OBSERVERS, "recover.iterations": 75,
    "recover.group_images": None, "recover.classes_per_group": 10,  # all images are one batch
    "relabel.batch_size": 25, "evaluate.schedule": "multistep",
}  # fmt: skip
C10_PAPER = C10 | _PAPER | _DRAW_AGAIN | _SQUEEZE_50 | {"squeeze.epochs": 10}
C10_OFFICIAL = C10 | _OFFICIAL | _DRAW_AGAIN | _SQUEEZE_50 | _JPEG | {
    "dataset.normalization": "cifar100",
    "squeeze.epochs": 5, "squeeze.checkpoint_epoch": 1,
    "recover.crop_min": 0.08, "relabel.crop_min": 0.08, "evaluate.report_epochs": _looks(10, 1000, 810),
}  # fmt: skip
_ALL_10 = IPC_1 | {"relabel.batch_size": 10}  # the ten images are one batch

# --- CIFAR-100 ----------------------------------------------------------------------------------------------

C100 = CIFAR_100 | _FIXED | LONG_SQUEEZE | _RAND | {
    "squeeze.observers": CIFAR_OBSERVERS, "relabel.batch_size": 50,
}  # fmt: skip
C100_PAPER = C100 | _PAPER | _DRAW_AGAIN | _SQUEEZE_50
C100_OFFICIAL = C100 | _OFFICIAL | _DRAW_AGAIN | _SQUEEZE_50 | _SGD | {
    "squeeze.checkpoint_epoch": 41, "recover.group_images": 25,
    "relabel.observers": CIFAR_OBSERVERS[:5],
    "evaluate.schedule": "ssrs", "evaluate.report_epochs": _looks(100, 1000),
}  # fmt: skip

# --- Tiny-ImageNet ------------------------------------------------------------------------------------------

TIN = TINY | _FIXED | LONG_SQUEEZE | _RAND | {
    "squeeze.observers": CIFAR_OBSERVERS[:5], "relabel.batch_size": 100, "evaluate.epochs": 300,
}  # fmt: skip
_TIN_SQUEEZE = {
    "squeeze.epochs": 50, "squeeze.batch_size": 128, "squeeze.lr": 0.1, "squeeze.weight_decay": 0.0,
    "squeeze.clip_norm": None,
}  # fmt: skip
TIN_PAPER = TIN | _PAPER | _DRAW_AGAIN | _TIN_SQUEEZE | {
    "squeeze.observers": ["resnet18", "mobilenet_v2_half", "shufflenet_v2_x0_5", EFF_B0],
}  # fmt: skip
TIN_OFFICIAL = TIN | _OFFICIAL | _DRAW_AGAIN | _TIN_SQUEEZE | _SGD | {
    "squeeze.checkpoint_epoch": 41, "recover.group_images": 25, "quirks.double_conv_targets": True,
    "evaluate.report_epochs": _looks(30, 300),
}  # fmt: skip
_TIN_1 = IPC_1 | {"evaluate.epochs": 1000}
_TIN_1_OFFICIAL = _TIN_1 | {"evaluate.report_epochs": _looks(30, 1000)}

# --- ImageNet-10 --------------------------------------------------------------------------------------------
# 13,000 images: more epochs than elsewhere for observers from scratch.

IN10 = IMAGENET_10 | _FIXED | LONG_SQUEEZE | _RAND | _RDED | {
    "squeeze.observers": [R18, MBV2, SHUFFLE, EFF_B0], "squeeze.epochs": 100, "relabel.batch_size": 50,
}  # fmt: skip
_IN10_SQUEEZE = {
    "squeeze.epochs": 20, "squeeze.batch_size": 128, "squeeze.lr": 0.01, "squeeze.zeta": 3.0,
    "squeeze.weight_decay": 0.0, "squeeze.clip_norm": None,
}  # fmt: skip
IN10_PAPER = IN10 | _PAPER | _IN10_SQUEEZE
IN10_OFFICIAL = IN10 | _OFFICIAL | _POOL | _IN10_SQUEEZE | _JPEG | {
    "squeeze.weights": "torchvision", "recover.observers": [R18, MBV2, SHUFFLE], "recover.iterations": 50,
    "recover.matching.momentum": 0.0, "statistics.batch_size": 256, "quirks.alphabetical_init": True,
    "evaluate.schedule": "ssrs", "evaluate.report_epochs": _looks(30, 1000),
}  # fmt: skip

# --- ImageNet-1k --------------------------------------------------------------------------------------------

IN1K = IMAGENET_1K | _FIXED | _RDED | {
    "squeeze.observers": [R18, MBV2, EFF_B0, SHUFFLE, ALEXNET], "recover.group_images": 80,
    "recover.matching.weight": 0.1, "relabel.observers": [R18, MBV2, SHUFFLE, ALEXNET],
    "relabel.batch_size": 100, "evaluate.epochs": 300,
}  # fmt: skip
IN1K_PAPER = IN1K | _PAPER
IN1K_OFFICIAL = IN1K | _OFFICIAL | _POOL | _JPEG | {
    "statistics.batch_size": 256, "recover.iterations": 1000, "recover.group_images": 20,
    "quirks.verifier_updates": False, "quirks.double_conv_targets": True,
    "evaluate.schedule": "linear", "evaluate.report_epochs": _looks(30, 300),
}  # fmt: skip

# --- the rows -----------------------------------------------------------------------------------------------

_T1 = "paper Table 1"

EDC: dict[str, Preset] = {
    # name                                      changes                              published  measured
    "edc/cifar10/ipc1":                  Preset(C10           | _ALL_10,             0.326, _T1, None),
    "edc/cifar10/ipc1/paper":            Preset(C10_PAPER     | _ALL_10,             0.326, _T1, None),
    "edc/cifar10/ipc1/official":         Preset(C10_OFFICIAL  | _ALL_10,             0.326, _T1, None),
    "edc/cifar10/ipc10":                 Preset(C10           | IPC_10,              0.791, _T1, None),
    "edc/cifar10/ipc10/paper":           Preset(C10_PAPER     | IPC_10,              0.791, _T1, None),
    "edc/cifar10/ipc10/official":        Preset(C10_OFFICIAL  | IPC_10,              0.791, _T1, None),
    "edc/cifar10/ipc50":                 Preset(C10           | IPC_50,              0.870, _T1, None),
    "edc/cifar10/ipc50/paper":           Preset(C10_PAPER     | IPC_50,              0.870, _T1, None),
    "edc/cifar10/ipc50/official":        Preset(C10_OFFICIAL  | IPC_50,              0.870, _T1, None),
    "edc/cifar100/ipc1":                 Preset(C100          | IPC_1,               0.397, _T1, None),
    "edc/cifar100/ipc1/paper":           Preset(C100_PAPER    | IPC_1,               0.397, _T1, None),
    "edc/cifar100/ipc1/official":        Preset(C100_OFFICIAL | IPC_1,               0.397, _T1, None),
    "edc/cifar100/ipc10":                Preset(C100          | IPC_10,              0.637, _T1, None),
    "edc/cifar100/ipc10/paper":          Preset(C100_PAPER    | IPC_10,              0.637, _T1, None),
    "edc/cifar100/ipc10/official":       Preset(C100_OFFICIAL | IPC_10,              0.637, _T1, None),
    "edc/cifar100/ipc50":                Preset(C100          | IPC_50,              0.686, _T1, None),
    "edc/cifar100/ipc50/paper":          Preset(C100_PAPER    | IPC_50,              0.686, _T1, None),
    "edc/cifar100/ipc50/official":       Preset(C100_OFFICIAL | IPC_50,              0.686, _T1, None),
    "edc/tiny_imagenet/ipc1":            Preset(TIN           | _TIN_1,              0.392, _T1, None),
    "edc/tiny_imagenet/ipc1/paper":      Preset(TIN_PAPER     | _TIN_1,              0.392, _T1, None),
    "edc/tiny_imagenet/ipc1/official":   Preset(TIN_OFFICIAL  | _TIN_1_OFFICIAL,     0.392, _T1, None),
    "edc/tiny_imagenet/ipc10":           Preset(TIN           | IPC_10,              0.512, _T1, None),
    "edc/tiny_imagenet/ipc10/paper":     Preset(TIN_PAPER     | IPC_10,              0.512, _T1, None),
    "edc/tiny_imagenet/ipc10/official":  Preset(TIN_OFFICIAL  | IPC_10,              0.512, _T1, None),
    "edc/tiny_imagenet/ipc50":           Preset(TIN           | IPC_50,              0.572, _T1, None),
    "edc/tiny_imagenet/ipc50/paper":     Preset(TIN_PAPER     | IPC_50,              0.572, _T1, None),
    "edc/tiny_imagenet/ipc50/official":  Preset(TIN_OFFICIAL  | IPC_50,              0.572, _T1, None),
    "edc/imagenet_10/ipc1":              Preset(IN10          | _ALL_10,             0.452, _T1, None),
    "edc/imagenet_10/ipc1/paper":        Preset(IN10_PAPER    | _ALL_10,             0.452, _T1, None),
    "edc/imagenet_10/ipc1/official":     Preset(IN10_OFFICIAL | _ALL_10,             0.452, _T1, None),
    "edc/imagenet_10/ipc10":             Preset(IN10          | IPC_10,              0.634, _T1, None),
    "edc/imagenet_10/ipc10/paper":       Preset(IN10_PAPER    | IPC_10,              0.634, _T1, None),
    "edc/imagenet_10/ipc10/official":    Preset(IN10_OFFICIAL | IPC_10,              0.634, _T1, None),
    "edc/imagenet_10/ipc50":             Preset(IN10          | IPC_50,              0.822, _T1, None),
    "edc/imagenet_10/ipc50/paper":       Preset(IN10_PAPER    | IPC_50,              0.822, _T1, None),
    "edc/imagenet_10/ipc50/official":    Preset(IN10_OFFICIAL | IPC_50,              0.822, _T1, None),
    "edc/imagenet_1k/ipc1":              Preset(IN1K          | IPC_1,               0.128, _T1, None),
    "edc/imagenet_1k/ipc1/paper":        Preset(IN1K_PAPER    | IPC_1,               0.128, _T1, None),
    "edc/imagenet_1k/ipc1/official":     Preset(IN1K_OFFICIAL | IPC_1,               0.128, _T1, None),
    "edc/imagenet_1k/ipc10":             Preset(IN1K          | IPC_10,              0.486, _T1, None),
    "edc/imagenet_1k/ipc10/paper":       Preset(IN1K_PAPER    | IPC_10,              0.486, _T1, None),
    "edc/imagenet_1k/ipc10/official":    Preset(IN1K_OFFICIAL | IPC_10,              0.486, _T1, None),
    "edc/imagenet_1k/ipc50":             Preset(IN1K          | IPC_50,              0.580, _T1, None),
    "edc/imagenet_1k/ipc50/paper":       Preset(IN1K_PAPER    | IPC_50,              0.580, _T1, None),
    "edc/imagenet_1k/ipc50/official":    Preset(IN1K_OFFICIAL | IPC_50,              0.580, _T1, None),
}  # fmt: skip

# Top-1 in % of the other students that the paper trained on the same images (Tables 1 and 2), in this order:
STUDENTS_SMALL = ("resnet50", "resnet101", "mobilenet_v2_half")
STUDENTS_224 = (
    "torchvision/resnet50", "torchvision/resnet101", MBV2, EFF_B0, "timm/deit_tiny_patch16_224",
    "torchvision/swin_t", "torchvision/convnext_tiny", SHUFFLE,
)  # fmt: skip
STUDENTS: dict[str, tuple[float, ...]] = {
    "edc/cifar10/ipc1":        (30.6, 26.1, 20.2),
    "edc/cifar10/ipc10":       (76.0, 67.1, 42.0),
    "edc/cifar10/ipc50":       (86.9, 85.8, 70.8),
    "edc/cifar100/ipc1":       (36.1, 32.3, 10.6),
    "edc/cifar100/ipc10":      (62.1, 61.7, 44.3),
    "edc/cifar100/ipc50":      (69.4, 68.5, 59.5),
    "edc/tiny_imagenet/ipc1":  (35.9, 40.6, 18.8),
    "edc/tiny_imagenet/ipc10": (50.2, 51.6, 40.6),
    "edc/tiny_imagenet/ipc50": (58.8, 58.6, 50.7),
    "edc/imagenet_10/ipc1":    (38.2, 36.4, 36.4),
    "edc/imagenet_10/ipc10":   (62.4, 59.8, 54.2),
    "edc/imagenet_10/ipc50":   (80.8, 80.8, 80.2),
    "edc/imagenet_1k/ipc1":    (13.3, 12.2, 8.4),
    "edc/imagenet_1k/ipc10":   (54.1, 51.7, 45.0, 51.1, 18.4, 38.3, 54.4, 29.8),
    "edc/imagenet_1k/ipc50":   (64.3, 64.9, 57.8, 60.9, 55.0, 63.3, 66.6, 45.7),
}  # fmt: skip
