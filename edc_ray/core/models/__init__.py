"""Networks by name: rows of MODELS for small images, those of torchvision and timm, and the user's own."""

from edc_ray.core.models import plugins
from edc_ray.core.models.build import build, check, check_name, probe, skeleton
from edc_ray.core.models.layers import Layer, capture, layers
from edc_ray.core.models.library import Library
from edc_ray.core.models.small import MODELS
from edc_ray.core.models.weights import cached, check_offered, check_weights, fingerprint, load_weights

__all__ = [
    "MODELS", "Layer", "Library", "build", "cached", "capture", "check", "check_name", "check_offered",
    "check_weights", "fingerprint", "layers", "load_weights", "plugins", "probe", "skeleton",
]  # fmt: skip
