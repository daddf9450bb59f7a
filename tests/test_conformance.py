"""Numbers recorded from the official implementation (branch CIFAR-10, commit 80116a7), for its own choices.

The vectors are no part of this repository: they lie in ../shared/conformance, or where EDC_CONFORMANCE says:
a file, or a folder with official_vectors.npz. Shapes, classes, layers, steps and rates are those of the file.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edc_ray.config import Evaluate, Flatness, Matching, Recover
from edc_ray.core import losses, matching, models, recover, schedules, stats

PATCH, ALPHA, WEIGHT, FIRST, MOMENTUM, TEMPERATURE = 4, 0.5, 0.01, 10.0, 0.8, 4.0  # of the recordings
INPUTS = (
    r"weights/.*|stat_(images|labels|batch_size)|recover/(targets|\d+/images)|flatness/(ema_)?logits"
    r"|posteval/targets"
)
KINDS = {"channel": ("dd_mean", "dd_var"), "patch": ("patch_mean", "patch_var")}
OFFICIAL = Matching(
    weight=WEIGHT, class_weight=ALPHA, class_form="within_image", first_multiplier=FIRST, momentum=MOMENTUM,
    bias_correction=False,
)  # fmt: skip


def vectors() -> Path:
    place = os.environ.get("EDC_CONFORMANCE")
    found = Path(place) if place else Path(__file__).parents[2] / "shared" / "conformance"
    return found / "official_vectors.npz" if found.is_dir() else found


Arrays = dict[str, Tensor]


def load() -> tuple[Arrays, list[str]]:
    """The arrays, and the names of the hooked layers."""
    if not vectors().is_file() and "EDC_CONFORMANCE" not in os.environ:
        return {}, []
    with np.load(vectors()) as file:
        names = [str(name) for name in file["recover/layer_names"]]
        return {n: torch.tensor(file[n]) for n in file.files if n != "recover/layer_names"}, names


OFFICIAL_ARRAYS, LAYERS = load()
pytestmark = pytest.mark.skipif(not OFFICIAL_ARRAYS, reason=f"no {vectors()}")


class Network(nn.Module):
    """The small network of the recordings; how wide it is, its weights say."""

    conv1: nn.Module
    bn1: nn.Module
    conv2: nn.Module
    bn2: nn.Module
    conv3: nn.Module

    def __init__(self, weights: Arrays) -> None:
        super().__init__()
        for name in ("conv1", "conv2", "conv3"):
            outputs, inputs, kernel, _ = weights[f"{name}.weight"].shape
            stride, bias = 2 if name == "conv2" else 1, f"{name}.bias" in weights
            setattr(self, name, nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias))
            if f"bn{name[-1]}.weight" in weights:
                setattr(self, f"bn{name[-1]}", nn.BatchNorm2d(outputs))
        classes, features = weights["fc.weight"].shape
        self.fc = nn.Linear(features, classes)
        self.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(self.conv3(x).relu().mean((2, 3)))


def network(arrays: Arrays) -> Network:
    prefix = "weights/"
    return Network({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})


# --- ours ---------------------------------------------------------------------------------------------------


def moments_of(arrays: Arrays) -> dict[str, stats.Moments]:
    images, labels = arrays["stat_images"], arrays["stat_labels"]
    size = int(arrays["stat_batch_size"])
    return stats.observe(network(arrays), images, labels, _classes(arrays), PATCH, size)


def _classes(arrays: Arrays) -> int:
    return len(arrays["weights/fc.weight"])


def target_of(arrays: Arrays) -> matching.Target:
    return matching.target(network(arrays), moments_of(arrays), arrays["recover/targets"][None], OFFICIAL)


def statistics(arrays: Arrays) -> Arrays:
    """What the pass over the real images gives: global and of each class."""
    goal = target_of(arrays)
    found: Arrays = {}
    parts = iter(goal.whole[0].split([int(width) for width in goal.layout.width]))
    each = torch.eye(_classes(arrays), dtype=torch.float64)
    for layer in goal.layout.layers:
        for kind in matching.kinds(layer, matching.FAMILIES):
            found |= {f"stat/{layer.name}/global/{name}": next(parts) for name in KINDS[kind]}
            rows = stats.within_image(moments_of(arrays)[layer.name], each, kind)
            found |= {f"stat/{layer.name}/class/{n}": r for n, r in zip(KINDS[kind], rows, strict=True)}
    return found


def problem_of(arrays: Arrays, cfg: Recover) -> recover.Problem:
    """The synthesis batch as one group, in the pixels of the recordings, without augmentation."""
    labels, zeros, ones = arrays["recover/targets"][None], torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    group = recover.Group(0, range(labels.numel()), 1)
    return recover.Problem(
        cfg, (0, 0), PATCH, (group,), labels, [network(arrays)], (1.0,), [target_of(arrays)], zeros, ones
    )


def begun(problem: recover.Problem, arrays: Arrays) -> recover.State:
    return recover.begin(problem, torch.zeros(arrays["recover/0/images"].shape, dtype=torch.uint8))


def recovery(arrays: Arrays) -> Arrays:
    """The loop itself, held at the recorded images; the running statistics go on from step to step."""
    steps = sum(bool(re.fullmatch(r"recover/\d+/images", name)) for name in arrays)
    found: Arrays = {}
    cfg = Recover(iterations=steps, crop_min=1.0, flip=False, matching=OFFICIAL)
    problem, layers = problem_of(arrays, cfg), models.layers(network(arrays))
    unmatched = replace(problem, cfg=replace(cfg, matching=replace(OFFICIAL, weight=0.0)))
    state, goal = begun(problem, arrays), problem.targets[0]
    iterations = recover.synthesize(problem, state)
    for s in range(steps):
        images = arrays[f"recover/{s}/images"]
        state.images.data.copy_(images)
        logits, now = recover.measured(problem, 0, images, by_run=True)
        assert now is not None
        average, value = matching.straight_through(state.running[0], now, OFFICIAL, s + 1)
        crop = recover.random_crops(problem, s, images.shape[-1])
        (total, kept), (entropy, _) = (
            recover.group_losses(p, 0, images, state.averaged, state.running[0], s + 1, s, crop)
            for p in (problem, unmatched)
        )
        far, near = (
            matching.residuals(value - part, goal.layout, matching.l2)[0]
            for part in (goal.whole, goal.by_class)
        )
        next(iterations)
        assert layers == goal.layout.layers and torch.equal(state.running[0], average)
        torch.testing.assert_close(kept, average)
        assert state.images.grad is not None
        matched = matching.loss(value, goal, OFFICIAL)
        found |= {
            f"recover/{s}/logits": logits,
            f"recover/{s}/layer_losses": (1 - ALPHA) * far + ALPHA * near,
            f"recover/{s}/matching": matched,
            f"recover/{s}/loss": total,
            f"recover/{s}/ce": entropy,
            f"recover/{s}/grad": state.images.grad.clone(),
        }
    return found


def flatness(arrays: Arrays) -> Arrays:
    cfg = Flatness(kind="logits", form="official", temperature=TEMPERATURE)
    return {
        "flatness/loss": recover.logit_flatness(
            arrays["flatness/logits"], arrays["flatness/ema_logits"], cfg, 1
        )
    }


def student(arrays: Arrays) -> Arrays:
    logits, soft, labels = (
        arrays["flatness/logits"],
        arrays["flatness/ema_logits"],
        arrays["posteval/targets"],
    )
    weights = {n: float(n.rpartition("_ce")[2]) for n in arrays if n.startswith("posteval/mse_gt_ce")}
    return {
        name: losses.student_loss(Evaluate(ce_weight=weight), logits, soft, labels)
        for name, weight in weights.items()
    }


def rates(arrays: Arrays) -> Arrays:
    """Of the student, per epoch; and of the synthesis, per iteration."""
    found = {}
    for name, want in arrays.items():
        if kept := re.fullmatch(r"schedule/(cos2?)/(.+)", name):
            rule = {"cos": "cos", "cos2": "ssrs"}[kept[1]]  # by the paper's names
            cfg = Evaluate(schedule=rule, zeta=float(kept[2]), epochs=len(want))
            found[name] = torch.tensor([schedules.multiplier(cfg, epoch) for epoch in range(len(want))])
        elif kept := re.fullmatch(r"schedule/recover_cosine_lr(.+)_iters(\d+)", name):
            problem = problem_of(
                arrays, Recover(iterations=int(kept[2]), lr=float(kept[1]), matching=OFFICIAL)
            )
            states = recover.synthesize(problem, begun(problem, arrays))
            found[name] = torch.tensor([state.adam.param_groups[0]["lr"] for state in states])
    return found


@pytest.fixture(scope="module")
def ours() -> Arrays:
    parts = (statistics, recovery, flatness, student, rates)
    return {name: value for part in parts for name, value in part(OFFICIAL_ARRAYS).items()}


# --- against theirs -----------------------------------------------------------------------------------------

RESULTS = [name for name in OFFICIAL_ARRAYS if not re.fullmatch(INPUTS, name)]


def test_hook_order() -> None:
    assert [layer.name for layer in models.layers(network(OFFICIAL_ARRAYS))] == LAYERS


@pytest.mark.parametrize("name", RESULTS)
def test_every_array_agrees(name: str, ours: Arrays) -> None:
    found, want = ours[name].double().flatten(), OFFICIAL_ARRAYS[name].double().flatten()
    error = float((found - want).abs().max() / want.abs().max().clamp_min(1e-30))
    assert found.shape == want.shape and error <= (1e-5 if name.startswith("schedule/") else 1e-4), error
