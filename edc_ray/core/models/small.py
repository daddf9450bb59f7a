"""MODELS: the networks for small images that observe, label and learn (method.md 1.2).

Composed of a few plain blocks. To add one, write a row: a function of (classes, size_px) that returns a
module from images to logits.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edc_ray.config import ConfigError

# --- blocks -------------------------------------------------------------------------------------------------


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return _conv_bn(inputs, outputs, kernel, stride, groups).append(nn.ReLU(inplace=True))


def _head(inputs: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Residual(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return self.body(x) + self.shortcut(x)


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: one half of the channels passes, the other is transformed, then they interleave.

    Where the map shrinks, both halves are made from all channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, self.shrinks = outputs // 2, stride > 1
        seen = inputs if self.shrinks else half
        self.passed: nn.Module = nn.Identity()
        if self.shrinks:
            self.passed = nn.Sequential(_conv_bn(seen, seen, 3, stride, seen), _conv_bn_relu(seen, half, 1))
        self.transformed = nn.Sequential(
            _conv_bn_relu(seen, half, 1), _conv_bn(half, half, 3, stride, half), _conv_bn_relu(half, half, 1)
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        left, right = (x, x) if self.shrinks else x.chunk(2, dim=1)
        return torch.stack((self.passed(left), self.transformed(right)), dim=2).flatten(1, 2)


# --- networks -----------------------------------------------------------------------------------------------


def _convnet(classes: int, size_px: int, *, width: int, depth: int) -> nn.Module:
    """DC-bench ConvNet: conv, instance norm, ReLU, 2x2 average pooling; a linear layer on the flat map."""
    side = size_px >> depth
    if not side:
        raise ConfigError(
            "dataset.size_px", size_px, f"must be >= {1 << depth} px: a ConvNet halves it {depth} times"
        )
    blocks: list[nn.Module] = []
    for index in range(depth):
        conv = nn.Conv2d(width if index else 3, width, 3, padding=1)
        blocks += [conv, nn.GroupNorm(width, width), nn.ReLU(inplace=True), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * side**2, classes))


def _basic(inputs: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv_bn_relu(inputs, width, 3, stride), _conv_bn(width, width))


def _bottleneck(inputs: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _conv_bn_relu(inputs, width, 1), _conv_bn_relu(width, width, 3, stride), _conv_bn(width, 4 * width, 1)
    )


def _resnet(
    classes: int,
    size_px: int,
    *,
    depths: tuple[int, ...],
    block: Callable[[int, int, int], nn.Sequential] = _basic,
    expansion: int = 1,
    width: int = 64,
) -> nn.Module:
    """ResNet with a 3x3 stem and no max-pooling; the width doubles and the map halves from stage to stage."""
    parts: list[nn.Module] = [_conv_bn_relu(3, width)]
    inputs = width
    for stage, depth in enumerate(depths):
        inner = width << stage
        for index in range(depth):
            stride = 2 if stage and not index else 1
            outputs = inner * expansion
            shortcut = _conv_bn(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None
            parts += [Residual(block(inputs, inner, stride), shortcut), nn.ReLU(inplace=True)]
            inputs = outputs
    return _kaiming(nn.Sequential(*parts, _head(inputs, classes)))


def _wide_resnet(classes: int, size_px: int, *, blocks: int, widen: int) -> nn.Module:
    """WRN: pre-activation; where the shape changes, the 1x1 shortcut starts behind the first activation."""
    parts: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    inputs = 16
    for stage in range(3):
        outputs = (16 * widen) << stage
        for index in range(blocks):
            stride = 2 if stage and not index else 1
            first = [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
            body = [
                *_conv_bn_relu(inputs, outputs, 3, stride),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            ]
            if inputs == outputs:
                parts.append(Residual(nn.Sequential(*first, *body)))
            else:
                shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                parts += [*first, Residual(nn.Sequential(*body), shortcut)]
            inputs = outputs
    return _kaiming(
        nn.Sequential(*parts, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), _head(inputs, classes))
    )


def _mobilenet_v2(classes: int, size_px: int, *, multiplier: float) -> nn.Module:
    """MobileNetV2 for 32 px: fewer strides than the original, ReLU for ReLU6, a full first block."""
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    inputs = int(32 * multiplier)
    parts: list[nn.Module] = [_conv_bn_relu(3, inputs, stride=2)]
    for expand, width, depth, first_stride in stages:
        outputs = int(width * multiplier)
        for index in range(depth):
            stride, inner = 1 if index else first_stride, inputs * expand
            body = nn.Sequential(
                _conv_bn_relu(inputs, inner, 1),
                _conv_bn_relu(inner, inner, 3, stride, inner),
                _conv_bn(inner, outputs, 1),
            )
            parts.append(Residual(body) if stride == 1 and inputs == outputs else body)
            inputs = outputs
    last = int(1280 * max(1.0, multiplier))
    return _kaiming(nn.Sequential(*parts, _conv_bn_relu(inputs, last, 1), _head(last, classes)))


def _shufflenet_v2(classes: int, size_px: int, *, widths: tuple[int, ...], last: int) -> nn.Module:
    """ShuffleNetV2 for 32 px: a 1x1 stem without pooling; three stages that each open with stride 2."""
    parts: list[nn.Module] = [_conv_bn_relu(3, 24, 1)]
    inputs = 24
    for outputs, more in zip(widths, (3, 7, 3), strict=True):
        parts += [Shuffle(inputs, outputs, 2), *(Shuffle(outputs, outputs, 1) for _ in range(more))]
        inputs = outputs
    return nn.Sequential(*parts, _conv_bn_relu(inputs, last, 1), _head(last, classes))


def _vgg(
    classes: int, size_px: int, *, stages: tuple[tuple[int, ...], ...], last_pool: bool = False
) -> nn.Module:
    """VGG with BatchNorm: stages of 3x3 convolutions with 2x2 max-pooling between them; a linear layer."""
    parts: list[nn.Module] = []
    inputs = 3
    for stage in stages:
        for outputs in stage:
            parts.append(_conv_bn_relu(inputs, outputs))
            inputs = outputs
        parts.append(nn.MaxPool2d(2, ceil_mode=last_pool))  # one pixel stays one
    return _kaiming(nn.Sequential(*(parts if last_pool else parts[:-1]), _head(inputs, classes)))


def _kaiming(model: nn.Module) -> nn.Module:
    """Convolutions drawn by Kaiming's rule, fan-out; the rest as torch draws it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


# --- the table ----------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "convnet_w128": partial(_convnet, width=128, depth=3),
    "convnet_w32": partial(_convnet, width=32, depth=3),
    "convnet_d1": partial(_convnet, width=128, depth=1),
    "convnet_d2": partial(_convnet, width=128, depth=2),
    "convnet_w16_d2": partial(_convnet, width=16, depth=2),
    "resnet18": partial(_resnet, depths=(2, 2, 2, 2)),
    "resnet50": partial(_resnet, depths=(3, 4, 6, 3), block=_bottleneck, expansion=4),
    "resnet101": partial(_resnet, depths=(3, 4, 23, 3), block=_bottleneck, expansion=4),
    "resnet10_w16": partial(_resnet, depths=(1, 1, 1, 1), width=16),
    "resnet10_w8": partial(_resnet, depths=(1, 1, 1, 1), width=8),
    "vgg5_w16": partial(_vgg, stages=((16,), (32,), (64,), (64,))),
    "vgg11_bn": partial(_vgg, stages=((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2), last_pool=True),
    "mobilenet_v2": partial(_mobilenet_v2, multiplier=1.0),
    "mobilenet_v2_half": partial(_mobilenet_v2, multiplier=0.5),
    "wrn_16_2": partial(_wide_resnet, blocks=2, widen=2),
    "shufflenet_v2_x0_5": partial(_shufflenet_v2, widths=(48, 96, 192), last=1024),
}
