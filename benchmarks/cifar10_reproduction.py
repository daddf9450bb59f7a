"""EDC on CIFAR-10 beside the published numbers: the whole pipeline without Ray, in a few processes.

    python benchmarks/cifar10_reproduction.py FOLDER [--ipc 10] [--seeds 3] [--processes 6] [--minutes 8]

FOLDER has train*.parquet and test*.parquet (columns image, label). Needs torch, torchvision, numpy, pyarrow
and safetensors, neither Ray nor pydantic. Stops after --minutes; what is finished or checkpointed (every
10 s) stays. The same command goes on, and prints the table of what is finished. Exit code 3: not finished;
1: an arm failed, the others went on.

Arms, all with the same seeds (init, recover, labels, student); the observers are one draw, which no interval
holds:
    fixed, official, paper   the presets edc/cifar10/ipcN
    t0                       fixed without optimisation
    random_real              fresh random real images with the labels and recipe of fixed
    fixed_official_teachers, fixed_paper_teachers, official_fixed_teachers, paper_fixed_teachers
                             the recipe of one with the observers of the other (label teachers move the
                             student by about 17 points, method.md 8.4)
Without --arms: fixed, official, t0, random_real. With --val SHARE everything is judged on held-out training
images instead of test. Each observer set and each student judged on test is on record in the store
(test_reads.jsonl). --set changes every arm, --tiny shrinks all for a look on a CPU.
"""

import argparse
import functools
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import pyarrow.parquet as pq
import torch

from edc_ray import pipeline
from edc_ray.artifacts import Receipt, Store
from edc_ray.config import Experiment, Runtime
from edc_ray.presets import PRESETS

T_975 = [math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # by degrees of freedom
ARMS = ("fixed", "official", "t0", "random_real")
TINY = {
    "dataset.limit": 500, "squeeze.observers": ["convnet_w32", "resnet10_w16"], "squeeze.epochs": 1,
    "squeeze.checkpoint_epoch": None, "recover.iterations": 2, "recover.observers": None,
    "relabel.observers": None, "evaluate.student": "convnet_w32", "evaluate.epochs": 2,
    "evaluate.report_epochs": None, "evaluate.reports": 1,
}  # fmt: skip


class TimeIsUp(Exception):
    """--minutes are over; what is finished or checkpointed stays."""


def changed(section: Any, changes: Mapping[str, Any]) -> Any:
    """`config.override` without pydantic: `{dotted path: value}`, checked by the dataclasses."""
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if name not in {f.name for f in fields(section)}:
            raise SystemExit(f"error: {path} is no field")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            here[name] = tuple(value) if isinstance(value, list) else value
    inner = {name: changed(getattr(section, name), part) for name, part in below.items()}
    return replace(section, **here, **inner)


def arms(ipc: int, common: Mapping[str, Any], seed: int) -> dict[str, Experiment]:
    """One repetition of every arm."""

    def preset(version: str) -> Experiment:
        name = f"edc/cifar10/ipc{ipc}" + ("" if version == "fixed" else f"/{version}")
        return pipeline.with_seed(changed(Experiment(), {**PRESETS[name].changes, **common}), seed)

    fixed, official, paper = (preset(version) for version in ("fixed", "official", "paper"))
    real = pipeline.arms(fixed)  # after the seed, or random_real would draw the images of t0

    def taught(experiment: Experiment, teachers: Experiment) -> Experiment:
        """With the other's observers, and the pixel constants that these were trained with."""
        constants = replace(experiment.dataset, normalization=teachers.dataset.normalization)
        return replace(experiment, squeeze=teachers.squeeze, dataset=constants)

    return {
        "fixed": fixed, "official": official, "paper": paper,
        "t0": real["t0"], "random_real": real["random_real"],
        "fixed_official_teachers": taught(fixed, official),
        "official_fixed_teachers": taught(official, fixed),
        "paper_fixed_teachers": taught(paper, fixed),
        "fixed_paper_teachers": taught(fixed, paper),
    }  # fmt: skip


@functools.lru_cache(maxsize=1)
def worker(store: str, runtime: Runtime) -> pipeline.Worker:
    """One a process, which keeps the images and the observers."""
    return pipeline.Worker(Store(store), runtime)


def unit(store: str, runtime: Runtime, task: pipeline.Task, name: str, ends: float) -> Receipt | None:
    """Made in a process of the pool; None where the time was over before its end."""
    for item in worker(store, runtime).run(task, name):
        if isinstance(item, Receipt):
            return item
        if time.time() > ends:
            return None  # its last checkpoint stays
    return None


def pooled(pool: ProcessPoolExecutor, runtime: Runtime, ends: float) -> pipeline.Mapper:
    """The units of a task side by side. The mapper raises TimeIsUp."""

    def mapper(task: pipeline.Task, names: Sequence[str]) -> Iterator[tuple[str, Receipt]]:
        if time.time() > ends:
            raise TimeIsUp
        futures = {pool.submit(unit, runtime.store, runtime, task, name, ends): name for name in names}
        for future in as_completed(futures):
            receipt = future.result()
            if receipt is None:
                raise TimeIsUp
            accuracy = receipt.meta.get("accuracy", "")
            about = f"{task.stage} {futures[future]}: {receipt.meta['seconds']:.0f} s {accuracy}"
            print(f"    {about}", flush=True)
            yield futures[future], receipt

    return mapper


def make(chosen: Sequence[Experiment], store: Store, runtime: Runtime, mapper: pipeline.Mapper) -> list[str]:
    """All stages of all experiments; what they share comes first. Returns what went wrong, if anything."""
    wrong: list[str] = []

    def one(experiment: Experiment, upto: str) -> bool:
        try:
            pipeline.ensure(experiment, store, runtime, mapper, upto=upto)
        except (FloatingPointError, RuntimeError) as error:  # of this experiment; the others go on
            wrong.append(str(error))
            return False
        return True

    ready = [e for e in chosen if one(e, "statistics" if e.recover.iterations else "squeeze")]
    with ThreadPoolExecutor(len(chosen)) as threads:
        list(threads.map(lambda experiment: one(experiment, "evaluate"), ready))
    return wrong


def row(arm: Sequence[Experiment], store: Store, runtime: Runtime) -> dict[str, Any]:
    """Facts of the repetitions that are finished."""
    every = {seed: pipeline.tasks(experiment) for seed, experiment in enumerate(arm)}
    finished = {seed: tasks for seed, tasks in every.items() if pipeline.is_hit(tasks[-1], store, runtime)}
    judged = {seed: pipeline.facts(tasks[-1], store) for seed, tasks in finished.items()}
    found: dict[str, Any] = {"accuracy": {seed: each["accuracy"] for seed, each in judged.items()}}
    for each in judged.values():
        found |= {"split": each["split"], "judged": each["judged"]}
        found.setdefault("maximum", []).append(each.get("maximum_over_reports_on_test"))
    for tasks in finished.values():
        found["stage_seconds"] = {task.stage: seconds(task, store) for task in tasks}
        facts = pipeline.facts(next(task for task in tasks if task.stage == "squeeze"), store)
        found |= {"observers": facts["accuracy"], "ensemble": facts["ensemble"]}
    return found


def seconds(task: pipeline.Task, store: Store) -> float:
    """Seconds of the units, one after the other; 0 for labels that were made inline."""
    manifest = store.artifact(task.stage, task.key).manifest()
    return float(manifest["seconds"]) if manifest else 0.0


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    n = len(values)
    half = T_975[min(n - 1, len(T_975) - 1)] * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return statistics.fmean(values), half


def verdict(mean: float, half: float, target: float) -> str:
    """Matched = the whole interval lies within half a point of the target; all in %."""
    low, high = mean - half, mean + half
    if target - 0.5 <= low and high <= target + 0.5:
        return "matched"
    return "below" if high < target - 0.5 else "above" if low > target + 0.5 else "not resolved"


def report(name: str, found: Mapping[str, Any], target: float | None) -> str:
    """One line of the table."""
    values = [100 * value for value in found["accuracy"].values()]
    if not values:
        return f"| {name} | not finished | | | | |"
    mean, half = interval(values)
    goal = f"{100 * target:.1f} {verdict(mean, half, 100 * target)}" if target is not None else ""
    tops = [value for value in found["maximum"] if value is not None]
    top = f"{100 * statistics.fmean(tops):.2f}" if tops else ""
    minutes = sum(found["stage_seconds"].values()) / 60
    judged = f"n = {len(values)}, {found['split']}, {found['judged']} images"
    teachers = f"{100 * found['ensemble']:.2f}"
    return f"| {name} | {mean:.2f} +- {half:.2f} ({judged}) | {goal} | {top} | {teachers} | {minutes:.1f} |"


def steps(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paired differences to the first arm, over the seeds that both have."""
    first, *others = facts
    ours, told = facts[first]["accuracy"], []
    for name in others:
        theirs = facts[name]["accuracy"]
        pairs = [100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
        if pairs:
            mean, half = interval(pairs)
            seen = "" if abs(mean) > half else ", not resolved"
            told.append(f"{first} - {name}: {mean:.2f} +- {half:.2f} (n = {len(pairs)}{seen})")
    return told


def coded(folder: str) -> str:
    """How the first image is stored: a number from JPEGs is not one from the original pixels."""
    first = min(Path(folder).glob("train*.parquet"))
    image = next(pq.ParquetFile(first).iter_batches(1, columns=["image"])).to_pylist()[0]["image"]
    return "JPEG" if (image["bytes"] if isinstance(image, dict) else image)[:2] == b"\xff\xd8" else "lossless"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder")
    parser.add_argument("--ipc", type=int, default=10, choices=(1, 10, 50))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--processes", type=int, default=1, help="units at once, on one device")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32"))
    parser.add_argument("--store", default="store")
    parser.add_argument("--val", type=float, default=0.0)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=JSON", help="in every arm")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, help="write the facts there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    ends = time.time() + 60 * args.minutes
    common = {"dataset.name": "parquet", "dataset.path": args.folder, "split.val": args.val}
    common |= {"precision": args.precision} | (TINY if args.tiny else {})
    common |= {path: json.loads(value) for path, _, value in (each.partition("=") for each in args.set)}
    sets = [arms(args.ipc, common, seed) for seed in range(args.seeds)]
    if unknown := set(args.arms) - set(sets[0]):
        raise SystemExit(f"error: --arms {' '.join(sorted(unknown))}: legal are {' '.join(sets[0])}")
    chosen = {name: [each[name] for each in sets] for name in args.arms}
    store = Store(args.store)
    store.check()
    for arm in chosen.values():
        pipeline.check(arm[0])
    threads = max(1, torch.get_num_threads() // args.processes)
    runtime = Runtime(store=store.path(), device=args.device, threads=threads, checkpoint_seconds=10.0)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and args.device != "cpu" else "cpu"
    print(f"torch {torch.__version__}, {device}, {args.precision}, {args.processes} processes")
    print(f"CIFAR-10 ({coded(args.folder)}) IPC {args.ipc} of {args.folder}", flush=True)
    done, wrong = True, list[str]()
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            # Seed by seed, so that an early end leaves a balanced table.
            order = [arm[seed] for seed in range(args.seeds) for arm in chosen.values()]
            wrong = make(order, store, runtime, pooled(pool, runtime, ends))
        except TimeIsUp:
            done = False
    print("| arm | accuracy | published | maximum over reports (diagnostic) | teachers | minutes |")
    print("|---|---|---|---|---|---|")
    facts = {name: row(arm, store, runtime) for name, arm in chosen.items()}
    compared = args.val == 0 and not args.tiny
    target = PRESETS[f"edc/cifar10/ipc{args.ipc}"].target if compared else None
    for name, found in facts.items():
        print(report(name, found, target if name in ("fixed", "official", "paper") else None))
    print("\n".join(steps(facts)))
    for each in {json.dumps(found["observers"]) for found in facts.values() if "observers" in found}:
        print("observers: " + ", ".join(f"{name} {100 * v:.2f}" for name, v in json.loads(each).items()))
    print(f"reads of test on record: {len(store.read_lines('test_reads.jsonl'))}")
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1))
    if not done:
        print("not finished: the same command goes on")
    for error in wrong:
        print(f"failed: {error}", file=sys.stderr)
    return 3 if not done else 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
