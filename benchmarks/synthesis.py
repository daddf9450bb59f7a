"""P1: an iteration of the synthesis against the bare model, and against the plain loop.

    python benchmarks/synthesis.py [--device cuda] [--repeats 2] [--json OUT]

    bare     forward and input gradient of a cross-entropy
    ours     an iteration of `recover.synthesize`                  goal <= 1.5 times bare, summed over all
    plain    an iteration of `benchmarks.plain`, hook by hook      2.2 times bare +- 10 %, as the official's

The eight CIFAR observers with random weights, 100 images of 32 px as one group, float32, the recover options
of the preset edc/cifar10/ipc10; ours and plain also crop the images, move them by Adam and clamp them.
Flatness is off, as it was where the official code was measured: with it, the images' average takes a forward
more, which the last row shows. Memory is as C gives it, as it was for the official code; a worker keeps what
is freed (core/heap.py). Before it is timed, ours and plain must have the same loss and gradient.

On a GPU also many groups in one forward, per image-iteration, against plain's one group of the paper's batch
for CIFAR-10 (100 images, goal >= 8 times faster) and of the script's for CIFAR-100 (25, only told).
Exit code 1: a goal is missed by more than the spread; or plain is no fair baseline.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import common, plain
from edc_ray import config, presets
from edc_ray.config import Experiment
from edc_ray.core import data, models, recover, stats, views

CLASSES, SIZE, GROUP = 10, 32, 100
CHECKED = 20  # images of the group in which ours and plain must agree
TOGETHER = 1000  # images in one forward, with many groups
PIXELS = data.CONSTANTS["cifar10"]
OFFICIAL = {  # ms an iteration, bare and official, on 2 cores
    "convnet_d1": (169, 175), "convnet_d2": (232, 283), "convnet_w32": (28, 46), "convnet_w128": (219, 297),
    "wrn_16_2": (280, 782), "mobilenet_v2_half": (96, 543), "shufflenet_v2_x0_5": (134, 714),
    "resnet18": (1196, 2355),
}  # fmt: skip
Sides = dict[str, Callable[[], object]]


def experiment(flatness: str = "none") -> Experiment:
    """No end in sight: the sides run as long as they are timed."""
    changes = {"recover.flatness.kind": flatness, "recover.iterations": 10**6}
    return config.override(presets.experiment("edc/cifar10/ipc10"), changes)


def random_images(n: int, seed: int) -> Tensor:
    """Bytes with some structure: coarse noise and fine noise."""
    rng = torch.Generator().manual_seed(seed)
    coarse = functional.interpolate(torch.rand(n, 3, 4, 4, generator=rng), (SIZE, SIZE), mode="bilinear")
    return (255 * (0.8 * coarse + 0.2 * torch.rand(n, 3, SIZE, SIZE, generator=rng))).to(torch.uint8)


def observer(name: str, device: torch.device) -> nn.Module:
    """With random weights and, in BatchNorm, the statistics of a batch of other images."""
    model = models.build(name, CLASSES, SIZE, 0).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        model(data.normalize(random_images(GROUP, 1), *PIXELS))
    return model.to(device).eval().requires_grad_(False)


class Case:
    """One observer, and what it is asked: `groups` groups of `size` images, plain the first of them."""

    def __init__(
        self, name: str, device: torch.device, groups: int = 1, size: int = GROUP, flatness: str = "none"
    ) -> None:
        exp = experiment(flatness)
        self.model, images = observer(name, device), random_images(groups * size, 2)
        real = data.normalize(random_images(200, 3).to(device), *PIXELS)
        labels = torch.arange(200, device=device) % CLASSES
        self.moments = stats.observe(self.model, real, labels, CLASSES, exp.statistics.patch)
        ipc, members = groups * size // CLASSES, [range(i * size, (i + 1) * size) for i in range(groups)]
        units = [recover.Group(i, member, ipc) for i, member in enumerate(members)]
        self.problem = recover.problem(exp, units, [self.model], [self.moments], PIXELS, device)
        self.state = recover.begin(self.problem, images)
        self.labels = self.problem.labels[0]
        start = data.normalize(images[:size].to(device), *PIXELS)
        self.plain = plain.Synthesis(
            exp.recover, [copy.deepcopy(self.model)], [self.moments], self.labels, start, PIXELS,
            exp.statistics.patch,
        )  # fmt: skip
        self.start = start.requires_grad_(True)

    def sides(self) -> Sides:
        """The iterations to be timed."""
        ours = recover.synthesize(self.problem, self.state)
        return {"bare": self.bare, "ours": lambda: next(ours), "plain": self.plain.iterate}

    def bare(self) -> Tensor:
        entropy = functional.cross_entropy(self.model(self.start), self.labels)
        return torch.autograd.grad(entropy, self.start)[0]


# --- the same numbers ---------------------------------------------------------------------------------------


def check(case: Case) -> None:
    """Three visits of the same images under other crops: same loss, same gradient, or AssertionError.

    Both are given the crop of ours, to its last bit: a ReLU at 0 turns a rounding into another gradient.
    """
    problem, images, running = case.problem, case.start, case.state.running[0]
    averaged = case.plain.averaged = images.detach().flip(0)
    for t in range(3):
        crop = recover.random_crops(problem, t, SIZE)
        losses, running = recover.group_losses(problem, 0, images, averaged, running, t + 1, t, crop)
        gradient = torch.autograd.grad(losses.sum(), images)[0]
        other = case.plain.loss(0, partial(views.resample, box=crop[0], flip=crop[1]))
        torch.testing.assert_close(losses.sum(), other, rtol=1e-5, atol=0)
        apart = gradient - torch.autograd.grad(other, case.plain.images)[0]
        far = float(apart.norm() / gradient.norm())
        assert far < 1e-4, f"the gradients of ours and plain differ by {far:.1e} of their length"


# --- the table ----------------------------------------------------------------------------------------------


def many(device: torch.device, repeats: int, size: int, goal: float | None) -> common.Row:
    """Seconds an image-iteration: plain with one group against ours with as many as fit in one forward."""
    times, groups = {}, TOGETHER // size
    for name in OFFICIAL:
        sides = Case(name, device, groups, size).sides()
        times[name] = common.interleaved({side: sides[side] for side in ("ours", "plain")}, repeats, device)
    ratio = [
        groups * value for value in common.ratios(common.summed(times, "plain"), common.summed(times, "ours"))
    ]
    name = f"an image-iteration, plain with one group of {size} / ours with {groups}"
    return common.Row(name, ratio, goal, at_most=False)


def main(argv: Sequence[str] | None = None) -> int:
    args: argparse.Namespace = common.parser(__doc__, 2).parse_args(argv)
    device, times = common.begin(args), dict[str, Any]()
    for name in OFFICIAL:
        check(Case(name, device, size=CHECKED))
        times[name] = common.interleaved(Case(name, device).sides(), args.repeats, device)
    found = common.against_bare(times, OFFICIAL, 1.5)
    if device.type == "cuda":
        found += [many(device, args.repeats, 100, 8.0), many(device, args.repeats, 25, None)]
    check(Case("wrn_16_2", device, size=CHECKED, flatness="logits"))
    sides = Case("wrn_16_2", device, flatness="logits").sides()
    flat = common.interleaved({name: sides[name] for name in ("bare", "ours")}, args.repeats, device)
    found.append(common.Row("wrn_16_2 with flatness, ours / bare", common.ratios(flat["ours"], flat["bare"])))
    return common.finish(args, found)


if __name__ == "__main__":
    sys.exit(main())
