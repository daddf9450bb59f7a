"""Networks by name: rows of MODELS for small images, and those of torchvision and timm."""

from edc_ray.core.models.build import build, check, check_name, probe, skeleton
from edc_ray.core.models.layers import Layer, capture, layers
from edc_ray.core.models.library import Library
from edc_ray.core.models.small import MODELS
from edc_ray.core.models.weights import cached, check_offered, check_weights, fingerprint, load_weights

__all__ = [
    "MODELS", "Layer", "Library", "build", "cached", "capture", "check", "check_name", "check_offered",
    "check_weights", "fingerprint", "layers", "load_weights", "probe", "skeleton",
]  # fmt: skip
