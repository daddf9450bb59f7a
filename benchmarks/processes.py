"""P6: two worker processes of one thread against one of one thread, synthesis of 8 groups.

    python benchmarks/processes.py [--repeats 2] [--json OUT]

    speed-up    wall's seconds of the stage recover with one worker over those with two      goal >= 1.7

The real stage through the real Broker and its workers, on a Ray of its own: eight groups of 100 images of
32x32, about 0.9 seconds each, their fold and the commit. Observers, statistics and initial images are there,
workers are warm. Beside it, what bounds it: how much longer a group takes while another one runs, which is
what two processes at once cost on this machine, whoever starts them; and the share of the two workers' time
that the groups fill. On processors only.
"""

import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import common
import local_ray  # before Ray

from edc_ray import config, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime
from edc_ray.distributed.service import start_broker
from edc_ray.distributed.trial import BrokerHandle

GROUPS, GOAL = 8, 1.7
CHANGES = {
    "dataset.limit": 500, "dataset.size_px": 32, "squeeze.epochs": 1,
    "squeeze.observers": ["convnet_w32", "resnet10_w16"], "init.kind": "noise", "init.ipc": 80,
    "recover.group_images": 100, "recover.iterations": 8,
}  # fmt: skip


def stage(experiment: Experiment, broker: BrokerHandle, store: Store) -> tuple[float, float]:
    """Seconds of the stage, and of a group."""
    began = time.perf_counter()
    broker.build(experiment, "recover")
    seconds = time.perf_counter() - began
    units = pipeline.manifest(pipeline.tasks(experiment, "recover")[-1], store)["units"]
    groups = [found["meta"]["seconds"] for unit, found in units.items() if unit != "all"]
    assert len(groups) == GROUPS
    return seconds, statistics.fmean(groups)


def repeats(
    count: int, brokers: Mapping[int, BrokerHandle], store: Store
) -> list[dict[int, tuple[float, float]]]:
    """Workers -> what `stage` says, in turning order. A run's learning rate is its own: so is its name."""
    base = config.override(Experiment(), CHANGES)
    brokers[1].build(base, "init")
    brokers[1].build(base, "statistics")
    found = []
    for turn in range(-1, count):  # the first is the warm-up
        seconds = {}
        for workers in sorted(brokers, reverse=turn % 2 == 1):
            changes = {"recover.lr": 0.05 * (1 + 0.01 * turn + 0.001 * workers)}
            seconds[workers] = stage(config.override(base, changes), brokers[workers], store)
        found.append(seconds)
    return found[1:]


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__, repeats=2).parse_args(argv)
    common.begin(args)
    if args.device != "cpu":
        print("two processes share a GPU: run this with --device cpu")
        return 0
    runtime = Runtime(device="cpu", idle_seconds=600.0)
    with local_ray.started(config.override(runtime, {"workers": 3})) as root:
        brokers = {n: start_broker(root, config.override(runtime, {"workers": n})) for n in (1, 2)}
        runs = repeats(args.repeats, brokers, Store(root))
    (one, alone), (two, beside) = (zip(*(run[workers] for run in runs), strict=True) for workers in (1, 2))
    note = f"{statistics.median(one):.1f} s and {statistics.median(two):.1f} s; load {os.getloadavg()[0]:.1f}"
    filled = [GROUPS * group / (2 * wall) for wall, group in zip(two, beside, strict=True)]
    rows = [
        common.Row("speed-up of two workers", common.ratios(one, two), GOAL, at_most=False, note=note),
        common.Row("a group beside another, over alone", common.ratios(beside, alone),
                   note=f"alone {statistics.median(alone):.2f} s"),
        common.Row("share of two workers' time in groups", filled),
    ]  # fmt: skip
    return common.finish(args, rows)


if __name__ == "__main__":
    sys.exit(main())
