"""What the layers of a network see: the inputs of its convolutions and BatchNorms (method.md 2.1)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Layer:
    """A module whose input is matched. `channels` counts the input's."""

    name: str
    kind: Literal["conv", "bn"]
    channels: int


def _hooked(model: nn.Module) -> dict[str, nn.Conv2d | nn.BatchNorm2d]:
    matched = getattr(model, "matched", None)
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.BatchNorm2d) and (matched is None or name in matched)
    }


def layers(model: nn.Module) -> tuple[Layer, ...]:
    """Every Conv2d and BatchNorm2d in `named_modules()` order; the first sees the image (method.md 2.1).

    Of a library's network only those that a forward gives one map an image (`Library.matched`).
    """
    return tuple(
        Layer(name, "conv", m.in_channels) if isinstance(m, nn.Conv2d) else Layer(name, "bn", m.num_features)
        for name, m in _hooked(model).items()
    )


@contextmanager
def capture(
    model: nn.Module, read: Callable[[str, Tensor], Any] = lambda name, z: z
) -> Iterator[dict[str, Any]]:
    """In the block a forward fills the mapping: layer name -> input (n, channels, h, w), in the graph.

    read: called with (layer name, input) as the input goes by; what it returns is kept instead.
    Of a module that is called twice the last input stays, as in the official hooks; one that is not called
    is not in the mapping.
    """
    inputs: dict[str, Any] = {}

    def keep(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            inputs[name] = read(name, args[0])

    handles = [m.register_forward_pre_hook(partial(keep, name)) for name, m in _hooked(model).items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
