"""P2: the statistics pass over the real images against the bare forward, and against the plain pass.

    python benchmarks/moments.py [--device cuda] [--repeats 2] [--json OUT]

    bare     forward of the eight CIFAR observers
    ours     the statistics stage's functions                                    goal <= 1.3 times bare
    plain    `benchmarks.plain`: an observer after another, each its own pass    5.1 times bare +- 10 %,
             over the data, layer by layer and image by image                    as the official code

128 images of 32 px, float32, random weights. Ours goes in the stage's chunks (runtime.forward_images / 4),
the others in the official batches of 64. Ours augments tensors, as the stage, which does it once for all
observers (here it is counted for each); plain augments images of PIL. Both must have the same moments before
anything is timed.
Exit code 1: a goal is missed by more than the spread; or plain is no fair baseline.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import common, plain
from benchmarks.synthesis import CLASSES, PIXELS, SIZE, experiment, observer, random_images
from edc_ray.config import Runtime
from edc_ray.core import data, heap, stats, views
from edc_ray.core.random import generator
from edc_ray.core.stats import Moments

IMAGES, BATCH = 128, 64
CHECKED = 24  # images of which ours and plain must have the same moments
CFG, TOGETHER = experiment().statistics, Runtime().forward_images // 4
OFFICIAL = {  # ms an image, bare and official, on 2 cores
    "convnet_d1": (0.57, 0.82), "convnet_d2": (0.95, 1.40), "convnet_w32": (0.10, 0.38),
    "convnet_w128": (0.71, 1.50), "wrn_16_2": (1.09, 7.40), "mobilenet_v2_half": (0.34, 7.93),
    "shufflenet_v2_x0_5": (0.52, 8.04), "resnet18": (5.00, 19.95),
}  # fmt: skip
Batches = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def bare(model: nn.Module, images: Tensor) -> None:
    for batch in images.split(BATCH):
        model(batch)


def ours(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Moments]:
    """As `pipeline.observe.run_statistics`: augmented, then chunk by chunk observed and added to the sums."""
    pixels, total = views.augment(images, CFG.augment, generator("benchmark", 0)), dict[str, Moments]()
    for chunk, its in zip(pixels.split(TOGETHER), labels.split(TOGETHER), strict=True):
        total = stats.add(total, stats.observe(model, chunk, its, CLASSES, CFG.patch))
    return total


def slowly(model: nn.Module, batches: Batches, device: torch.device) -> dict[str, plain.Tally]:
    sent = ((images.to(device), labels.to(device)) for images, labels in batches)
    return plain.statistics(model, sent, IMAGES, CLASSES, CFG.patch)


def check(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """The class sums, and a convolution's mean over batches, of ours and plain; or AssertionError."""
    count, half = len(images), len(images) // 2
    batches = zip(images.split(half), labels.split(half), strict=True)
    tallies = plain.statistics(model, batches, count, CLASSES, CFG.patch)
    for layer, moments in stats.observe(model, images, labels, CLASSES, CFG.patch, half).items():
        tally = tallies[layer]
        assert tally.seen == moments.count.tolist()
        for kind, classes in zip(("channel", "patch"), tally.classes, strict=False):
            sums = getattr(moments, kind)
            for row, theirs in zip((0, 2), classes, strict=True):  # mean, variance
                close(sums[:, row], torch.stack(theirs))
        for kind, whole in zip(("channel", "patch"), tally.whole if tally.conv else [], strict=False):
            close(getattr(moments, f"{kind}_batches") / count, torch.stack(whole))


def close(found: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(found.float(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__, 2).parse_args(argv)
    device, times = common.begin(args), dict[str, Any]()
    heap.keep_freed()  # as a worker does
    levels, labels = random_images(IMAGES, 2), torch.arange(IMAGES) * 7 % CLASSES
    images, targets = data.normalize(levels.to(device), *PIXELS), labels.to(device)
    change = plain.shifted(SIZE, CFG.augment.pad_px, PIXELS)
    loader = DataLoader(plain.Decoded(levels, labels, change), BATCH, shuffle=True)
    for name in OFFICIAL:
        model = observer(name, device)
        check(model, images[:CHECKED], targets[:CHECKED])
        sides: dict[str, Callable[[], object]] = {
            "bare": partial(bare, model, images),
            "ours": partial(ours, model, images, targets),
            "plain": partial(slowly, model, loader, device),
        }
        times[name] = common.interleaved(sides, args.repeats, device)
    return common.finish(args, common.against_bare(times, OFFICIAL, 1.3, IMAGES))


if __name__ == "__main__":
    sys.exit(main())
