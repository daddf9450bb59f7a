"""Experiment: what is computed. Every field enters an artifact's name, but those with `hashed=False`."""

import dataclasses
from typing import Literal

from edc_ray.config.fields import ConfigError, config, knob


@config
class Dataset:
    """The real images. Keys hold the hash of their content, never `path`."""

    name: str = knob("digits", "row of core.data.DATASETS")
    path: str | None = knob(None, "folder of a parquet or image_folder dataset", hashed=False)
    size_px: int = knob(16, "images are resized to a square of this side", low=8, high=1024, unit="px")
    limit: int | None = knob(None, "use only the first n training images", low=1)


@config
class Split:
    """The validation images are held out of the training set, class by class, before anything is trained."""

    val: float = knob(
        0.1, "share of the training images that is only for selecting; 0 = report on test", 0, 0.9
    )
    seed: int = knob(0, "which images are held out", low=0)


@config
class Augment:
    """The classic augmentation of real images: a shifted crop after zero padding, and a flip."""

    pad_px: int = knob(2, "largest shift", low=0, high=64, unit="px")
    flip: bool = knob(True, "flip left-right with probability 1/2")


@config
class Squeeze:
    """Training of the observers (method.md 1)."""

    observers: tuple[str, ...] = knob(
        ("convnet_w16_d2", "convnet_w32", "resnet10_w16", "vgg5_w16"),
        "rows of core.models.MODELS, in visiting order",
    )
    epochs: int = knob(10, "passes over the training images", low=1, unit="epochs")
    batch_size: int = knob(64, "images a step", low=2)
    lr: float = knob(0.05, "peak learning rate of SGD", low=0)
    momentum: float = knob(0.9, "SGD momentum", 0, 0.999)
    weight_decay: float = knob(5e-4, "on weights with more than one dimension", low=0)
    schedule: str = knob("cos", "row of core.train.SCHEDULES")
    zeta: float = knob(1.0, "slow-down of the schedule: the cosine ends at zeta times the epochs", low=1)
    augment: Augment = dataclasses.field(default_factory=Augment)


@config
class Statistics:
    """The pass over the real images (method.md 2, 10.2)."""

    patch: int = knob(4, "side of a cell of the patch moments", low=1, high=64, unit="px")
    shard_images: int = knob(512, "images in one unit of the pass", low=1)
    augment: Augment = dataclasses.field(default_factory=Augment)


@config
class Init:
    """Where the images start (method.md 3.1)."""

    kind: str = knob("real", "row of core.init.INITS: random real images without replacement, or noise")
    ipc: int = knob(1, "images per class", low=1)
    seed: int = knob(0, "which draw; with Experiment.seed it drives init and recover", low=0)


@config
class Matching:
    """The statistical loss (method.md 2.6)."""

    weight: float = knob(0.01, "r, beside the cross-entropy", low=0)
    class_weight: float = knob(0.5, "0 = global statistics only, 1 = class statistics only", 0, 1)
    loss: str = knob("l2", "row of core.matching.MATCHERS")
    class_variance: Literal["pooled", "within_image"] = knob(
        "pooled",
        "variance over all pixels of the labels' images, or the mean variance inside one image (official)",
    )
    first_multiplier: float = knob(10.0, "weight of the first hooked layer, the pixels", low=0)
    momentum: float = knob(0.8, "of the running statistics of the condensed images", 0, 0.999)
    bias_correction: bool = knob(
        True, "divide the running statistics by 1 - momentum^visits (official: no, B5)"
    )


@config
class Flatness:
    """Regularisation towards flat minima (method.md 3.5)."""

    kind: Literal["none", "logits", "sam"] = knob(
        "none", "KL of the logits to those of averaged images, or SAM on the images (twice the cost)"
    )
    weight: float = knob(0.25, "of the KL; logits only", low=0)
    beta: float = knob(0.99, "rate of the averaged images; logits only", 0, 0.99999)
    temperature: float = knob(4.0, "of the softmax; logits only", low=0.1)
    rho: float = knob(0.1, "radius, L2 norm per image in [0, 1] pixels; sam only", low=0)


@config
class Recover:
    """Optimisation of the condensed images (method.md 3.3)."""

    iterations: int = knob(100, "steps; 0 keeps the initial images", low=0)
    lr: float = knob(0.05, "peak learning rate of Adam, in normalised pixels", low=0)
    betas: tuple[float, float] = knob((0.5, 0.9), "of Adam", 0, 0.9999)
    crop_min: float = knob(0.5, "smallest area of the shared random crop", 0.01, 1)
    flip: bool = knob(True, "flip the whole group with probability 1/2")
    classes_per_group: int = knob(
        10, "a group = these classes' images; it shares its batch statistics", low=1
    )
    matching: Matching = dataclasses.field(default_factory=Matching)
    flatness: Flatness = dataclasses.field(default_factory=Flatness)


@config
class Relabel:
    """The views of the condensed images and who labels them (method.md 4, 5.1). A view is a student batch."""

    observers: tuple[str, ...] | None = knob(None, "subset of the squeezed observers; null = all")
    batch_size: int = knob(25, "images in a view, that is the student's batch", low=2)
    crop_min: float = knob(0.5, "smallest area of a random crop", 0.01, 1)
    flip: bool = knob(True, "flip each image with probability 1/2")
    mix: str = knob("cutmix", "row of core.views.MIXES")
    page_images: int = knob(2048, "images of the views that are labelled and stored together", low=1)


@config
class Evaluate:
    """Training of the student on the condensed images (method.md 5)."""

    student: str = knob("convnet_w32", "row of core.models.MODELS")
    epochs: int = knob(300, "passes over the condensed images", low=1, unit="epochs")
    lr: float = knob(1e-3, "peak learning rate of AdamW", low=0)
    weight_decay: float = knob(0.01, "on weights with more than one dimension", low=0)
    schedule: str = knob("cos", "row of core.train.SCHEDULES")
    zeta: float = knob(2.0, "slow-down of the schedule: the cosine ends at zeta times the epochs", low=1)
    ce_weight: float = knob(
        0.025, "of the cross-entropy to the un-mixed label, beside the MSE of the logits", low=0
    )
    ema_horizon: float = knob(
        0.05, "averaging time of the evaluated weights, as a share of all steps", 0, 0.5
    )
    reports: int = knob(10, "times the accuracy is read, evenly along the training", low=1)
    seeds: tuple[int, ...] = knob((0,), "one student each; drives the views and the student", low=0)


@config
class Quirks:
    """Deviations of the official code that no field can say (method.md 6); all False in `fixed`."""

    swap_class_patch: bool = knob(
        False, "B2: the class targets of patch mean and patch variance are exchanged"
    )


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
        observers, labellers = self.squeeze.observers, self.relabel.observers
        if not observers or len(set(observers)) < len(observers):
            raise ConfigError("squeeze.observers", observers, "needs at least one model, each named once")
        if labellers is not None and (not labellers or not set(labellers) <= set(observers)):
            legal = f"must be some of squeeze.observers ({', '.join(observers)}), or null for all"
            raise ConfigError("relabel.observers", labellers, legal)
        if not self.evaluate.seeds or len(set(self.evaluate.seeds)) < len(self.evaluate.seeds):
            raise ConfigError("evaluate.seeds", self.evaluate.seeds, "needs at least one seed, each once")
