"""Numbers recorded from the official implementation (branch CIFAR-10, commit 80116a7), for its own choices.

The vectors are not part of this repository: they lie in ../shared/conformance or in $EDC_CONFORMANCE.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edc_ray.config import Evaluate, Flatness, Matching, Recover
from edc_ray.core import losses, matching, models, recover, schedules
from edc_ray.core.stats import Moments, channel_moments, class_moments, patch_moments, within_image

FOLDER = os.environ.get("EDC_CONFORMANCE", str(Path(__file__).parents[2] / "shared" / "conformance"))
VECTORS = Path(FOLDER) / "official_vectors.npz"
CLASSES, PATCH = 10, 4
OFFICIAL = Matching(
    weight=0.01,
    class_weight=0.5,
    class_form="within_image",
    first_multiplier=10,
    momentum=0.8,
    bias_correction=False,
)

pytestmark = pytest.mark.skipif(not VECTORS.is_file(), reason=f"no {VECTORS}")


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    with np.load(VECTORS) as file:
        return {name: torch.tensor(file[name]) for name in file.files if name != "recover/layer_names"}


class Network(nn.Module):
    """The small network of the recordings."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.fc = nn.Conv2d(12, 12, 1), nn.Linear(12, CLASSES)
        self.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(self.conv3(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def network(official: dict[str, Tensor]) -> Network:
    prefix = "weights/"
    return Network({k.removeprefix(prefix): v for k, v in official.items() if k.startswith(prefix)})


def inputs_of(network: Network, images: Tensor) -> dict[str, Tensor]:
    with models.capture(network) as inputs:
        network(images)
    return inputs


@pytest.fixture(scope="module")
def moments(official: dict[str, Tensor], network: Network) -> dict[str, Moments]:
    inputs = inputs_of(network, official["stat_images"])
    return {k: class_moments(z, official["stat_labels"], CLASSES, PATCH) for k, z in inputs.items()}


def agree(found: Tensor | float, want: Tensor, tolerance: float = 1e-4) -> None:
    error = (torch.as_tensor(found).double() - want.double()).abs().max() / want.double().abs().max()
    assert float(error) <= tolerance, f"relative error {float(error):.2e}"


LAYERS = ("conv1", "bn1", "conv2", "bn2", "conv3")


def test_hook_order(network: Network) -> None:
    with np.load(VECTORS) as file:
        assert tuple(file["recover/layer_names"]) == LAYERS
    assert tuple(layer.name for layer in models.layers(network)) == LAYERS


@pytest.mark.parametrize("name", LAYERS)
def test_class_statistics(name: str, official: dict[str, Tensor], moments: dict[str, Moments]) -> None:
    each = torch.eye(CLASSES, dtype=torch.float64)
    mean, variance = within_image(moments[name], each, "channel")
    agree(mean, official[f"stat/{name}/class/dd_mean"])
    agree(variance, official[f"stat/{name}/class/dd_var"])
    if name.startswith("conv"):
        mean, variance = within_image(moments[name], each, "patch")
        agree(mean, official[f"stat/{name}/class/patch_mean"])
        agree(variance, official[f"stat/{name}/class/patch_var"])


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3"])
def test_global_statistics_are_averages_over_batches(
    name: str, official: dict[str, Tensor], network: Network
) -> None:
    """Our own targets are pooled over all data; the official ones leave out what differs between batches."""
    z, size = inputs_of(network, official["stat_images"])[name], int(official["stat_batch_size"])
    batches = z.split(size)
    share = torch.tensor([len(batch) / len(z) for batch in batches])[:, None]
    for prefix, rows in (
        ("dd", [channel_moments(batch, 1) for batch in batches]),
        ("patch", [patch_moments(batch, 1, PATCH) for batch in batches]),
    ):
        for kind, parts in zip(("mean", "var"), zip(*rows, strict=True), strict=True):
            agree((share * torch.cat(parts)).sum(0), official[f"stat/{name}/global/{prefix}_{kind}"])


@pytest.fixture(scope="module")
def goal(official: dict[str, Tensor], network: Network, moments: dict[str, Moments]) -> matching.Target:
    """Our class targets, and the recorded global ones."""
    ours = matching.target(network, moments, official["recover/targets"][None], OFFICIAL, False)
    whole = []
    for name in LAYERS:
        kinds = ("dd_mean", "dd_var", "patch_mean", "patch_var")[: 4 if name.startswith("conv") else 2]
        whole += [official[f"stat/{name}/global/{kind}"] for kind in kinds]
    return matching.Target(ours.layout, torch.cat(whole)[None], ours.by_class)


def test_residuals_and_matching_loss(
    official: dict[str, Tensor], network: Network, goal: matching.Target
) -> None:
    average = torch.zeros_like(goal.by_class)
    for s in range(3):
        now = matching.measure(
            inputs_of(network, official[f"recover/{s}/images"]), models.layers(network), 1, PATCH
        )
        average, value = matching.straight_through(average, now, OFFICIAL, s + 1)
        whole, by_class = (
            matching.residuals(value - part, goal.layout, matching.l2)[0]
            for part in (goal.whole, goal.by_class)
        )
        agree((whole + by_class) / 2, official[f"recover/{s}/layer_losses"])
        agree(matching.loss(value, goal, OFFICIAL), official[f"recover/{s}/matching"])


def test_three_steps_of_recovery(
    official: dict[str, Tensor], network: Network, goal: matching.Target
) -> None:
    """The loop itself, held at the recorded images: logits, cross-entropy, loss and gradient."""
    cfg = Recover(iterations=3, crop_min=1.0, flip=False, matching=OFFICIAL)
    labels, zeros, ones = official["recover/targets"][None], torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    groups = (recover.Group(0, range(CLASSES)),)
    problem = recover.Problem(cfg, (0, 0), PATCH, groups, labels, [network], [goal], zeros, ones)
    state = recover.begin(problem, torch.zeros(12, 3, 12, 12, dtype=torch.uint8))
    steps = recover.synthesize(problem, state)
    for s in range(3):
        images = official[f"recover/{s}/images"]
        state.images.data.copy_(images)
        logits, before = network(images), state.running[0]
        next(steps)
        assert state.images.grad is not None
        agree(logits, official[f"recover/{s}/logits"])
        agree(state.images.grad, official[f"recover/{s}/grad"])
        entropy = nn.functional.cross_entropy(logits, labels[0])
        now = matching.measure(inputs_of(network, images), models.layers(network), 1, PATCH)
        average, value = matching.straight_through(before, now, OFFICIAL, s + 1)
        torch.testing.assert_close(state.running[0], average)
        agree(entropy, official[f"recover/{s}/ce"])
        total = entropy + OFFICIAL.weight * matching.loss(value, goal, OFFICIAL)
        agree(total, official[f"recover/{s}/loss"])


def test_flatness_has_the_official_value_from_the_other_side(official: dict[str, Tensor]) -> None:
    """Official: KL(averaged || current), mean over entries; ours: KL(current || averaged), over images."""
    now, averaged = official["flatness/logits"], official["flatness/ema_logits"]
    found = recover.logit_flatness(averaged, now, Flatness(temperature=4), 1) / CLASSES
    agree(found, official["flatness/loss"])


def test_student_loss(official: dict[str, Tensor]) -> None:
    logits, soft = official["flatness/logits"], official["flatness/ema_logits"]
    found = losses.student_loss(Evaluate(ce_weight=0.025), logits, soft, official["posteval/targets"])
    agree(found, official["posteval/mse_gt_ce0.025"])


@pytest.mark.parametrize("zeta", ["1", "1.5", "2", "2.5", "3"])
def test_schedules(zeta: str, official: dict[str, Tensor]) -> None:
    cfg = Evaluate(schedule="cos", zeta=float(zeta), epochs=300)
    found = torch.tensor([schedules.multiplier(cfg, epoch) for epoch in range(300)])
    agree(found, official[f"schedule/cos/{zeta}"], 1e-5)


def test_learning_rate_of_recovery(
    official: dict[str, Tensor], network: Network, goal: matching.Target
) -> None:
    cfg = Recover(iterations=100, lr=0.05, matching=OFFICIAL)
    labels, zeros, ones = official["recover/targets"][None], torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    groups = (recover.Group(0, range(CLASSES)),)
    problem = recover.Problem(cfg, (0, 0), PATCH, groups, labels, [network], [goal], zeros, ones)
    state = recover.begin(problem, torch.zeros(12, 3, 12, 12, dtype=torch.uint8))
    rates = [now.adam.param_groups[0]["lr"] for now in recover.synthesize(problem, state)]
    agree(torch.tensor(rates), official["schedule/recover_cosine_lr0.05_iters100"], 1e-5)


@pytest.mark.parametrize("zeta", ["1", "1.5", "2", "2.5", "3"])
def test_schedules_that_fall_at_the_end(zeta: str, official: dict[str, Tensor]) -> None:
    """cos2, by the paper's name SSRS."""
    cfg = Evaluate(schedule="ssrs", zeta=float(zeta), epochs=300)
    found = torch.tensor([schedules.multiplier(cfg, epoch) for epoch in range(300)])
    agree(found, official[f"schedule/cos2/{zeta}"], 1e-5)
