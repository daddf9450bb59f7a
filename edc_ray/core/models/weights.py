"""Where observers start: downloaded weights of torchvision or timm, or the files of a folder.

The file of an observer is FOLDER/OBSERVER.safetensors or FOLDER/OBSERVER.pth, with a dash for the slash of a
library's name: torchvision/resnet18 -> torchvision-resnet18.pth. It holds the state dict of the network, with
the names that its library gives, or that under the key state_dict or model. Nothing else is unpickled.
"""

import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from edc_ray.config import LIBRARIES, ConfigError, NotThere
from edc_ray.core.models.build import skeleton
from edc_ray.core.models.library import Library, timm_size
from edc_ray.core.random import fork_rng

PATH = "squeeze.weights"
Shapes = dict[str, tuple[int, ...]]


def check_offered(weights: str, name: str) -> None:
    """Refuse an observer that the library named by `weights` has none for; needs no dataset and no folder.

    Raises:
        ConfigError: squeeze.weights.
    """
    if weights not in LIBRARIES:
        return
    if not name.startswith(f"{weights}/"):
        raise ConfigError(PATH, weights, f"needs observers named {weights}/NAME, not {name}")
    if _offer(name) is None:
        raise ConfigError(PATH, weights, f"{weights} has no weights for {name}")


def check_weights(weights: str, name: str, classes: int, size_px: int, new_head: bool) -> None:
    """Refuse weights that `load_weights` would not take; reads headers of files and downloads nothing.

    Raises:
        ConfigError: squeeze.weights. NotThere: the folder lacks the observer's file.
    """
    check_offered(weights, name)
    if weights not in LIBRARIES:
        file = _file(weights, name)
        _new_head(str(file), _shapes(file), name, classes, size_px, new_head)
    elif (offer := _offer(name)) and offer.classes != classes and not new_head:
        raise _other_classes(weights, name, offer.classes, classes)


def load_weights(
    model: nn.Module, weights: str, name: str, classes: int, size_px: int, new_head: bool
) -> None:
    """Put the weights into what `build` made.

    new_head: where the class count differs, the last layer stays as it was drawn.

    Raises:
        ConfigError: squeeze.weights: they do not fit. NotThere: no such file, or it cannot be downloaded.
    """
    if weights in LIBRARIES:
        check_offered(weights, name)
        with fork_rng("weights"):  # the library draws weights before it has the others
            where, state = weights, _DOWNLOADS[weights](name, size_px)
    else:
        file = _file(weights, name)
        where, state = str(file), _read(file)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    left_out = _new_head(where, shapes, name, classes, size_px, new_head)
    inner = model.net if isinstance(model, Library) else model
    inner.load_state_dict({k: v for k, v in state.items() if k not in left_out}, strict=False)


def fingerprint(weights: str, names: Iterable[str]) -> str:
    """What the weights are, wherever they lie: a hash of the files, or of where they are downloaded from.

    Raises:
        ConfigError: squeeze.weights. NotThere: the folder lacks a file.
    """
    digest = hashlib.sha256()
    for name in names:
        check_offered(weights, name)
        if offer := _offer(name) if weights in LIBRARIES else None:
            digest.update(f"{name} {offer.url}\n".encode())
        else:
            file = _file(weights, name)
            stat = file.stat()
            digest.update(f"{name} {_hash(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _hash(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --- what fits ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _wanted(name: str, classes: int, size_px: int) -> tuple[Shapes, dict[str, int]]:
    """Shapes of the network's state dict; and the head's part of it: name -> the axis of the classes."""
    nets = [skeleton(name, count, size_px) for count in (classes, classes + 1)]
    states = [(net.net if isinstance(net, Library) else net).state_dict() for net in nets]
    ours, more = ({key: tuple(value.shape) for key, value in state.items()} for state in states)
    axes = {key: [a != b for a, b in zip(ours[key], more[key], strict=True)] for key in ours}
    return ours, {key: differs.index(True) for key, differs in axes.items() if any(differs)}


def _new_head(
    where: str, found: Shapes, name: str, classes: int, size_px: int, new_head: bool
) -> frozenset[str]:
    """The names of the head where its class count differs. Names that the network lacks are passed over."""
    wanted, head = _wanted(name, classes, size_px)
    other, wrong = {}, []  # head -> its class count; what no new head mends
    for key, shape in wanted.items():
        axis = head.get(key)
        if key not in found:  # a network may come without a head, and old files without BatchNorm's counters
            if axis is not None:
                other[key] = 0
            elif not key.endswith("num_batches_tracked"):
                wrong.append(f"lacks {key}")
        elif found[key] != shape:
            if axis is not None and (*found[key][:axis], shape[axis], *found[key][axis + 1 :]) == shape:
                other[key] = found[key][axis]
            else:
                wrong.append(f"{key} {found[key]}, not {shape}")
    if wrong:
        legal = f"does not fit {name} at {size_px} px ({len(wrong)} differences: {', '.join(wrong[:3])})"
        raise ConfigError(PATH, where, legal)
    if other and not new_head:
        raise _other_classes(where, name, next(iter(other.values())), classes)
    return frozenset(other)


def _other_classes(where: str, name: str, found: int, wanted: int) -> ConfigError:
    legal = f"has {found} classes for {name}, the dataset has {wanted}; squeeze.epochs >= 1 trains a new head"
    return ConfigError(PATH, where, legal)


# --- the two libraries --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a library has the weights of a network, and how many classes they know."""

    url: str
    classes: int


def _offer(name: str) -> Offer | None:
    """torchvision: the first weights, those of `pretrained=True` in the official code; timm: by the tag."""
    library, _, inner = name.partition("/")
    if library == "torchvision":
        first = _torchvision_weights(inner)
        return Offer(first.url, len(first.meta["categories"])) if first else None
    import timm

    cfg = timm.get_pretrained_cfg(inner)
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        return None
    url = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else str(cfg.url)
    return Offer(url, cfg.num_classes)


def _torchvision_weights(name: str) -> Any:
    from torchvision import models

    return next(iter(models.get_model_weights(name)), None)


def _from_torchvision(name: str, size_px: int) -> dict[str, Tensor]:
    from torchvision import models

    inner = name.partition("/")[2]
    chosen = _torchvision_weights(inner)
    try:
        return models.get_model(inner, weights=chosen, progress=False).state_dict()
    except (OSError, RuntimeError) as error:  # no network, no space; another checksum
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        how = f"download it elsewhere and put it into {folder} as {os.path.basename(chosen.url)}"
        raise _not_there("torchvision", chosen.url, folder, how, error) from error


def _from_timm(name: str, size_px: int) -> dict[str, Tensor]:
    import timm

    inner = name.partition("/")[2]
    try:
        return timm.create_model(inner, pretrained=True, **timm_size(inner, size_px)).state_dict()
    except OSError as error:
        from huggingface_hub import constants

        offer = _offer(name)
        url = offer.url if offer else ""
        how = (
            f"download its model.safetensors elsewhere and put it as {_stem(name)}.safetensors into a folder"
        )
        raise _not_there("timm", url, constants.HF_HUB_CACHE, f"{how} named in {PATH}", error) from error


def cached(name: str) -> tuple[str, bool]:
    """Where the downloaded weights of a library's network lie, and whether they are there."""
    library, _, inner = name.partition("/")
    if library == "torchvision":
        chosen = _torchvision_weights(inner)
        file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(chosen.url))
        return file, os.path.isfile(file)
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    cfg = timm.get_pretrained_cfg(inner)
    found = try_to_load_from_cache(cfg.hf_hub_id, "model.safetensors") if cfg and cfg.hf_hub_id else None
    return constants.HF_HUB_CACHE, isinstance(found, str)


_DOWNLOADS: dict[str, Callable[[str, int], dict[str, Tensor]]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def _not_there(weights: str, url: str, folder: str, how: str, error: Exception) -> NotThere:
    why = (str(error) or type(error).__name__).splitlines()[0]
    return NotThere(PATH, weights, f"{url} is not in {folder} and cannot be downloaded ({why}); {how}")


# --- files --------------------------------------------------------------------------------------------------


def _stem(name: str) -> str:
    return name.replace("/", "-").replace(":", "-")


def _file(folder: str, name: str) -> Path:
    found = [Path(folder).expanduser() / f"{_stem(name)}{suffix}" for suffix in (".safetensors", ".pth")]
    for file in found:
        if file.is_file():
            return file
    wanted = " or ".join(file.name for file in found)
    where = found[0].parent.absolute()
    raise NotThere(PATH, folder, f"there is no {wanted} in {where}: put the state dict of {name} there")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what other bytes make a reader raise is in no list
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(PATH, str(file), f"cannot be read as a file of tensors alone: {why}") from error


def _shapes(file: Path) -> Shapes:
    if file.suffix == ".pth":
        return {key: tuple(value.shape) for key, value in _read(file).items()}
    with _readable(file), safetensors.safe_open(file, framework="pt") as opened:
        return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}


def _read(file: Path) -> dict[str, Tensor]:
    with _readable(file):
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        # Mapped where the format allows it: a look at the shapes then reads no numbers.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(PATH, str(file), "is not the state dict of a network")
    return {key.removeprefix("module."): value for key, value in found.items()}  # of DataParallel
