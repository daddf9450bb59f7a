"""What is known of the real images: dataset, split, observers, statistics."""

import dataclasses
from typing import Literal

from edc_ray.config.fields import config, knob


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
    skip_corrupt: bool = knob(
        False,
        "leave out images that cannot be decoded, which is tried of all when a process first needs the list; "
        "false = an error that counts and names them",
        later=True,
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


LIBRARIES = ("torchvision", "timm")  # where networks and downloaded weights come from


@config
class Squeeze:
    """Training of the observers (method.md 1). Keys hold what `weights` are, not where they lie."""

    observers: tuple[str, ...] = knob(
        ("convnet_w16_d2", "convnet_w32", "resnet10_w16", "vgg5_w16"),
        "rows of core.models.MODELS, or torchvision/NAME, timm/NAME, module:function; in visiting order",
    )
    weights: str | None = knob(
        None,
        "where training starts: null = random; torchvision or timm = their downloaded weights; or a folder "
        "with OBSERVER.safetensors or OBSERVER.pth, where a name has - for / (torchvision-resnet18.pth)",
        hashed=False,
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
    clip_norm: float | None = knob(
        None, "largest L2 norm of a step's gradient, which is scaled down to it; null = any", low=1e-3
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
        64, "images in a batch of per_batch; none crosses shard_images", low=1,
        when={"conv_variance": "per_batch"},
    )  # fmt: skip
    shard_images: int = knob(512, "images in one unit of the pass", low=1)
    augment: Augment = dataclasses.field(default_factory=Augment)
