"""What is optimised: groups of images, the observers that look at them, and what these should see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edc_ray.config import Experiment, Recover
from edc_ray.core import matching
from edc_ray.core.random import generator
from edc_ray.core.stats import Moments


@dataclass(frozen=True, slots=True)
class Group:
    """The unit of synthesis: a run of the images in class-major order, `ipc` of each class."""

    index: int
    images: range
    ipc: int

    @property
    def labels(self) -> list[int]:
        return [image // self.ipc for image in self.images]


@dataclass(frozen=True, slots=True)
class Problem:
    """What one forward optimises: equally large groups, and all that they are matched against.

    weights: of the observers' losses; their mean is 1.
    """

    cfg: Recover
    seeds: tuple[int, int]  # Experiment.seed, Init.seed
    patch: int
    groups: tuple[Group, ...]
    labels: Int[Tensor, "g n"]
    observers: Sequence[nn.Module]
    weights: tuple[float, ...]
    targets: Sequence[matching.Target]
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]
    verifier_updates: bool = False  # quirk B7


def cut(cfg: Recover, classes: int, ipc: int) -> list[Group]:
    """Runs of group_images images, or of classes_per_group classes, in order; the last may be shorter."""
    size, end = cfg.group_images or cfg.classes_per_group * ipc, classes * ipc
    starts = range(0, end, size)
    return [Group(i, range(start, min(start + size, end)), ipc) for i, start in enumerate(starts)]


def problem(
    experiment: Experiment,
    groups: Sequence[Group],
    observers: Sequence[nn.Module],
    moments: Sequence[Mapping[str, Moments]],
    pixels: tuple[Sequence[float], Sequence[float]],
    device: torch.device,
    local: Sequence[Sequence[Mapping[str, Moments]]] | None = None,
) -> Problem:
    """The problem of these groups, which are equally large.

    observers: those of cfg.observers, in order. moments: of each, by layer name; local: of each, then of each
    group, with class_form local. pixels: the dataset's mean and deviation.

    Raises:
        ValueError: there is a matching term, and no observer has a layer for it.
    """
    cfg, quirks = experiment.recover, experiment.quirks
    labels = torch.tensor([group.labels for group in groups])
    targets = [
        matching.target(
            model, m, labels, cfg.matching, local=local[i] if local is not None else None,
            swap_patch=quirks.swap_class_patch, double_conv=quirks.double_conv_targets,
        )
        for i, (model, m) in enumerate(zip(observers, moments, strict=True))
    ]  # fmt: skip
    if matching.needed(cfg) and not any(target.layout.layers for target in targets):
        raise ValueError(f"no observer has a layer of {', '.join(cfg.matching.families)}: nothing to match")
    given = cfg.observer_weights or (1.0,) * len(observers)
    weights = tuple(weight * len(given) / sum(given) for weight in given)
    mean, std = (torch.tensor(value, device=device)[:, None, None] for value in pixels)
    nets = [model.to(device).eval().requires_grad_(False) for model in observers]
    return Problem(
        cfg, (experiment.seed, experiment.init.seed), experiment.statistics.patch, tuple(groups),
        labels.to(device), nets, weights, [matching.moved(target, device) for target in targets], mean, std,
        quirks.verifier_updates,
    )  # fmt: skip


def local_picks(
    labels: Int[Tensor, " n"], group: Group, each: int, seeds: tuple[int, int]
) -> Int[Tensor, " k"]:
    """Real images for class_form local: `each` for every image of the group, of its class (method.md 2.6).

    labels: of the real images. A class's images are drawn without replacement as long as there are any; then
    all again.
    """
    rng, wanted, picks = generator("local", *seeds, group.index), group.labels, []
    for label in sorted(set(wanted)):
        members = (labels == label).nonzero().flatten()
        count = each * wanted.count(label)
        rounds = [torch.randperm(len(members), generator=rng) for _ in range(-(-count // len(members)))]
        picks.append(members[torch.cat(rounds)[:count]])
    return torch.cat(picks)
