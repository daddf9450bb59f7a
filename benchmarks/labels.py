"""P4: labels streamed by Ray Data against a bare loop over the teachers; the memory of the driver.

    python benchmarks/labels.py [--device cuda] [--repeats 2] [--json OUT]

    rate     images a second at 224 px, ResNet-18 and ShuffleNetV2 0.5 / a forward of both    goal >= 0.9
    memory   growth of the driver's resident memory, bytes a page                             goal <= 4096

The stream is a label job as the Broker runs it: a process with the teachers, which draws, applies, labels and
writes each page, and a driver that hears of it. Bare: the same teachers on ready pixels, a page in a forward,
in this process. Rates are those after the first page; the start of the process is told. On a CPU they are of
a core that nobody else disturbs: the images by the core-seconds that their pages took, times the share of the
time in which the process was at work on one. Pages of `memory` are small and many; one of the default 2048
images takes 150 kB in the store. Teachers and images are drawn at random.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import numpy as np
import torch
from PIL import Image

from benchmarks import common
from edc_ray import config, pipeline, session
from edc_ray.artifacts import Receipt, Store
from edc_ray.config import Experiment, Runtime
from edc_ray.core import heap, models
from edc_ray.distributed.labels import label_pages
from edc_ray.distributed.probe import Site
from edc_ray.pipeline import Task

GOAL, BYTES = 0.9, 4096
LARGE = ("torchvision/resnet18", "torchvision/shufflenet_v2_x0_5")
SMALL = ("convnet_w16_d2",)
CLASSES = 10


@dataclass(frozen=True, slots=True)
class Size:
    """Of a label job."""

    observers: tuple[str, ...]
    size_px: int
    page_images: int
    pages: int


def sizes(device: torch.device) -> dict[str, Size]:
    if device.type == "cuda":
        return {"rate": Size(LARGE, 224, 500, 60), "memory": Size(SMALL, 16, 50, 200)}
    return {"rate": Size(LARGE, 224, 25, 9), "memory": Size(SMALL, 16, 50, 200)}


# --- what is there before the labels ------------------------------------------------------------------------


def experiment(root: Path, size: Size) -> Experiment:
    """An image folder, weights for every observer, and images of noise."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in range(CLASSES):
            folder = root / "data" / part / str(name)
            folder.mkdir(parents=True)
            pixels = rng.integers(256, size=(size.size_px, size.size_px, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "0.png")
    common.random_weights(root / "weights", size.observers, CLASSES, size.size_px)
    changes = {
        "dataset.name": "image_folder", "dataset.path": str(root / "data"), "dataset.size_px": size.size_px,
        "split.val": 0.0, "squeeze.observers": list(size.observers), "squeeze.epochs": 0,
        "squeeze.weights": str(root / "weights"), "init.kind": "noise", "init.ipc": 10,
        "recover.iterations": 0, "relabel.batch_size": 25, "relabel.page_images": size.page_images,
        "evaluate.epochs": size.pages * size.page_images // (10 * CLASSES), "evaluate.student": SMALL[0],
    }  # fmt: skip
    return config.override(Experiment(), changes)


def task(exp: Experiment, store: Store, runtime: Runtime) -> Task:
    """The labels, with all that they are made of."""
    return pipeline.ensure(exp, store, runtime, pipeline.in_process(store, runtime), upto="relabel")[-1]


# --- the two sides ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Streamed:
    """A label job: when each page was written, the driver's memory when it heard, what the pages say."""

    began: float
    times: list[float]
    resident: list[int]
    receipts: list[Receipt]

    @property
    def seconds(self) -> float:
        """From one page to the next."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    def spent(self, what: str) -> float:
        """Of the labelling process, a page: `seconds` or `core_seconds`. The first page is a warm-up."""
        return sum(receipt.meta[what] for receipt in self.receipts[1:]) / (len(self.receipts) - 1)


def stream(store: Store, runtime: Runtime, labels: Task, pages: int | None = None) -> Streamed:
    artifact, wanted = store.artifact("relabel", labels.key), pipeline.units(labels, runtime)[:pages]
    found = Streamed(time.time(), [], [], [])
    for _, receipt in label_pages(Site.mark(store.root), runtime, [(labels, unit) for unit in wanted]):
        found.resident.append(common.resident())
        found.receipts.append(receipt)
        found.times.append((Path(store.root) / str(labels) / receipt.file).stat().st_mtime)
    assert sorted(artifact.units()) == wanted
    for name in wanted:  # the next job makes them again
        artifact.remove(name)
    return found


def bare(size: Size, pages: int, device: torch.device) -> float:
    """Seconds a page of a loop over the teachers on ready pixels."""
    made = [models.build(name, CLASSES, size.size_px, name) for name in size.observers]
    teachers = [net.to(device).eval() for net in made]
    pixels = torch.randn(size.page_images, 3, size.size_px, size.size_px, device=device)
    began = 0.0
    with torch.no_grad():
        for _ in range(pages + 1):
            logits = torch.stack([teacher(pixels) for teacher in teachers]).mean(0).half().cpu()
            assert bool(logits.isfinite().all())
            began = began or common.clock(device)  # the first is the warm-up
    return (common.clock(device) - began) / pages


def rate(root: Path, size: Size, runtime: Runtime, repeats: int, device: torch.device) -> list[common.Row]:
    store = Store(str(root / "store"))
    labels = task(experiment(root, size), store, runtime)
    jobs, plain = list[Streamed](), list[float]()
    for _ in range(repeats):
        plain.append(size.page_images / bare(size, 3, device))
        jobs.append(stream(store, runtime, labels))
    busy = [job.spent("seconds") / job.seconds for job in jobs]
    ours = [size.page_images / job.seconds for job in jobs]
    if device.type == "cpu":
        spent = [job.spent("core_seconds") for job in jobs]
        ours = [share * size.page_images / seconds for share, seconds in zip(busy, spent, strict=True)]
    start = [job.times[0] - job.seconds - job.began for job in jobs]
    about = f"{len(jobs[0].times)} pages of {size.page_images} images"
    return [
        common.Row("rate: stream / bare", common.ratios(ours, plain), GOAL, at_most=False, note=about),
        common.Row("rate: stream", ours, unit="images/s"),
        common.Row("rate: bare", plain, unit="images/s"),
        common.Row("rate: share of the time in which the process labels", busy),
        common.Row("rate: start of the process", start, unit="s"),
    ]


def memory(root: Path, size: Size, runtime: Runtime, repeats: int) -> list[common.Row]:
    """After a first job, in which everything is loaded."""
    store = Store(str(root / "store"))
    labels = task(experiment(root, size), store, runtime)
    stream(store, runtime, labels, size.pages // 4)
    jobs = [stream(store, runtime, labels) for _ in range(repeats)]
    half = size.pages // 2
    slopes = [float(np.polyfit(range(half, size.pages), job.resident[half:], 1)[0]) for job in jobs]
    about = f"second half of {size.pages} pages"
    return [
        common.Row("memory: growth of the driver", slopes, BYTES, unit="bytes a page", note=about),
        common.Row("memory: a page of these", [1 / job.seconds for job in jobs], unit="/s"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__, repeats=2).parse_args(argv)
    device = common.begin(args)
    heap.keep_freed()  # as a worker does
    cuda = device.type == "cuda"
    runtime = Runtime(device=device.type, gpus_per_worker=0.5 if cuda else 0.0, workers=1)
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        os.environ["RAY_TMPDIR"] = folder  # short: it becomes part of socket paths
        found = list[common.Row]()
        with session.cluster(runtime):
            for name, size in sizes(device).items():
                root = Path(folder) / name
                root.mkdir()
                if name == "rate":
                    found += rate(root, size, runtime, args.repeats, device)
                else:
                    found += memory(root, size, runtime, args.repeats)
    return common.finish(args, found)


if __name__ == "__main__":
    sys.exit(main())
