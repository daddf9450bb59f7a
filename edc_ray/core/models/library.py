"""Networks of torchvision and timm, and of the user's own, imported only where one is named.

The paper's at 224 px:

ResNet-18/50/101  torchvision/resnet18 ...    EfficientNet-B0  torchvision/efficientnet_b0
MobileNet-V2      torchvision/mobilenet_v2    ShuffleNet-V2    torchvision/shufflenet_v2_x0_5
ConvNeXt-T        torchvision/convnext_tiny   Swin-T           torchvision/swin_t
VGG11-BN          torchvision/vgg11_bn        DeiT-T           timm/deit_tiny_patch16_224
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edc_ray.config import ConfigError
from edc_ray.core.models.layers import capture
from edc_ray.core.models.plugins import is_reference, resolve
from edc_ray.core.random import fork_rng

# Arguments of torchvision's builders that only some of them have.
_AUXILIARY = {"aux_logits": False, "init_weights": True, "transform_input": True}  # as their weights want it
_ARGUMENTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "googlenet": lambda size_px: _AUXILIARY,
    "inception_v3": lambda size_px: _AUXILIARY,
    "maxvit_t": lambda size_px: {"input_size": (size_px, size_px)},
    **dict.fromkeys(
        ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"), lambda size_px: {"image_size": size_px}
    ),
}


def _torchvision(name: str, classes: int, size_px: int) -> nn.Module:
    from torchvision import models

    more = _ARGUMENTS.get(name, lambda size_px: {})(size_px)
    return models.get_model(name, weights=None, num_classes=classes, **more)


def _timm(name: str, classes: int, size_px: int) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=classes, **timm_size(name, size_px))


def timm_size(name: str, size_px: int) -> dict[str, Any]:
    """The argument for networks that are made for one image size; the others have no such argument."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": size_px} if cfg is not None and cfg.fixed_input_size else {}


_BUILDERS: dict[str, Callable[[str, int, int], nn.Module]] = {"torchvision": _torchvision, "timm": _timm}


@cache
def names(library: str) -> frozenset[str]:
    """All classification networks of torchvision; those of timm, also as NAME.TAG, TAG being its weights."""
    if library == "torchvision":
        from torchvision import models

        return frozenset(models.list_models(module=models))
    import timm

    return frozenset(timm.list_models()) | frozenset(timm.list_models(include_tags=True))


def _own(name: str, classes: int, size_px: int) -> nn.Module:
    net = resolve("model", name)(classes, size_px)
    if not isinstance(net, nn.Module):
        raise ConfigError("model", name, f"must give a torch.nn.Module; gave {type(net).__name__}")
    return net


class Library(nn.Module):
    """A network of a library, "torchvision/NAME" or "timm/NAME", or of the function "module:function"."""

    def __init__(self, name: str, classes: int, size_px: int) -> None:
        super().__init__()
        self.origin = (name, classes, size_px)
        library, _, inner = name.partition("/")
        own = is_reference(name)
        self.net = _own(*self.origin) if own else _BUILDERS[library](inner, classes, size_px)

    def forward(self, x: Float[Tensor, "n c s s"]) -> Tensor:
        return self.net(x)

    @property
    def matched(self) -> frozenset[str]:
        """The layers that a forward calls with one map an image: no auxiliary heads, no split images."""
        return _forward(*self.origin)[1]

    def given(self) -> Any:
        """What a forward gives for 2 images, without its numbers."""
        return _forward(*self.origin)[0]


@cache
def _forward(name: str, classes: int, size_px: int) -> tuple[Any, frozenset[str]]:
    twin = on_meta(lambda: Library(name, classes, size_px))
    assert isinstance(twin, Library)
    with torch.no_grad(), capture(twin.net) as inputs:
        given = twin(torch.empty(2, 3, size_px, size_px, device="meta"))
    return given, frozenset(f"net.{name}" for name, z in inputs.items() if z.ndim == 4 and len(z) == 2)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` gives without its numbers, in eval mode: shapes at next to no cost."""
    with fork_rng("shapes"):
        try:
            with torch.device("meta"):
                model = make()
        except NotImplementedError:  # it reads its own numbers while it is made, as torchvision's RegNets do
            model = make().to("meta")
    return model.eval()
