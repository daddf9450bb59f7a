"""Apply: what a condensed set is used for, after it was judged (the paper's applications)."""

from typing import Literal

from edc_ray.config.fields import config, knob


@config
class Apply:
    """One use of the condensed images (`edc-ray apply`). No other stage reads this section."""

    name: str = knob("robustness", "row of pipeline.APPLICATIONS: robustness, nas, continual or slimming")
    images: Literal["set", "all"] = knob(
        "set", "networks learn on the set, as students do, or on all training images, as observers do",
        when={"name": ("robustness", "nas")},
    )  # fmt: skip
    epsilon: tuple[float, ...] = knob(
        (0.01, 0.03, 0.1), "largest change of a pixel (L-inf), as a share of the pixel range", 0, 1,
        when={"name": "robustness"},
    )  # fmt: skip
    pgd_steps: int = knob(10, "steps of PGD", low=1, high=1000, unit="steps", when={"name": "robustness"})
    pgd_step: float = knob(
        0.25, "length of one of them, as a share of epsilon", 1e-3, 1, when={"name": "robustness"}
    )
    networks: tuple[str, ...] | None = knob(
        None, "architectures that are ranked: rows of core.applications.nas.SPACE, or names of networks; "
        "null = all of SPACE", when={"name": "nas"},
    )  # fmt: skip
    steps: tuple[int, ...] = knob(
        (5, 10), "runs of the class-incremental learning: in so many steps all classes come", low=2,
        when={"name": "continual"},
    )  # fmt: skip
    memory: Literal["set", "herding"] = knob(
        "set", "what is remembered of a class: its images in the set, or as many real ones by herding",
        when={"name": "continual"},
    )  # fmt: skip
    network: str = knob(
        "vgg5_w16", "what is made slim: a chain of convolutions with BatchNorm, as vgg11_bn",
        when={"name": "slimming"},
    )  # fmt: skip
    l1: float = knob(
        0.04, "weight of the absolute scales of BatchNorm while it learns on all training images; more steps "
        "need less: 1e-4 for 160 epochs of CIFAR (Liu et al.)", low=0, when={"name": "slimming"},
    )  # fmt: skip
    epochs: int = knob(
        40, "passes over all training images with it, else as observers learn (squeeze)", low=1,
        unit="epochs", when={"name": "slimming"},
    )  # fmt: skip
    kept: tuple[float, ...] = knob(
        (0.1, 0.25, 0.5, 0.75), "shares of all channels that stay", 1e-3, 1, when={"name": "slimming"}
    )
