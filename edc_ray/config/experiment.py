"""Experiment: what is computed. Every field enters an artifact's name, but those with `hashed=False`, and
those that another field makes inactive (`when`). `search` is the range worth searching (method.md 9)."""

import dataclasses
from typing import Literal

from edc_ray.config.fields import ConfigError, config, knob


@config
class Dataset:
    """The real images. Keys hold the hash of their content, never `path`."""

    name: str = knob("digits", "row of core.data.DATASETS")
    path: str | None = knob(None, "folder of the files of any dataset but digits", hashed=False)
    size_px: int = knob(16, "images are resized to a square of this side", low=8, high=1024, unit="px")
    limit: int | None = knob(None, "use only the first n training images", low=1)
    classes: tuple[str, ...] | None = knob(
        None, "only these class folders, in this order; null = all that there are, sorted"
    )
    normalization: Literal["measured", "cifar10", "cifar100", "imagenet"] = knob(
        "measured",
        "mean and deviation of the pixels: of the training images, or published constants (what downloaded "
        "weights expect; the official CIFAR-10 code has cifar100, B17)",
    )


@config
class Split:
    """The validation images are held out of the training set, class by class, before anything is trained."""

    val: float = knob(
        0.1, "share of the training images that is only for selecting; 0 = report on test", 0, 0.9
    )
    seed: int = knob(0, "which images are held out", low=0)


@config
class Augment:
    """The augmentation of real images: a shifted crop after zero padding, or a resized crop; a flip."""

    pad_px: int = knob(2, "largest shift", low=0, high=64, unit="px", when={"crop_min": None})
    crop_min: float | None = knob(
        None, "smallest area of a random resized crop, which replaces the shift; null = none", 0.01, 1
    )
    flip: bool = knob(True, "flip left-right with probability 1/2")


@config
class Squeeze:
    """Training of the observers (method.md 1)."""

    observers: tuple[str, ...] = knob(
        ("convnet_w16_d2", "convnet_w32", "resnet10_w16", "vgg5_w16"),
        "rows of core.models.MODELS, or torchvision/NAME, timm/NAME; in visiting order",
    )
    weights: str | None = knob(
        None,
        "where training starts: null = random, torchvision or timm = their downloaded weights, or a folder "
        "with OBSERVER.safetensors or OBSERVER.pth",
    )
    epochs: int = knob(
        10, "passes over the training images; 0 = `weights` as they are", low=0, unit="epochs",
        search={"low": 1, "high": 200, "log": True},
    )  # fmt: skip
    checkpoint_epoch: int | None = knob(
        None, "use the observers as they were after this epoch; null = after the last", low=1, unit="epochs"
    )
    batch_size: int = knob(64, "images a step", low=2)
    lr: float = knob(0.05, "peak learning rate of SGD", low=0)
    momentum: float = knob(0.9, "SGD momentum", 0, 0.999)
    weight_decay: float = knob(
        5e-4, "on weights with more than one dimension", low=0, search={"low": 0, "high": 5e-4}
    )
    schedule: Literal["cos", "linear", "constant"] = knob("cos", "row of core.schedules.SCHEDULES")
    zeta: float = knob(1.0, "slow-down of the schedule: the cosine ends at zeta times the epochs", low=1)
    augment: Augment = dataclasses.field(default_factory=Augment)


@config
class Statistics:
    """The pass over the real images (method.md 2, 10.2)."""

    patch: int = knob(
        4, "side of a cell of the patch moments", low=1, high=64, unit="px", search={"low": 2, "high": 16}
    )
    conv_variance: Literal["pooled", "per_batch"] = knob(
        "pooled", "global variance of the convolutions: over all pixels, or the mean over batches (official)"
    )
    batch_size: int = knob(
        64, "images in a batch of conv_variance per_batch", low=1, when={"conv_variance": "per_batch"}
    )
    shard_images: int = knob(512, "images in one unit of the pass", low=1)
    augment: Augment = dataclasses.field(default_factory=Augment)


@config
class Init:
    """Where the images start (method.md 3.1)."""

    kind: str = knob(
        "real", "row of core.init.INITS", search={"choices": ["noise", "real", "rded", "difficulty"]}
    )
    ipc: int = knob(1, "images per class", low=1)
    seed: int = knob(0, "which draw; with Experiment.seed it drives init and recover", low=0)
    replacement: bool = knob(
        False, "an image may be drawn more than once (official: yes)", when={"kind": ("real", "folder")}
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
    scorers: tuple[str, ...] | None = knob(
        None,
        "observers whose mean logits score images; null = the first",
        when={"kind": ("rded", "difficulty")},
    )
    quantile: float = knob(
        0.0, "images around this quantile of their class by cross-entropy; 0 = the easiest", 0, 1,
        when={"kind": "difficulty"}, search={"low": 0, "high": 1},
    )  # fmt: skip
    path: str | None = knob(None, "folder with CLASS/FILE to start from", when={"kind": "folder"})


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
        50, "real images drawn for each condensed one", low=1, when={"class_form": "local"}
    )
    loss: str = knob("l2", "row of core.matching.MATCHERS", search={"choices": ["l2", "l2_squared", "rms"]})
    families: tuple[Literal["bn", "channel", "patch"], ...] = knob(
        ("bn", "channel", "patch"),
        "what is matched: moments of BatchNorm inputs, and channel and patch moments of convolution inputs",
    )
    first_multiplier: float = knob(
        10.0, "weight of the first hooked layer, the pixels", low=0, search={"low": 0, "high": 10}
    )
    drop_rate: float = knob(
        0.0, "probability that a convolution's term is left out of a visit", 0, 0.99,
        search={"low": 0, "high": 0.9},
    )  # fmt: skip
    momentum: float = knob(
        0.8, "of the running statistics of the condensed images", 0, 0.999, search={"low": 0, "high": 0.95}
    )
    bias_correction: bool = knob(
        True, "divide the running statistics by 1 - momentum^visits (official: no, B5)"
    )
    reset: bool = knob(
        True,
        "every group starts its own running statistics (official: it takes over those of the group before, "
        "B6; all groups are one unit then)",
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
        100, "steps; 0 keeps the initial images", low=0, search={"low": 10, "high": 4000, "log": True}
    )
    lr: float = knob(
        0.05, "peak learning rate of Adam, in normalised pixels", low=0,
        search={"low": 0.005, "high": 0.25, "log": True},
    )  # fmt: skip
    betas: tuple[float, float] = knob((0.5, 0.9), "of Adam", 0, 0.9999)
    crop: Literal["batch", "image"] = knob("batch", "one random crop for the whole group, or one an image")
    crop_min: float = knob(0.5, "smallest area of the random crop", 0.01, 1, search={"low": 0.08, "high": 1})
    crop_min_start: float | None = knob(
        None, "crop_min moves from here by a half cosine (CDA); null = constant", 0.01, 1
    )
    flip: bool = knob(True, "flip with probability 1/2, shared as the crop is")
    classes_per_group: int = knob(
        10, "a group = these classes' images; it shares its batch statistics", low=1,
        when={"group_images": None},
    )  # fmt: skip
    group_images: int | None = knob(
        None,
        "a group = so many images in class-major order (method.md 3.2); null = classes_per_group",
        low=1,
    )
    observers: tuple[str, ...] | None = knob(None, "subset of the squeezed observers, in order; null = all")
    observer_weights: tuple[float, ...] | None = knob(None, "of each one's loss; null = all 1", low=0)
    visit: Literal["one", "all"] = knob("one", "observers an iteration: the next in turn, or all of them")
    format: Literal["uint8", "uint8_truncated", "float16", "jpeg"] = knob(
        "uint8", "how the images are stored; the official code truncates (PNG) or writes JPEG (B16)"
    )
    jpeg_quality: int = knob(75, "of Pillow", low=1, high=95, when={"format": "jpeg"})
    matching: Matching = dataclasses.field(default_factory=Matching)
    flatness: Flatness = dataclasses.field(default_factory=Flatness)

    def __post_init__(self) -> None:
        if not self.matching.families or len(set(self.matching.families)) < len(self.matching.families):
            legal = "needs at least one of bn, channel, patch, each once"
            raise ConfigError("matching.families", self.matching.families, legal)


@config
class Relabel:
    """The views of the condensed images and who labels them (method.md 4, 5.1). A view is a student batch."""

    observers: tuple[str, ...] | None = knob(None, "subset of the squeezed observers; null = all")
    observer_weights: tuple[float, ...] | None = knob(
        None, "of their logits in the mean, in the order of the observers; null = equal", low=0
    )
    teacher_bn: Literal["running", "batch"] = knob(
        "running", "BatchNorm of the labelling observers: running statistics, or those of the batch"
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

    student: str = knob("convnet_w32", "row of core.models.MODELS, or torchvision/NAME, timm/NAME")
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
        "mse", "row of core.losses.LOSSES, to the soft labels",
        search={"choices": ["mse", "kl", "cosine", "hard"]},
    )  # fmt: skip
    temperature: float = knob(
        20.0, "of the softmax of kl", low=0.1, when={"loss": "kl"}, search={"low": 1, "high": 20}
    )
    ce_weight: float = knob(
        0.025, "of the cross-entropy to the hard label", low=0, search={"low": 0, "high": 0.5}
    )
    ce_label: Literal["unmixed", "mixed"] = knob(
        "unmixed", "the hard label: of the image before mixing (official), or mixed as the pixels are"
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
    ema_buffers: bool = knob(True, "average the BatchNorm buffers too (official: the raw student's are used)")
    reports: int = knob(
        10, "times the accuracy is read, evenly along the training", low=1, when={"report_epochs": None}
    )
    report_epochs: tuple[int, ...] | None = knob(
        None, "epochs (1 = the first) after which it is read instead, the last one always", low=1
    )
    select: Literal["last", "best_val"] = knob(
        "last", "the accuracy that counts: the last one read, or the best one on val"
    )
    seeds: tuple[int, ...] = knob((0,), "one student each; drives the views and the student", low=0)


@config
class Quirks:
    """Deviations of the official code that no field can say (method.md 6); all False in `fixed`."""

    swap_class_patch: bool = knob(
        False, "B2: the class targets of patch mean and patch variance are exchanged"
    )
    double_conv_targets: bool = knob(
        False, "B4: the global targets of the convolutions are counted twice, as with the shipped files"
    )
    verifier_updates: bool = knob(
        False, "B7: every 100th iteration the first observer's running statistics see the un-augmented images"
    )
    alphabetical_init: bool = knob(
        False, "B18: initial images of a class list in another order are taken in alphabetical order"
    )
    alrs_weights_only: bool = knob(False, "B26: ALRS lowers only the learning rate of decayed weights")


@config
class Experiment:
    """What is computed. Every field is part of some artifact's name, except those with `hashed=False`."""

    dataset: Dataset = dataclasses.field(default_factory=Dataset)
    split: Split = dataclasses.field(default_factory=Split)
    squeeze: Squeeze = dataclasses.field(default_factory=Squeeze)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    init: Init = dataclasses.field(default_factory=Init)
    recover: Recover = dataclasses.field(default_factory=Recover)
    relabel: Relabel = dataclasses.field(default_factory=Relabel)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
    quirks: Quirks = dataclasses.field(default_factory=Quirks)
    seed: int = knob(0, "drives squeeze to recover", low=0)
    precision: Literal["fp32", "tf32"] = knob("fp32", "of matrix products and convolutions on the GPU")

    def __post_init__(self) -> None:
        observers = self.squeeze.observers
        if not observers or len(set(observers)) < len(observers):
            raise ConfigError("squeeze.observers", observers, "needs at least one model, each named once")
        for path, chosen in (
            ("recover.observers", self.recover.observers),
            ("relabel.observers", self.relabel.observers),
            ("init.scorers", self.init.scorers),
        ):
            if chosen is not None and (not chosen or not set(chosen) <= set(observers)):
                legal = f"must be some of squeeze.observers ({', '.join(observers)}), or null"
                raise ConfigError(path, chosen, legal)
        for path, weights, of in (
            ("recover.observer_weights", self.recover.observer_weights, self.recover.observers),
            ("relabel.observer_weights", self.relabel.observer_weights, self.relabel.observers),
        ):
            count = len(of or observers)
            if weights is not None and (len(weights) != count or not sum(weights) > 0):
                raise ConfigError(path, weights, f"needs {count} numbers, not all 0: one an observer")
        self._check_training()
        if self.init.kind == "rded" and self.dataset.size_px % self.init.factor:
            legal = f"must divide dataset.size_px = {self.dataset.size_px}"
            raise ConfigError("init.factor", self.init.factor, legal)
        if not self.evaluate.seeds or len(set(self.evaluate.seeds)) < len(self.evaluate.seeds):
            raise ConfigError("evaluate.seeds", self.evaluate.seeds, "needs at least one seed, each once")

    def _check_training(self) -> None:
        squeeze, evaluate = self.squeeze, self.evaluate
        if squeeze.epochs == 0 and squeeze.weights is None:
            raise ConfigError("squeeze.epochs", 0, "must be >= 1 where squeeze.weights is null")
        if squeeze.checkpoint_epoch is not None and squeeze.checkpoint_epoch > squeeze.epochs:
            legal = f"must be <= squeeze.epochs = {squeeze.epochs}, or null"
            raise ConfigError("squeeze.checkpoint_epoch", squeeze.checkpoint_epoch, legal)
        if list(evaluate.milestones) != sorted(set(evaluate.milestones)):
            raise ConfigError("evaluate.milestones", evaluate.milestones, "must increase")
        if evaluate.report_epochs is not None:
            if list(evaluate.report_epochs) != sorted(set(evaluate.report_epochs)):
                raise ConfigError("evaluate.report_epochs", evaluate.report_epochs, "must increase")
            if evaluate.report_epochs[-1:] > (evaluate.epochs,):
                legal = f"must be <= evaluate.epochs = {evaluate.epochs}"
                raise ConfigError("evaluate.report_epochs", evaluate.report_epochs, legal)
        if evaluate.select == "best_val" and self.split.val == 0:
            raise ConfigError(
                "evaluate.select", "best_val", "needs split.val > 0: nothing is selected on test"
            )
