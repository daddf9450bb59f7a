"""EDC on CIFAR-10 beside the published numbers: the whole pipeline in this process, without Ray.

    python benchmarks/cifar10_reproduction.py FOLDER [--ipc 10] [--seeds 3] [--minutes 9] [--device cuda]

FOLDER has train*.parquet and test*.parquet (columns image, label). Needs torch, torchvision, numpy, pyarrow
and safetensors, neither Ray nor pydantic. Stops after --minutes with everything kept (units in work are
checkpointed); the same command goes on, and prints the table of what is finished. Exit code 3: not finished.

Arms, all with the same seeds (init, recover, labels, student):
    fixed, official, paper   the presets edc/cifar10/ipcN
    t0                       fixed without optimisation
    random_real              fresh random real images with the labels and recipe of fixed
    fixed_official_teachers, official_fixed_teachers
                             the recipe of one with the observers of the other (--arms; label teachers move
                             the student by about 17 points, method.md 8.4)
With --val SHARE everything is judged on held-out training images instead of test; each read of test is on
record in the store (test_reads.jsonl). --set changes every arm, --tiny shrinks all for a look on a CPU.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package is not installed

import torch

from edc_ray import pipeline
from edc_ray.artifacts import Store
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


def arms(ipc: int, common: Mapping[str, Any]) -> dict[str, Experiment]:
    """Every arm, before its seed."""

    def preset(version: str) -> Experiment:
        name = f"edc/cifar10/ipc{ipc}" + ("" if version == "fixed" else f"/{version}")
        return changed(Experiment(), {**PRESETS[name].changes, **common})

    fixed, official, paper = (preset(version) for version in ("fixed", "official", "paper"))
    real = pipeline.arms(fixed)

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


def make(
    experiment: Experiment, store: Store, runtime: Runtime, mapper: pipeline.Mapper, ends: float
) -> None:
    """All stages of one repetition. Raises TimeIsUp."""

    def tell(task: pipeline.Task, unit: str, item: Any) -> None:
        if time.monotonic() > ends:
            raise TimeIsUp
        if isinstance(item, pipeline.Progress) and item.done % 50 == 0:
            print(f"    {task.stage} {unit} {item.done}/{item.total}", flush=True)

    pipeline.ensure(experiment, store, runtime, mapper, tell)


def row(arm: Sequence[Experiment], store: Store, runtime: Runtime) -> dict[str, Any]:
    """Facts of the repetitions that are finished."""
    finished = [
        tasks
        for experiment in arm
        if pipeline.is_hit((tasks := pipeline.tasks(experiment))[-1], store, runtime)
    ]
    judged = [pipeline.facts(tasks[-1], store) for tasks in finished]
    found: dict[str, Any] = {"n": len(judged), "accuracies": [each["accuracy"] for each in judged]}
    if judged:
        found["split"], found["judged"] = judged[0]["split"], judged[0]["judged"]
        found["maximum"] = [each.get("maximum_over_reports_on_test") for each in judged]
        found["stage_seconds"] = {task.stage: seconds(task, store) for task in finished[0]}
        squeeze = [task for task in finished[0] if task.stage == "squeeze"]
        if squeeze:
            facts = pipeline.facts(squeeze[0], store)
            found |= {"observers": facts["accuracy"], "ensemble": facts["ensemble"]}
    return found


def seconds(task: pipeline.Task, store: Store) -> float:
    """Seconds of the units, one after the other; 0 for labels that were made inline."""
    manifest = store.artifact(task.stage, task.key).manifest()
    return float(manifest["seconds"]) if manifest else 0.0


def report(name: str, found: Mapping[str, Any], target: float | None) -> str:
    """One line of the table."""
    values, n = [100 * value for value in found["accuracies"]], found["n"]
    if not n:
        return f"| {name} | not finished | | | |"
    half = T_975[min(n - 1, len(T_975) - 1)] * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    mean = statistics.fmean(values)
    goal, verdict = "", ""
    if target is not None:
        goal = f"{100 * target:.1f}"
        inside = mean - half >= 100 * target - 0.5 and mean + half <= 100 * target + 0.5
        verdict = "matched" if inside else "not reached"
    tops = [value for value in found.get("maximum", []) if value is not None]
    top = f"{100 * statistics.fmean(tops):.2f}" if tops else ""
    minutes = sum(found["stage_seconds"].values()) / 60
    interval = f"{mean:.2f} +- {half:.2f}" if n > 1 else f"{mean:.2f}"
    teachers = f"{100 * found['ensemble']:.2f}" if "ensemble" in found else ""
    return (
        f"| {name} | {interval} (n = {n}, {found['split']}, {found['judged']} images) | {goal} {verdict} | "
        f"{top} | {teachers} | {minutes:.1f} |"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder")
    parser.add_argument("--ipc", type=int, default=10, choices=(1, 10, 50))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
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
    ends = time.monotonic() + 60 * args.minutes
    common = {"dataset.name": "parquet", "dataset.path": args.folder, "split.val": args.val}
    common |= {"precision": args.precision} | (TINY if args.tiny else {})
    common |= {path: json.loads(value) for path, _, value in (each.partition("=") for each in args.set)}
    every = arms(args.ipc, common)
    if unknown := set(args.arms) - set(every):
        raise SystemExit(f"error: --arms {' '.join(sorted(unknown))}: legal are {' '.join(every)}")
    store = Store(args.store)
    store.check()
    runtime = Runtime(store=args.store, device=args.device, threads=torch.get_num_threads())
    chosen = {
        name: [pipeline.with_seed(every[name], seed) for seed in range(args.seeds)] for name in args.arms
    }
    for arm in chosen.values():
        pipeline.check(arm[0])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and args.device != "cpu" else "cpu"
    print(f"torch {torch.__version__}, {device}, {args.precision}; CIFAR-10 IPC {args.ipc} of {args.folder}")
    mapper, done = pipeline.in_process(store, runtime), True
    try:
        for i in range(args.seeds):  # every arm once, then again: an early end leaves a balanced table
            for name, arm in chosen.items():
                print(f"  {name}, seed {i}", flush=True)
                make(arm[i], store, runtime, mapper, ends)
    except TimeIsUp:
        done = False
    print("| arm | accuracy | published | maximum over reports (diagnostic) | teachers | minutes |")
    print("|---|---|---|---|---|---|")
    facts = {name: row(arm, store, runtime) for name, arm in chosen.items()}
    target = PRESETS[f"edc/cifar10/ipc{args.ipc}"].target if not args.tiny else None
    for name, found in facts.items():
        print(report(name, found, target if name in ("fixed", "official", "paper") else None))
    for each in {json.dumps(found["observers"]) for found in facts.values() if "observers" in found}:
        told = ", ".join(f"{name} {100 * value:.2f}" for name, value in json.loads(each).items())
        print(f"observers: {told}")
    print(f"reads of test on record: {len(store.read_lines('test_reads.jsonl'))}")
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1))
    if not done:
        print("not finished: the same command goes on")
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
