"""Networks by name: their making, and what can be wrong with one, found without computing."""

import functools

import torch
from torch import nn

from edc_ray.config import LIBRARIES, ConfigError, unknown
from edc_ray.core.models.layers import Layer, layers
from edc_ray.core.models.library import Library, names, on_meta
from edc_ray.core.models.plugins import is_reference, resolve
from edc_ray.core.models.small import MODELS
from edc_ray.core.random import fork_rng


def check_name(path: str, name: str) -> None:
    """Refuse, as the value of the config field `path`, a name that is no row, in neither library and no
    function of the user's own.

    Raises:
        ConfigError: with near names.
    """
    if is_reference(name):
        resolve(path, name)
        return
    library, slash, inner = name.partition("/")
    if slash and library in LIBRARIES:
        if inner not in names(library):
            error = unknown(path, inner, names(library))
            near = error.legal if "did you mean" in error.legal else f"not in {library}.list_models()"
            raise ConfigError(path, name, near.replace("did you mean ", f"did you mean {library}/"))
    elif name not in MODELS:
        error = unknown(path, name, MODELS)
        raise ConfigError(path, name, f"{error.legal}; or torchvision/NAME, timm/NAME, module:function")


def _make(name: str, classes: int, size_px: int) -> nn.Module:
    return MODELS[name](classes, size_px) if name in MODELS else Library(name, classes, size_px)


def build(name: str, classes: int, size_px: int, seed: int | str) -> nn.Module:
    """The network of that name with weights drawn from `seed` alone, on the CPU, in training mode.

    Raises:
        ConfigError: no such network, or the images are too small for it.
    """
    check_name("model", name)
    with fork_rng(seed):
        return _make(name, classes, size_px)


def skeleton(name: str, classes: int, size_px: int) -> nn.Module:
    """The network without memory for its numbers (meta device), in eval mode."""
    return on_meta(lambda: _make(name, classes, size_px))


# A sweep checks every value of every knob, and an observer can be the student too, hence the memory.
@functools.lru_cache(maxsize=256)
def probe(name: str, classes: int, size_px: int) -> tuple[object, tuple[Layer, ...]]:
    """What the network gives for 2 images (the shape, or the type of what is no tensor), and its `layers`.

    Raises:
        ConfigError: the images are too small.
        RuntimeError, ValueError, AssertionError: the same, of a library.
    """
    model = skeleton(name, classes, size_px)
    with torch.no_grad():
        images = torch.empty(2, 3, size_px, size_px, device="meta")
        given = model.given() if isinstance(model, Library) else model(images)
    shape = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
    return shape, layers(model)


def check(path: str, name: str, classes: int, size_px: int, matched: bool) -> None:
    """Refuse a network that does not give `classes` logits an image of `size_px`, without computing any.

    matched: it also needs a layer whose input can be matched.

    Raises:
        ConfigError: names the field `path`, or dataset.size_px.
    """
    check_name(path, name)
    try:
        shape, found = probe(name, classes, size_px)
    except ConfigError as error:  # of the images' size, or of the network
        raise ConfigError(path, error.value, error.legal) if error.path == "model" else error from None
    except Exception as error:  # in the words of its library
        if is_reference(name):  # what a function of the user's own raises is in no list
            why = f"{type(error).__name__}: {(str(error) or 'no reason').splitlines()[0]}"
            legal = f"fails with {classes} classes and images of dataset.size_px = {size_px} ({why})"
        elif isinstance(error, RuntimeError | ValueError | AssertionError):
            legal = f"does not take images of dataset.size_px = {size_px}: {error or type(error).__name__}"
        else:
            raise
        raise ConfigError(path, name, legal) from error
    if shape != (2, classes):
        legal = f"gives {shape} for 2 images of {classes} classes; must give (2, {classes})"
        raise ConfigError(path, name, legal)
    if matched and not found:
        raise ConfigError(path, name, "has no convolution and no BatchNorm2d: there is nothing to match")
