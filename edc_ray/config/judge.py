"""How the condensed images are judged: views, labels and the student."""

from typing import Literal

from edc_ray.config.fields import config, knob


@config
class Relabel:
    """The views of the condensed images and who labels them (method.md 4, 5.1). A view is a student batch."""

    observers: tuple[str, ...] | None = knob(None, "subset of the squeezed observers; null = all")
    observer_weights: tuple[float, ...] | None = knob(
        None, "of their logits in the mean, in the order of the observers; null = equal", low=0
    )
    teacher_bn: Literal["running", "batch"] = knob(
        "running",
        "BatchNorm of the labelling observers: running statistics, or those of the batch",
        search={"choices": ["running", "batch"]},
    )
    batch_size: int = knob(
        25, "images in a view, that is the student's batch", low=2,
        search={"low": 5, "high": 1024, "log": True},
    )  # fmt: skip
    randaugment_ops: int = knob(
        0, "RandAugment operations an image, before the crop", low=0, high=4, search={"low": 0, "high": 2}
    )
    randaugment_magnitude: int = knob(
        9, "their strength", low=0, high=30, search={"low": 0, "high": 14},
        when={"randaugment_ops": (1, 2, 3, 4)},
    )  # fmt: skip
    crop_min: float = knob(0.5, "smallest area of a random crop", 0.01, 1, search={"low": 0.08, "high": 1})
    flip: bool = knob(True, "flip each image with probability 1/2")
    mix: str = knob("cutmix", "row of core.views.MIXES", search={"choices": ["none", "cutmix", "mixup"]})
    mix_probability: float = knob(
        1.0, "that a batch is mixed", 0, 1, search={"low": 0, "high": 1}, when={"mix": ("cutmix", "mixup")}
    )
    page_images: int = knob(2048, "images of the views that are labelled and stored together", low=1)


@config
class Evaluate:
    """Training of the student on the condensed images (method.md 5)."""

    student: str = knob(
        "convnet_w32", "row of core.models.MODELS, or torchvision/NAME, timm/NAME, module:function"
    )
    epochs: int = knob(
        300, "passes over the condensed images", low=1, unit="epochs",
        search={"low": 100, "high": 2000, "log": True},
    )  # fmt: skip
    optimizer: Literal["adamw", "sgd"] = knob("adamw", "of the student", search={"choices": ["adamw", "sgd"]})
    lr: float = knob(1e-3, "peak learning rate", low=0, search={"low": 2e-4, "high": 5e-3, "log": True})
    momentum: float = knob(0.9, "of SGD", 0, 0.999, when={"optimizer": "sgd"})
    weight_decay: float = knob(0.01, "on weights with more than one dimension", low=0)
    schedule: str = knob(
        "cos", "row of core.schedules.SCHEDULES",
        search={"choices": ["cos", "ssrs", "linear", "multistep", "alrs"]},
    )  # fmt: skip
    zeta: float = knob(
        2.0, "slow-down of the schedule: the cosine ends at zeta times the epochs", low=1,
        when={"schedule": ("cos", "linear", "ssrs")}, search={"low": 1, "high": 4},
    )  # fmt: skip
    fall: float = knob(
        5 / 6, "share of the training after which SSRS falls", 0.01, 0.99, when={"schedule": "ssrs"},
        search={"low": 2 / 3, "high": 0.99},
    )  # fmt: skip
    gamma: float = knob(
        0.5, "factor of one step of multistep; ALRS wants about 0.9975", 0.01, 1,
        when={"schedule": ("multistep", "alrs")},
    )  # fmt: skip
    milestones: tuple[float, ...] = knob(
        (0.8, 0.9, 0.95), "shares of the training where multistep steps", 0, 1, when={"schedule": "multistep"}
    )
    loss: str = knob(
        "mse", "row of core.losses.LOSSES, to the soft labels; hard = the cross-entropy alone",
        search={"choices": ["mse", "kl", "cosine", "dist", "hard"]},
    )  # fmt: skip
    temperature: float = knob(
        20.0,
        "of the softmax of kl and dist",
        low=0.1,
        when={"loss": ("kl", "dist")},
        search={"low": 1, "high": 20},
    )
    ce_weight: float = knob(
        0.025, "of the cross-entropy to the hard label", low=0, search={"low": 0, "high": 0.5},
        when={"loss": ("mse", "kl", "cosine", "dist")},
    )  # fmt: skip
    ce_label: Literal["unmixed", "mixed"] = knob(
        "unmixed",
        "the hard label: of the image before mixing (official), or mixed as the pixels are",
        search={"choices": ["unmixed", "mixed"]},
    )
    ema_horizon: float = knob(
        0.05, "averaging time of the evaluated weights, as a share of all steps", 0, 0.5,
        when={"ema_rate": None}, search={"low": 0.02, "high": 0.1},
    )  # fmt: skip
    ema_rate: float | None = knob(
        None, "fixed rate a step instead of the horizon", 0, 0.99999, search={"low": 0.9, "high": 0.999}
    )
    ema_bias_correction: bool = knob(
        True, "no trace of the initial weights in the average (official: it starts from them)"
    )
    ema_buffers: bool = knob(
        True, "average the BatchNorm buffers too (official: the raw student's are used)",
        search={"choices": [True, False]},
    )  # fmt: skip
    reports: int = knob(
        10, "times the accuracy is read, evenly along the training", low=1, when={"report_epochs": None}
    )
    report_epochs: tuple[int, ...] | None = knob(
        None, "epochs (1 = the first) after which it is read instead, the last one always", low=1
    )
    select: Literal["last", "best_val"] = knob(
        "last", "the accuracy that counts: the last one read, or the best one so far on val"
    )
    seeds: tuple[int, ...] = knob((0,), "one student each; drives the views and the student", low=0)
