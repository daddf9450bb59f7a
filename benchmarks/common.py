"""What the benchmarks share: options, interleaved repeats, ratios with their goals, the table, the file.

A benchmark compares two sides in one run. Each repeat times all sides once, in turning order, after a
warm-up; its ratio is that of the two times, so that a slow moment of the machine meets both. On a CPU the
time is what the process spent, which others disturb least; on a GPU it is the wall's, synchronised.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

LEAST_SECONDS = 0.05  # a shorter call is repeated inside one timing


@dataclass(frozen=True, slots=True)
class Row:
    """A measured number, once a repeat: a ratio, or whatever `unit` says. No goal: it is only told."""

    name: str
    values: Sequence[float]
    goal: float | None = None
    at_most: bool = True  # or at least
    unit: str = ""
    note: str = ""

    @property
    def met(self) -> bool:
        """Missed by more than the spread is: no repeat reaches the goal."""
        if self.goal is None:
            return True
        return min(self.values) <= self.goal if self.at_most else max(self.values) >= self.goal

    def text(self) -> str:
        spread = f"{_short(min(self.values))} to {_short(max(self.values))}"
        goal = "" if self.goal is None else f"{'<=' if self.at_most else '>='} {_short(self.goal)}"
        verdict = "" if self.goal is None else "met" if self.met else "MISSED"
        median = _short(statistics.median(self.values))
        unit = f" {self.unit}" if self.unit else ""
        return f"| {self.name} | {median}{unit} | {spread} | {goal} | {verdict} | {self.note} |"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=doc, formatter_class=raw)
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--repeats", type=int, default=repeats)
    made.add_argument("--json", type=Path, help="write the facts there")
    return made


def begin(args: argparse.Namespace) -> torch.device:
    """One thread, full float32; prints the machine and the versions."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(args.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"one thread, {processor()}"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {where}; {args.repeats} repeats\n")
    return device


def processor() -> str:
    """The name of the processor and how many of them this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.machine()}"


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def random_weights(folder: Path, names: Sequence[str], classes: int, size_px: int) -> None:
    """Files for `squeeze.weights`: networks that need no training."""
    from safetensors.torch import save_file

    from edc_ray.core import models

    folder.mkdir()
    for name in names:
        net = models.build(name, classes, size_px, name)
        state = getattr(net, "net", net).state_dict()  # a library's network has its own names
        save_file(state, folder / f"{name.replace('/', '-')}.safetensors")


def resident() -> int:
    """Bytes of this process that are in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def interleaved(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a call of each side, one a repeat. The first calls are the warm-up and set the length."""
    calls = {}
    for name, call in sides.items():
        for _ in range(2):
            began = clock(device)
            call()
            took = clock(device) - began
            if took > 5 * LEAST_SECONDS and device.type == "cpu":  # one call will do, also once it is warm
                break
        calls[name] = max(1, round(LEAST_SECONDS / max(took, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for turn in range(repeats):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            began = clock(device)
            for _ in range(calls[name]):
                sides[name]()
            found[name].append((clock(device) - began) / calls[name])
    return found


def ratios(ours: Sequence[float], baseline: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, baseline, strict=True)]


def against_bare(
    times: Mapping[str, Mapping[str, Sequence[float]]],
    official: Mapping[str, tuple[float, float]],
    goal: float,
    items: int = 1,
) -> list[Row]:
    """Ours and plain over bare, of each observer and of the sum.

    official: ms an item of bare and the official code; plain must come within 10 % of their ratio.
    items: in a call.
    """
    found = []
    for name, sides in times.items():
        ms = {side: f"{1e3 * statistics.median(values) / items:.3g}" for side, values in sides.items()}
        for side, note in (
            ("ours", ""),
            ("plain", f"; official {official[name][1] / official[name][0]:.2f}"),
        ):
            values = ratios(sides[side], sides["bare"])
            found.append(Row(f"{name}, {side} / bare", values, note=f"{ms[side]} of {ms['bare']} ms{note}"))
    bare, ours, plain = (summed(times, side) for side in ("bare", "ours", "plain"))
    theirs = round(sum(pair[1] for pair in official.values()) / sum(pair[0] for pair in official.values()), 1)
    note = f"official {theirs}; more: a straw man"
    return [
        *found,
        Row("sum, ours / bare", ratios(ours, bare), goal),
        Row("sum, plain / bare", ratios(plain, bare), 1.1 * theirs, note=note),
        Row("sum, plain / bare", ratios(plain, bare), 0.9 * theirs, at_most=False, note="less: not plain"),
        Row("sum, plain / ours", ratios(plain, ours)),
    ]


def summed(times: Mapping[str, Mapping[str, Sequence[float]]], side: str) -> list[float]:
    """Seconds of all observers together, one a repeat."""
    return [sum(parts) for parts in zip(*(found[side] for found in times.values()), strict=True)]


def finish(args: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Print the table; the exit code: 1 where a goal is missed by more than the spread."""
    print("| what | median | least to most | goal | | |\n|---|---|---|---|---|---|")
    print("\n".join(row.text() for row in rows))
    if args.json:
        facts: dict[str, Any] = {
            "argv": sys.argv, "torch": torch.__version__, "processor": processor(), "device": args.device,
            "rows": [asdict(row) | {"met": row.met} for row in rows],
        }  # fmt: skip
        args.json.write_text(json.dumps(facts, indent=1))
    return 0 if all(row.met for row in rows) else 1
