"""P8: the peak memory of the synthesis against a bare forward and backward; memory by the size of the data.

    python benchmarks/memory.py [--device cuda] [--repeats 2] [--json OUT]

    synthesis   most that an iteration takes / that a bare input gradient takes, 100 images    goal <= 1.3
    data        bytes by which the peak of ingest and statistics grows an image                goal <= 1500

Each number is from a process of its own. Synthesis, by the cases of benchmarks/synthesis.py with the flatness
of their preset: what is added while an iteration runs, and another one, resident or, on a GPU, allocated;
network, images and targets are there before. Data: a folder of 1,000, 3,500 and 6,000 files of 64 px through
the real stages, kept in shards as ImageNet is, though of 8 MiB and not 128; all images are one shard of the
statistics. A least squares line gives the slope; what is kept of an image, such as its name, does not depend
on its side, and at 224 px its pixels would be 150,528 bytes.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import numpy as np
import torch
from PIL import Image

from benchmarks import common, synthesis
from edc_ray import config, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime
from edc_ray.core import data, heap

GOAL, BYTES = 1.3, 1500
OBSERVERS = ("resnet18", "mobilenet_v2_half")  # the most memory of the CIFAR observers; many layers
NETWORK = "convnet_w16_d2"
SIZES = (1000, 3500, 6000)
SIZE, CLASSES, SHARD_BYTES = 64, 10, 8 << 20


def status(field: str) -> int:
    """VmRSS, what of this process is in memory, or VmHWM, the most that was; in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def peak(device: torch.device, work: Callable[[], object]) -> int:
    """Bytes that are added at most while it works."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)
    heap.keep_freed()  # as a worker does
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most that was
    work()
    return status("VmHWM") - before


# --- what the processes do ----------------------------------------------------------------------------------


def iterate(name: str, side: str, device: torch.device) -> int:
    """side: of benchmarks/synthesis.py."""
    case = synthesis.Case(name, device, flatness="logits")
    call = case.sides()[side]

    def work() -> None:
        for _ in range(2):
            call()

    return peak(device, work)


def read(root: str, device: torch.device) -> int:
    """Ingest and statistics of the folder, with an observer that is there already."""
    data.IN_MEMORY_BYTES, data.SHARD_BYTES = 0, SHARD_BYTES
    store, runtime = Store(f"{root}/store"), Runtime(device=device.type, forward_images=256)
    mapper = pipeline.in_process(store, runtime)
    return peak(device, lambda: pipeline.ensure(experiment(root), store, runtime, mapper, upto="statistics"))


def experiment(root: str) -> Experiment:
    changes = {
        "dataset.name": "image_folder", "dataset.path": f"{root}/data", "dataset.size_px": SIZE,
        "split.val": 0.0, "squeeze.observers": [NETWORK], "squeeze.epochs": 0,
        "squeeze.weights": f"{root}/weights", "statistics.shard_images": 100_000,
    }  # fmt: skip
    return config.override(Experiment(), changes)


# --- what starts them ---------------------------------------------------------------------------------------


def folder(root: Path, count: int) -> None:
    """So many training images, and a test image a class."""
    rng = np.random.default_rng(0)
    drawn = root / "drawn.jpg"
    Image.fromarray(rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)).save(drawn)
    for part, images in (("train", count), ("test", CLASSES)):
        for name in range(CLASSES):
            (root / "data" / part / str(name)).mkdir(parents=True)
        for i in range(images):
            os.link(drawn, root / "data" / part / str(i % CLASSES) / f"{i:08d}.jpg")
    common.random_weights(root / "weights", [NETWORK], CLASSES, SIZE)


def apart(device: torch.device, *what: str) -> int:
    """What `what` takes in a process of its own."""
    command = [sys.executable, __file__, "--device", device.type, "--one", *what]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def synthesis_rows(repeats: int, device: torch.device) -> list[common.Row]:
    rows = []
    for name in OBSERVERS:
        ours, bare = (
            [apart(device, "iterate", name, side) for _ in range(repeats)] for side in ("ours", "bare")
        )
        rows += [
            common.Row(f"synthesis {name}: ours / bare", common.ratios(ours, bare), GOAL),
            common.Row(f"synthesis {name}: bare", [value / 2**20 for value in bare], unit="MiB"),
        ]
    return rows


def data_rows(device: torch.device) -> list[common.Row]:
    peaks = []
    for count in SIZES:
        with tempfile.TemporaryDirectory() as root:
            folder(Path(root), count)
            peaks.append(apart(device, "read", root))
    slope = float(np.polyfit(SIZES, peaks, 1)[0])
    told = [common.Row(f"data: peak with {count:,} images", [value / 2**20], unit="MiB")
            for count, value in zip(SIZES, peaks, strict=True)]  # fmt: skip
    return [common.Row("data: growth of the peak", [slope], BYTES, unit="bytes an image"), *told]


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__, repeats=2)
    parser.add_argument("--one", nargs="+", metavar="WHAT", help="for the processes that this one starts")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if args.one:
        torch.set_num_threads(1)
        kind, *rest = args.one
        print(iterate(*rest, device) if kind == "iterate" else read(*rest, device))
        return 0
    common.begin(args)
    return common.finish(args, synthesis_rows(args.repeats, device) + data_rows(device))


if __name__ == "__main__":
    sys.exit(main())
