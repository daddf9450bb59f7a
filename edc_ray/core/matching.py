"""The statistical loss: moments of a group of images against those of the real ones (method.md 2.6).

An observer's statistics are one flat vector of segments: for each matched layer the means and the variances
of its channels and, for a convolution, of its patches. `Layout` says where each of these segments lies.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata
from typing import TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from edc_ray.config import Matching, Recover, unknown
from edc_ray.core import models
from edc_ray.core.stats import (
    Moments,
    Pair,
    group_moments,
    merged,
    pooled,
    shares,
    whole,
    within_image,
)

T = TypeVar("T")
FAMILIES = ("bn", "channel", "patch")
PATH, GROUP = "recover.matching.loss", "edc_ray.matchers"  # the field; the entry points of others
# Of segments of several widths, padded with zeros to the widest.
Norm = Callable[[Float[Tensor, "g s w"], Float[Tensor, " s"]], Float[Tensor, "g s"]]


def l2(difference: Float[Tensor, "g s w"], width: Float[Tensor, " s"]) -> Float[Tensor, "g s"]:
    """The unsquared norm (paper Eq. 5; official code)."""
    return torch.linalg.vector_norm(difference, dim=-1)


def l2_squared(difference: Float[Tensor, "g s w"], width: Float[Tensor, " s"]) -> Float[Tensor, "g s"]:
    """The squared norm, as in SRe2L's formula."""
    return difference.square().sum(-1)


def rms(difference: Float[Tensor, "g s w"], width: Float[Tensor, " s"]) -> Float[Tensor, "g s"]:
    """The norm per entry: layers of different width weigh alike."""
    return l2(difference, width) / width.sqrt()


MATCHERS: dict[str, Norm] = {"l2": l2, "l2_squared": l2_squared, "rms": rms}


def reference(name: str) -> str | None:
    """The `module:function` of a loss of the user's own, which an entry point may name; None for a row.

    Raises:
        ConfigError: there is no such loss (with near names).
    """
    if name in MATCHERS:
        return None
    if models.plugins.is_reference(name):
        return name
    found = {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}
    if name not in found:
        raise unknown(PATH, name, MATCHERS | found, more="or module:function")
    return found[name]


def norm_of(name: str) -> Norm:
    """The loss of that name: a row of MATCHERS, or the user's own. Raises ConfigError."""
    return MATCHERS[name] if name in MATCHERS else _own(name)


@functools.cache  # asked for in every iteration
def _own(name: str) -> Norm:
    return models.plugins.resolve(PATH, reference(name) or name)


CLASS_VARIANCES = {"pooled": pooled, "within_image": within_image, "per_class": pooled}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an observer's vector has what; all that a loss needs of it, made once.

    layers: the matched ones, in hook order. owner: which segment is whose.
    columns: the entries of each segment; where it has fewer, the vector's length, at which a 0 is put.
    """

    layers: tuple[models.Layer, ...]
    owner: Bool[Tensor, "s l"]
    width: Float[Tensor, " s"]
    columns: Int[Tensor, "s w"]


@dataclass(frozen=True, slots=True)
class Runs:
    """The images of one class in one group, for class_form per_class: a row of statistics each.

    owner: the run of each image. group, label: of each run. share: p(c), its part of its group's images.
    """

    owner: Int[Tensor, " n"]
    group: Int[Tensor, " r"]
    label: Int[Tensor, " r"]
    share: Float[Tensor, "g r"]


@dataclass(frozen=True, slots=True)
class Target:
    """What one observer's statistics should be: of the whole data, and of each group's classes.

    by_class: a row for each group's mix of labels or, where there are `runs`, for each of them.
    weight: w_l, of each layer.
    """

    layout: Layout
    weight: Float[Tensor, " l"]
    whole: Float[Tensor, "1 d"]
    by_class: Float[Tensor, "r d"]
    runs: Runs | None = None


def moved(part: T, device: torch.device) -> T:
    """A Target with all its tensors, or a part of it, on the device."""
    if isinstance(part, Tensor):
        return cast(T, part.to(device))
    if not isinstance(part, Target | Layout | Runs):
        return part
    return replace(part, **{f.name: moved(getattr(part, f.name), device) for f in fields(part)})


# --- what is matched ----------------------------------------------------------------------------------------


def kinds(layer: models.Layer, families: Sequence[str]) -> tuple[str, ...]:
    """Which statistics of the layer's input are matched: of its channels, of its patches."""
    if layer.kind == "bn":
        return ("channel",) if "bn" in families else ()
    return tuple(kind for kind in ("channel", "patch") if kind in families)


def matched(model: nn.Module, families: Sequence[str]) -> tuple[models.Layer, ...]:
    """The hooked layers of which something is matched."""
    return tuple(layer for layer in models.layers(model) if kinds(layer, families))


def needed(cfg: Recover) -> bool:
    """Whether the loss has a term that looks at layers."""
    return cfg.iterations > 0 and (cfg.matching.weight > 0 or cfg.flatness.kind == "statistics")


def layout(layers: Sequence[models.Layer], segments: Sequence[tuple[int, int]]) -> Layout:
    """segments: the position of its layer, and the width, of each."""
    widths = torch.tensor([width for _, width in segments], dtype=torch.long)
    owner = torch.zeros(len(segments), len(layers), dtype=torch.bool)
    for row, (index, _) in enumerate(segments):
        owner[row, index] = True
    places = torch.arange(int(widths.max()) if segments else 0)
    columns = (widths.cumsum(0) - widths)[:, None] + places
    columns = torch.where(places < widths[:, None], columns, int(widths.sum()))
    return Layout(tuple(layers), owner, widths.float(), columns)


def runs(labels: Int[Tensor, "g n"]) -> Runs:
    """The classes of each group, in order."""
    groups, n = labels.shape
    classes = int(labels.max()) + 1
    tags = (labels + classes * torch.arange(groups, device=labels.device)[:, None]).flatten()
    found, owner, counts = tags.unique(return_inverse=True, return_counts=True)
    group = found // classes
    share = functional.one_hot(group, groups).T * (counts / n)
    return Runs(owner, group, found % classes, share)


# --- measuring ----------------------------------------------------------------------------------------------


def segments(
    z: Float[Tensor, "n c h w"],
    layer: models.Layer,
    groups: int,
    patch: int,
    families: Sequence[str] = FAMILIES,
    runs: Runs | None = None,
) -> Float[Tensor, "rows d"]:
    """What is matched of a layer's input z: of each group, then of each of the `runs`."""
    wanted = kinds(layer, families)
    about = patch if "patch" in wanted else None, "channel" in wanted
    if runs is None:
        return torch.cat([part for pair in group_moments(z, groups, *about) for part in pair], 1)
    pairs = group_moments(z, len(z), *about)
    by_group = [part for each in pairs for part in merged(*each, runs.group[runs.owner], groups)]
    by_run = [part for each in pairs for part in merged(*each, runs.owner, len(runs.group))]
    return torch.cat([torch.cat(by_group, 1), torch.cat(by_run, 1)])


def measure(
    model: nn.Module,
    images: Float[Tensor, "n 3 s s"],
    layers: Sequence[models.Layer],
    groups: int,
    patch: int,
    families: Sequence[str] = FAMILIES,
    runs: Runs | None = None,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "rows d"]]:
    """Logits, and the statistics of each group, then of each of the `runs`; at least one layer.

    They are taken as a layer's input goes by, while it is still in the cache.
    """
    by_name = {layer.name: layer for layer in layers}

    def read(name: str, z: Tensor) -> Tensor | None:
        return segments(z, by_name[name], groups, patch, families, runs) if name in by_name else None

    with models.capture(model, read) as found:
        logits = model(images)
    return logits, torch.cat([found[layer.name] for layer in layers], 1)


# --- targets ------------------------------------------------------------------------------------------------


def target(
    model: nn.Module,
    moments: Mapping[str, Moments],
    labels: Int[Tensor, "g n"],
    cfg: Matching,
    *,
    local: Sequence[Mapping[str, Moments]] | None = None,
    swap_patch: bool = False,
    double_conv: bool = False,
) -> Target:
    """Targets of one observer for groups with these labels, on the CPU; empty where no layer is matched.

    BatchNorm layers match the running statistics as global ones (method.md 2.3).
    local: for each group the moments of its own real images, with class_form local.
    swap_patch, double_conv: quirks B2 and B4.
    """
    layers, of_runs = matched(model, cfg.families), None
    if cfg.class_form == "per_class":
        of_runs = runs(labels)
        labels = of_runs.label[:, None]
    far, near, segments = [], [], []  # type: tuple[list[Tensor], list[Tensor], list[tuple[int, int]]]
    for index, layer in enumerate(layers):
        m = moments[layer.name]
        for kind in kinds(layer, cfg.families):
            scale = 2 if double_conv and layer.kind == "conv" else 1
            far += [scale * part for part in _global(model.get_submodule(layer.name), m, kind)]
            if local is None:
                mix = functional.one_hot(labels, len(m.count)).double().mean(1)
                pair = CLASS_VARIANCES[cfg.class_form](m, mix, kind)
            else:
                pair = _local([each[layer.name] for each in local], kind)
            near += reversed(pair) if swap_patch and kind == "patch" else pair
            segments += [(index, part.shape[1]) for part in pair]
    weight = torch.ones(len(layers))
    weight[:1] = cfg.first_multiplier
    by_class = torch.cat(near, 1).float() if near else torch.zeros(len(labels), 0)
    whole = torch.cat(far, 1).float() if far else torch.zeros(1, 0)
    return Target(layout(layers, segments), weight, whole, by_class, of_runs)


def _global(module: nn.Module, m: Moments, kind: str) -> Pair:
    if (
        isinstance(module, nn.BatchNorm2d)
        and module.running_mean is not None
        and module.running_var is not None
    ):
        return module.running_mean[None].double().cpu(), module.running_var[None].double().cpu()
    return whole(m, kind)


def _local(groups: Sequence[Moments], kind: str) -> Pair:
    mean, var = zip(*(pooled(m, shares(m), kind) for m in groups), strict=True)
    return torch.cat(mean).cpu(), torch.cat(var).cpu()


# --- the loss -----------------------------------------------------------------------------------------------


def residuals(difference: Float[Tensor, "g d"], at: Layout, norm: Norm) -> Float[Tensor, "g l"]:
    """Sum of the norms of each layer's segments; all segments in a few operations (method.md 7.2, W2)."""
    padded = functional.pad(difference, (0, 1)).index_select(1, at.columns.flatten())
    per_segment = norm(padded.unflatten(1, at.columns.shape), at.width)
    return (per_segment[:, :, None] * at.owner).sum(1)


def distance(
    one: Float[Tensor, "g d"], other: Float[Tensor, "#g d"], goal: Target, cfg: Matching
) -> Float[Tensor, " g"]:
    """sum_l w_l R_l of the difference, with w_0 = first_multiplier and w_l = 1."""
    return (residuals(one - other, goal.layout, norm_of(cfg.loss)) * goal.weight).sum(1)


def loss(
    statistics: Float[Tensor, "rows d"],
    goal: Target,
    cfg: Matching,
    keep: Bool[Tensor, "g l"] | None = None,
) -> Float[Tensor, " g"]:
    """sum_l w_l ((1 - a) R_global + a R_class), a = class_weight, over the layers that a group keeps.

    R_class is one term for the group's mix of labels or, with `runs`, sum_c p(c) R_c (Eq. 5, P1).
    """
    a, rows = cfg.class_weight, len(goal.by_class)
    groups = len(statistics) - (rows if goal.runs else 0)
    difference = torch.cat([statistics[:groups] - goal.whole, statistics[-rows:] - goal.by_class])
    layers = residuals(difference, goal.layout, norm_of(cfg.loss)) * goal.weight
    if keep is not None:
        layers = layers * torch.cat([keep, keep if goal.runs is None else keep[goal.runs.group]])
    far, near = layers.sum(1).split([groups, rows])
    if goal.runs is not None:
        share = goal.runs.share
        near = torch.where(share > 0, share * near, 0).sum(1)  # a run that is not finite is its group's alone
    return (1 - a) * far + a * near


def straight_through(
    average: Float[Tensor, "g d"], now: Float[Tensor, "g d"], cfg: Matching, visits: int
) -> tuple[Float[Tensor, "g d"], Float[Tensor, "g d"]]:
    """(new running average, value to match): the value of the average, the whole gradient of `now`.

    average starts at 0; visits counts this one. Without bias_correction the start is felt for ever (B5).
    """
    average = cfg.momentum * average + (1 - cfg.momentum) * now.detach()
    value = average / (1 - cfg.momentum**visits) if cfg.bias_correction else average
    return average, value + (now - now.detach())
