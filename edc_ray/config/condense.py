"""How the condensed images are made: where they start, and what moves them."""

import dataclasses
from typing import Literal

from edc_ray.config.fields import ConfigError, config, knob


@config
class Init:
    """Where the images start (method.md 3.1)."""

    kind: str = knob(
        "real", "row of core.init.INITS", search={"choices": ["noise", "real", "rded", "difficulty"]}
    )
    ipc: int = knob(1, "images per class", low=1)
    seed: int = knob(0, "which draw; with Experiment.seed it drives init and recover", low=0)
    replacement: bool = knob(
        False,
        "an image may be drawn more than once (official: yes)",
        when={"kind": ("real", "folder")},
        search={"choices": [True, False]},
    )
    mipc: int = knob(
        300, "random images of a class that are scored", low=1, when={"kind": "rded"},
        search={"low": 100, "high": 500},
    )  # fmt: skip
    crops: int = knob(
        5, "random crops of each, of which the easiest stays", low=1, when={"kind": "rded"},
        search={"low": 1, "high": 10},
    )  # fmt: skip
    factor: int = knob(
        1, "factor^2 crops make one image", low=1, high=8, when={"kind": "rded"}, search={"low": 1, "high": 2}
    )
    crop_min: float = knob(0.08, "smallest area of a crop", 0.01, 1, when={"kind": "rded"})
    pool: int | None = knob(
        None,
        "make so many images a class and draw ipc of them, each by itself (official: 50); null = make ipc",
        low=1, when={"kind": "rded"},
    )  # fmt: skip
    scorers: tuple[str, ...] | None = knob(
        None,
        "observers whose mean logits score images; null = the first",
        when={"kind": ("rded", "difficulty")},
    )
    quantile: float = knob(
        0.0, "images around this quantile of their class by cross-entropy; 0 = the easiest", 0, 1,
        when={"kind": "difficulty"}, search={"low": 0, "high": 1},
    )  # fmt: skip
    path: str | None = knob(
        None, "folder with CLASS/FILE to start from; keys hold the hash of its content", hashed=False,
        when={"kind": ("folder", "given")},
    )  # fmt: skip


@config
class Matching:
    """The statistical loss (method.md 2.6)."""

    weight: float = knob(
        0.01, "r, beside the cross-entropy", low=0, search={"low": 1e-3, "high": 1.0, "log": True}
    )
    class_weight: float = knob(
        0.5, "0 = global statistics only, 1 = class statistics only", 0, 1, search={"low": 0, "high": 1}
    )
    class_form: Literal["pooled", "within_image", "per_class", "local"] = knob(
        "pooled",
        "class statistics: variance over all pixels of the labels' images; the mean variance inside one "
        "image (official, P2); one term for each class of the group (Eq. 5, P1); those of one batch of real "
        "images",
        search={"choices": ["pooled", "within_image", "per_class", "local"]},
    )
    local_images: int = knob(
        50, "real images drawn for each condensed one, augmented as for the statistics", low=1,
        when={"class_form": "local"},
    )  # fmt: skip
    loss: str = knob(
        "l2", "row of core.matching.MATCHERS, an entry point of edc_ray.matchers, or module:function",
        search={"choices": ["l2", "l2_squared", "rms"]},
    )  # fmt: skip
    families: tuple[Literal["bn", "channel", "patch"], ...] = knob(
        ("bn", "channel", "patch"),
        "what is matched: moments of BatchNorm inputs, and channel and patch moments of convolution inputs",
        search={"choices": [["bn", "channel", "patch"], ["channel", "patch"], ["bn", "channel"], ["bn"]]},
    )
    first_multiplier: float = knob(
        10.0, "weight of the first matched layer: the pixels, where convolutions are matched", low=0,
        search={"low": 0, "high": 10},
    )  # fmt: skip
    drop_rate: float = knob(
        0.0, "probability that a convolution's term is left out of a visit", 0, 0.99,
        search={"low": 0, "high": 0.9},
    )  # fmt: skip
    momentum: float = knob(
        0.8, "of the running statistics of the condensed images", 0, 0.999, search={"low": 0, "high": 0.95}
    )
    bias_correction: bool = knob(
        True,
        "divide the running statistics by 1 - momentum^visits (official: no, B5)",
        search={"choices": [True, False]},
    )
    reset: bool = knob(
        True,
        "every group starts its own running statistics (official: it takes over those of the group before, "
        "B6, and the turn of the observers; all groups are one unit then)",
        search={"choices": [True, False]},
    )


@config
class Flatness:
    """Regularisation towards flat minima (method.md 3.5)."""

    kind: Literal["none", "logits", "statistics", "sam"] = knob(
        "none",
        "nearness of the logits (L'_FR) or of all statistics (L_FR) to those of averaged images, or SAM on "
        "the images (twice the cost)",
        search={"choices": ["none", "logits", "statistics", "sam"]},
    )
    form: Literal["paper", "official"] = knob(
        "paper",
        "KL(current || averaged), mean over images; or KL(averaged || current), mean over images and classes",
        when={"kind": "logits"},
    )
    weight: float = knob(
        0.25, "of the term", low=0, when={"kind": ("logits", "statistics")},
        search={"low": 0.025, "high": 25, "log": True},
    )  # fmt: skip
    beta: float = knob(
        0.99, "rate of the averaged images", 0, 0.99999, when={"kind": ("logits", "statistics")},
        search={"choices": [0.9, 0.99, 0.999]},
    )  # fmt: skip
    temperature: float = knob(
        4.0, "of the softmax", low=0.1, when={"kind": "logits"}, search={"choices": [1.0, 4.0]}
    )
    rho: float = knob(
        0.1, "radius, L2 norm per image in [0, 1] pixels", low=0, when={"kind": "sam"},
        search={"low": 0.01, "high": 0.5, "log": True},
    )  # fmt: skip


@config
class Recover:
    """Optimisation of the condensed images (method.md 3.3)."""

    iterations: int = knob(
        100,
        "steps; 0 keeps the initial images",
        low=0,
        search={"choices": [0, 10, 25, 75, 250, 1000, 4000]},
    )
    lr: float = knob(
        0.05, "peak learning rate of Adam, in normalised pixels", low=0,
        search={"low": 0.005, "high": 0.25, "log": True},
    )  # fmt: skip
    betas: tuple[float, float] = knob(
        (0.5, 0.9), "of Adam", 0, 0.9999, search={"choices": [[0.3, 0.9], [0.5, 0.9], [0.9, 0.9]]}
    )
    crop: Literal["batch", "image"] = knob(
        "batch", "one random crop for the whole group, or one an image",
        search={"choices": ["batch", "image"]},
    )  # fmt: skip
    crop_min: float = knob(0.5, "smallest area of the random crop", 0.01, 1, search={"low": 0.08, "high": 1})
    crop_min_start: float | None = knob(
        None, "crop_min moves from here by a half cosine (CDA); null = constant", 0.01, 1
    )
    flip: bool = knob(True, "flip with probability 1/2, shared as the crop is")
    classes_per_group: int = knob(
        10, "a group = these classes' images; it shares its batch statistics", low=1,
        when={"group_images": None}, search={"choices": [1, 2, 5, 10]},
    )  # fmt: skip
    group_images: int | None = knob(
        None,
        "a group = so many images in class-major order (method.md 3.2); null = classes_per_group",
        low=1,
        search={"low": 10, "high": 200, "log": True},
    )
    observers: tuple[str, ...] | None = knob(None, "subset of the squeezed observers, in order; null = all")
    observer_weights: tuple[float, ...] | None = knob(
        None, "of each one's loss, as a multiple of their mean; null = all 1", low=0
    )
    visit: Literal["one", "all"] = knob(
        "one",
        "observers an iteration: the next in turn, or the mean over all of them",
        search={"choices": ["one", "all"]},
    )
    format: Literal["uint8", "uint8_truncated", "float16", "jpeg"] = knob(
        "uint8",
        "how the images are stored; the official code truncates, for PNG or JPEG (B16), as jpeg does",
        search={"choices": ["uint8", "float16"]},
    )
    jpeg_quality: int = knob(75, "of Pillow", low=1, high=95, when={"format": "jpeg"})
    matching: Matching = dataclasses.field(default_factory=Matching)
    flatness: Flatness = dataclasses.field(default_factory=Flatness)

    def __post_init__(self) -> None:
        if not self.matching.families or len(set(self.matching.families)) < len(self.matching.families):
            legal = "needs at least one of bn, channel, patch, each once"
            raise ConfigError("matching.families", self.matching.families, legal)
        if self.matching.class_form == "per_class" and not self.matching.reset:
            legal = "must be true with class_form per_class: a group has other classes than the one before"
            raise ConfigError("matching.reset", False, legal)
