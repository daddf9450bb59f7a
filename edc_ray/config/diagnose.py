"""What `edc-ray diagnose` looks at."""

from typing import Literal

from edc_ray.config.fields import config, knob

_SYNTHESIS = ("synthesis_sharpness", "initialisation", "transport", "class_variance", "smoothing")
_SHARPNESS = ("synthesis_sharpness", "student_sharpness", "smoothing")


@config
class Diagnose:
    """A look at how a set is made and what students learn from it; only the stage `diagnose` reads it."""

    what: Literal[
        "synthesis_sharpness", "student_sharpness", "gradients", "initialisation", "landscape",
        "transport", "class_variance", "smoothing",
    ] = knob("synthesis_sharpness", "row of pipeline.diagnose.DIAGNOSTICS")  # fmt: skip
    seed: int = knob(0, "drives random vectors, batches and directions", low=0)
    groups: int = knob(5, "groups of the synthesis, the first ones", low=1, when={"what": _SYNTHESIS})
    points: int = knob(
        5, "times along the synthesis or the training, evenly spaced, the end included", low=1,
        when={"what": (*_SYNTHESIS, "student_sharpness")},
    )  # fmt: skip
    probes: int = knob(
        10, "random vectors of an estimate of a Hessian's norm", low=2, when={"what": _SHARPNESS}
    )
    images: int = knob(
        128,
        "real training images, and views of the condensed ones, that a student's loss is read on; or real "
        "ones of each class, that the set is compared with", low=1,
        when={"what": ("student_sharpness", "landscape", "transport")},
    )  # fmt: skip
    batch_sizes: tuple[int, ...] = knob(
        (4, 8, 16, 32, 64, 128, 256, 512, 1024),
        "images in a random batch; where the set has fewer, all of it", low=1, when={"what": "gradients"},
    )  # fmt: skip
    global_images: int | None = knob(
        None, "random real training images whose gradient stands for that of all; null = all", low=1,
        when={"what": "gradients"},
    )  # fmt: skip
    draws: int = knob(20, "random batches of each size", low=2, when={"what": "gradients"})
    radius: float = knob(
        1.0, "how far a slice goes to each side; 1 = as long as the weights, filter by filter", low=1e-3,
        when={"what": "landscape"},
    )  # fmt: skip
    steps: int = knob(
        5, "places to each side of the middle, on a line and on each axis of a plane", low=1,
        when={"what": "landscape"},
    )  # fmt: skip
