"""What EDC is compared with: its own ladder CONFIG A to G, its predecessors, and the controls.

The predecessors are written with the values of their own scripts (VILA-Lab/SRe2L with CDA,
shaoshitong/G_VBSM_Dataset_Condensation, LINs-lab/RDED). What no field says, and so is missing here: the
cyclic jitter of SRe2L and CDA, batches of one image of each class (a group is class-major), the warm-up of
their Tiny-ImageNet training, the densification of G-VBSM and its running statistics that go on from one group
to the next, the patch shuffle of RDED. Where they do not say how their observers were trained, LONG_SQUEEZE
trains them.
"""

from typing import Any

from edc_ray.presets.edc import C10, IN1K
from edc_ray.presets.table import (
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
_FOUR = [R18, MBV2, EFF_B0, SHUFFLE]
_NO_EMA = {"evaluate.ema_rate": None, "evaluate.ema_horizon": 0.0}
_COS_TO_0 = {"evaluate.schedule": "cos", "evaluate.zeta": 1.0}
_JPEG = {"recover.format": "jpeg"}

# --- CONFIG A to G of the paper (Fig. 1, method.md 8.3): each is the one before with one idea more ----------
# What a rung does not name is CONFIG G's on all of them, so that a step is what the paper says it is.

_A: Changes = IN1K | IPC_10 | _COS_TO_0 | _NO_EMA | {
    "squeeze.observers": _FOUR, "init.kind": "noise", "recover.iterations": 4000, "recover.crop_min": 0.08,
    "recover.matching.class_weight": 0.0, "recover.flatness.kind": "none",
    "relabel.observers": None, "relabel.batch_size": 1024, "relabel.crop_min": 0.08,
}  # fmt: skip
_B = _A | {"init.kind": "rded", "init.factor": 2, "recover.iterations": 2000}
_C = _B | {"evaluate.zeta": 1.5}  # 38.7 is of zeta 1.5 (P16)
_D = _C | {"recover.flatness.kind": "logits"}
# "Better backbones": the sets of method.md 1.1; CONFIG F is said to have zeta 2, and E is its alpha = 0 (P4).
_E = _D | {
    "squeeze.observers": IN1K["squeeze.observers"], "relabel.observers": IN1K["relabel.observers"],
    "relabel.batch_size": 100, "evaluate.zeta": 2.0,
}  # fmt: skip
_F = _E | {"recover.matching.class_weight": 0.5}
_G = IN1K | IPC_10  # crops of at least half the image, and EMA evaluation

_FIG1 = "paper Fig. 1, Table 23"
LADDER: dict[str, Preset] = {
    # name                                changes  published  measured
    "config_a/imagenet_1k/ipc10":  Preset(_A,      0.314, f"{_FIG1}: G-VBSM", None),
    "config_b/imagenet_1k/ipc10":  Preset(_B,      0.344, f"{_FIG1}: + real images, half the steps", None),
    "config_c/imagenet_1k/ipc10":  Preset(_C,      0.387, f"{_FIG1}: + smoothing LR", None),
    "config_d/imagenet_1k/ipc10":  Preset(_D,      0.395, f"{_FIG1}: + flatness", None),
    "config_e/imagenet_1k/ipc10":  Preset(_E,      0.462, f"{_FIG1}: + small batch, better backbones", None),
    "config_f/imagenet_1k/ipc10":  Preset(_F,      0.480, f"{_FIG1}: + class statistics", None),
    "config_g/imagenet_1k/ipc10":  Preset(_G,      0.486, f"{_FIG1}: + weak crops, EMA evaluation", None),
}  # fmt: skip

# --- SRe2L and CDA: one ResNet-18, BatchNorm statistics, noise ---------------------------------------------

_SRE2L: Changes = _JPEG | _NO_EMA | _COS_TO_0 | {
    "init.kind": "noise", "recover.lr": 0.25, "recover.iterations": 4000, "recover.crop_min": 0.08,
    "recover.group_images": 100, "recover.matching.families": ["bn"], "recover.matching.class_weight": 0.0,
    "recover.matching.momentum": 0.0, "relabel.crop_min": 0.08,
    "evaluate.loss": "kl", "evaluate.temperature": 20.0, "evaluate.ce_weight": 0.0,
}  # fmt: skip
# A crop of the padded image is not among the views: crops of at least (28/32)^2 move it as far.
# Its teacher was left in training mode while it labelled.
_SRE2L_32: Changes = _SRE2L | {
    "squeeze.observers": ["resnet18"], "squeeze.epochs": 200, "squeeze.batch_size": 128, "squeeze.lr": 0.1,
    "recover.iterations": 1000, "recover.crop_min": 1.0, "recover.flip": False,
    "relabel.batch_size": 128, "relabel.crop_min": 0.77, "relabel.mix": "mixup",
    "relabel.teacher_bn": "batch", "evaluate.epochs": 400, "evaluate.temperature": 30.0,
}  # fmt: skip
_SRE2L_10, _SRE2L_100 = CIFAR_10 | _SRE2L_32, CIFAR_100 | _SRE2L_32
_SRE2L_64: Changes = TINY | _SRE2L | {
    "squeeze.observers": ["resnet18"], "squeeze.epochs": 50, "squeeze.batch_size": 256, "squeeze.lr": 0.2,
    "squeeze.weight_decay": 1e-4, "squeeze.augment.crop_min": 0.08,
    "recover.lr": 0.1, "recover.matching.weight": 1.0, "relabel.batch_size": 256, "relabel.mix": "none",
    "evaluate.epochs": 100, "evaluate.optimizer": "sgd", "evaluate.lr": 0.2, "evaluate.weight_decay": 1e-4,
}  # fmt: skip
_SRE2L_224: Changes = IMAGENET_1K | _SRE2L | {
    "squeeze.observers": [R18], "relabel.batch_size": 1024, "evaluate.epochs": 300,
}  # fmt: skip
_CDA = {
    "recover.crop_min": 0.08,
    "recover.crop_min_start": 1.0,
    "recover.flip": True,
}  # whole images to crops
_CDA_64 = _CDA | {"recover.lr": 0.4, "recover.matching.weight": 0.05}

# --- G-VBSM: several observers, all statistics, none of a class ---------------------------------------------

_G_VBSM: Changes = _NO_EMA | _COS_TO_0 | {
    "init.kind": "noise", "recover.iterations": 4000, "recover.crop_min": 0.77,
    "recover.matching.class_weight": 0.0, "recover.matching.drop_rate": 0.4, "relabel.crop_min": 0.08,
    "recover.matching.bias_correction": False,
    "statistics.conv_variance": "per_batch", "statistics.batch_size": 64, "evaluate.ce_weight": 0.15,
}  # fmt: skip
_G_VBSM_SMALL = _G_VBSM | LONG_SQUEEZE | {"squeeze.observers": CIFAR_OBSERVERS[:5]}
_G_VBSM_10 = CIFAR_10 | _G_VBSM_SMALL | {
    "recover.group_images": 100, "relabel.batch_size": 100, "evaluate.epochs": 1000,
    "evaluate.weight_decay": 0.0,
}  # fmt: skip
_SGD = {"evaluate.optimizer": "sgd", "evaluate.lr": 0.1, "evaluate.weight_decay": 5e-4}
_G_VBSM_100 = CIFAR_100 | _G_VBSM_SMALL | _SGD | {
    "recover.group_images": 50, "relabel.batch_size": 64, "evaluate.epochs": 1000,
}  # fmt: skip
_G_VBSM_64 = TINY | _G_VBSM_SMALL | _SGD | {
    "recover.group_images": 50, "relabel.batch_size": 100, "evaluate.epochs": 100, "evaluate.ce_weight": 0.1,
}  # fmt: skip
_G_VBSM_224 = IMAGENET_1K | _G_VBSM | {
    "squeeze.observers": _FOUR, "recover.lr": 0.1, "recover.group_images": 40, "recover.crop_min": 0.08,
    "recover.matching.momentum": 0.4, "recover.matching.drop_rate": 0.0, "statistics.batch_size": 256,
    "relabel.batch_size": 1024, "evaluate.epochs": 300, "evaluate.ce_weight": 0.1,
}  # fmt: skip

# --- RDED: the easiest crops of real images, not optimised --------------------------------------------------
# Its teacher labels every step; crops keep at least 1 / factor of the image; ImageNet's pixels everywhere.

_RDED: Changes = _JPEG | _NO_EMA | {
    "dataset.normalization": "imagenet", "init.kind": "rded", "init.factor": 1, "recover.iterations": 0,
    "relabel.crop_min": 1.0, "evaluate.epochs": 300, "evaluate.loss": "kl", "evaluate.temperature": 20.0,
    "evaluate.ce_weight": 0.0,
}  # fmt: skip
_RDED_SMALL = _RDED | LONG_SQUEEZE | {"squeeze.observers": ["resnet18"]}
_RDED_10 = CIFAR_10 | _RDED_SMALL
_RDED_100 = CIFAR_100 | _RDED_SMALL
_RDED_64 = TINY | _RDED_SMALL
_TWO_BY_TWO = {"squeeze.observers": [R18], "init.factor": 2, "relabel.crop_min": 0.5}
_RDED_IN10 = IMAGENET_10 | _RDED | LONG_SQUEEZE | {"squeeze.epochs": 100} | _TWO_BY_TWO
_RDED_IN1K = IMAGENET_1K | _RDED | _TWO_BY_TWO


def _batch(images: int) -> Changes:
    """RDED's rule: 10, 50, 100 for 1, 10, 50 images a class, twice that for 100 and 1,000 classes."""
    return {"relabel.batch_size": images}


# --- controls: real images that nothing chose, and the start of EDC that nothing optimised ------------------

_STILL = {"recover.iterations": 0}
_REAL = _STILL | {"init.kind": "real"}
_HARD = {"evaluate.loss": "hard", "evaluate.ce_weight": 0.0, "relabel.mix": "none"}
_REAL_10 = C10 | _REAL
_REAL_1K = _SRE2L_224 | _REAL  # the recipe under which random images on ImageNet-1k were published
_ALL_10 = IPC_1 | {"relabel.batch_size": 10}

_T1, _T25 = "paper Table 1", "paper Table 25"
_LABEL = "arXiv 2406.10485, Table 1"
_RD3 = "RD3 (ICLR 2026), second-hand"
_NO_CDA = "nothing published under this recipe"
_SAME = "nothing published: a control, EDC's recipe"

BASELINES: dict[str, Preset] = {
    # name                                     changes                              published  measured
    "sre2l/cifar10/ipc10":              Preset(_SRE2L_10   | IPC_10,                0.272, _T1, None),
    "sre2l/cifar10/ipc50":              Preset(_SRE2L_10   | IPC_50,                0.475, _T1, None),
    "sre2l/cifar100/ipc1":              Preset(_SRE2L_100  | IPC_1,                 0.020, _T1, None),
    "sre2l/cifar100/ipc10":             Preset(_SRE2L_100  | IPC_10,                0.316, _T1, None),
    "sre2l/cifar100/ipc50":             Preset(_SRE2L_100  | IPC_50,                0.495, _T1, None),
    "sre2l/tiny_imagenet/ipc50":        Preset(_SRE2L_64   | IPC_50,                0.411, _T1, None),
    "sre2l/imagenet_1k/ipc1":           Preset(_SRE2L_224  | IPC_1,                 0.029, _LABEL, None),
    "sre2l/imagenet_1k/ipc10":          Preset(_SRE2L_224  | IPC_10,                0.213, _T1, None),
    "sre2l/imagenet_1k/ipc50":          Preset(_SRE2L_224  | IPC_50,                0.468, _T1, None),
    "cda/cifar10/ipc10":                Preset(_SRE2L_10   | _CDA | IPC_10,         None,  _NO_CDA, None),
    "cda/cifar10/ipc50":                Preset(_SRE2L_10   | _CDA | IPC_50,         None,  _NO_CDA, None),
    "cda/tiny_imagenet/ipc50":          Preset(_SRE2L_64   | _CDA_64 | IPC_50,      0.487, _T25, None),
    "cda/imagenet_1k/ipc10":            Preset(_SRE2L_224  | _CDA | IPC_10,         0.335, _RD3, None),
    "cda/imagenet_1k/ipc50":            Preset(_SRE2L_224  | _CDA | IPC_50,         0.535, _T25, None),
    "g_vbsm/cifar10/ipc10":             Preset(_G_VBSM_10  | IPC_10,                0.535, _T1, None),
    "g_vbsm/cifar10/ipc50":             Preset(_G_VBSM_10  | IPC_50,                0.592, _T1, None),
    "g_vbsm/cifar100/ipc1":             Preset(_G_VBSM_100 | IPC_1,                 0.259, _T1, None),
    "g_vbsm/cifar100/ipc10":            Preset(_G_VBSM_100 | IPC_10,                0.595, _T1, None),
    "g_vbsm/cifar100/ipc50":            Preset(_G_VBSM_100 | IPC_50,                0.650, _T1, None),
    "g_vbsm/tiny_imagenet/ipc50":       Preset(_G_VBSM_64  | IPC_50,                0.476, _T1, None),
    "g_vbsm/imagenet_1k/ipc10":         Preset(_G_VBSM_224 | IPC_10,                0.314, _T1, None),
    "g_vbsm/imagenet_1k/ipc50":         Preset(_G_VBSM_224 | IPC_50,                0.518, _T1, None),
    "rded/cifar10/ipc1":                Preset(_RDED_10    | IPC_1  | _batch(10),   0.229, _T1, None),
    "rded/cifar10/ipc10":               Preset(_RDED_10    | IPC_10 | _batch(50),   0.371, _T1, None),
    "rded/cifar10/ipc50":               Preset(_RDED_10    | IPC_50 | _batch(100),  0.621, _T1, None),
    "rded/cifar100/ipc1":               Preset(_RDED_100   | IPC_1  | _batch(20),   0.110, _T1, None),
    "rded/cifar100/ipc10":              Preset(_RDED_100   | IPC_10 | _batch(100),  0.426, _T1, None),
    "rded/cifar100/ipc50":              Preset(_RDED_100   | IPC_50 | _batch(200),  0.626, _T1, None),
    "rded/tiny_imagenet/ipc1":          Preset(_RDED_64    | IPC_1  | _batch(100),  0.097, _T1, None),
    "rded/tiny_imagenet/ipc10":         Preset(_RDED_64    | IPC_10 | _batch(100),  0.419, _T1, None),
    "rded/tiny_imagenet/ipc50":         Preset(_RDED_64    | IPC_50 | _batch(100),  0.582, _T1, None),
    "rded/imagenet_10/ipc1":            Preset(_RDED_IN10  | IPC_1  | _batch(10),   0.249, _T1, None),
    "rded/imagenet_10/ipc10":           Preset(_RDED_IN10  | IPC_10 | _batch(50),   0.533, _T1, None),
    "rded/imagenet_10/ipc50":           Preset(_RDED_IN10  | IPC_50 | _batch(100),  0.755, _T1, None),
    "rded/imagenet_1k/ipc1":            Preset(_RDED_IN1K  | IPC_1  | _batch(20),   0.066, _T1, None),
    "rded/imagenet_1k/ipc10":           Preset(_RDED_IN1K  | IPC_10 | _batch(100),  0.420, _T1, None),
    "rded/imagenet_1k/ipc50":           Preset(_RDED_IN1K  | IPC_50 | _batch(200),  0.565, _T1, None),
    "random_real/cifar10/ipc1":         Preset(_REAL_10    | _ALL_10,               None,  _SAME, None),
    "random_real/cifar10/ipc10":        Preset(_REAL_10    | IPC_10,                None,  _SAME, None),
    "random_real/cifar10/ipc50":        Preset(_REAL_10    | IPC_50,                None,  _SAME, None),
    "random_real/imagenet_1k/ipc1":     Preset(_REAL_1K    | IPC_1,                 0.016, _LABEL, None),
    "random_real/imagenet_1k/ipc10":    Preset(_REAL_1K    | IPC_10,                0.258, _LABEL, None),
    "random_real/imagenet_1k/ipc50":    Preset(_REAL_1K    | IPC_50,                0.543, _LABEL, None),
    "random_real_hard/cifar10/ipc1":    Preset(_REAL_10    | _ALL_10 | _HARD,       None,  _SAME, None),
    "random_real_hard/cifar10/ipc10":   Preset(_REAL_10    | IPC_10 | _HARD,        None,  _SAME, None),
    "random_real_hard/cifar10/ipc50":   Preset(_REAL_10    | IPC_50 | _HARD,        None,  _SAME, None),
    "random_real_hard/imagenet_1k/ipc1":  Preset(_REAL_1K  | IPC_1 | _HARD,         0.006, _LABEL, None),
    "random_real_hard/imagenet_1k/ipc10": Preset(_REAL_1K  | IPC_10 | _HARD,        0.039, _LABEL, None),
    "random_real_hard/imagenet_1k/ipc50": Preset(_REAL_1K  | IPC_50 | _HARD,        0.204, _LABEL, None),
    "t0/cifar10/ipc1":                  Preset(C10         | _ALL_10 | _STILL,      None,  _SAME, None),
    "t0/cifar10/ipc10":                 Preset(C10         | IPC_10 | _STILL,       None,  _SAME, None),
    "t0/cifar10/ipc50":                 Preset(C10         | IPC_50 | _STILL,       None,  _SAME, None),
    "t0/imagenet_1k/ipc1":              Preset(IN1K        | IPC_1 | _STILL,        None,  _SAME, None),
    "t0/imagenet_1k/ipc10":             Preset(IN1K        | IPC_10 | _STILL,       None,  _SAME, None),
    "t0/imagenet_1k/ipc50":             Preset(IN1K        | IPC_50 | _STILL,       None,  _SAME, None),
}  # fmt: skip
