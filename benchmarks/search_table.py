"""The table of benchmarks/search.py: every configuration of a grid over sweeps/quickstart.yaml, trained.

Each range of the file is cut into equal parts (of its logarithm, where the knob is), and the middle of each
is a point; choices stay. A row is one configuration with one replicate's seeds: its knobs, its accuracy on
val along the student's training, the core-seconds of its stages.
"""

import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.common import processor
from edc_ray import config, pipeline, reuse, space, specs
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Knob, Runtime, Sweep

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).parent / "data" / "search_table.parquet"
PARTS = {
    "recover.matching.weight": 4, "recover.matching.class_weight": 2, "recover.flatness.weight": 2,
    "recover.flatness.rho": 2, "evaluate.zeta": 3,
}  # fmt: skip
REPLICATES = ((0, 0), (0, 1), (1, 0))  # (init.seed, student's seed)
COMMON = ("ingest", "squeeze", "statistics")  # made once for a whole sweep
Chosen = dict[str, Any]
Key = tuple[int, ...]  # the point of each knob; -1 where it waits for another value
Replicate = tuple[int, int]
Row = dict[str, Any]


def sweep() -> tuple[Sweep, Experiment]:
    return specs.load_file(str(ROOT / "sweeps/quickstart.yaml"))


@dataclass(frozen=True, slots=True)
class Entry:
    """A row: (per mille of the training, accuracy on val) and the core-seconds of synthesis and training."""

    curve: tuple[tuple[int, float], ...]
    synthesis: float
    training: float


class Table:
    """Answers for any configuration of the space, by the point of the grid that stands for it.

    common: core-seconds of what a sweep makes once.
    """

    def __init__(self, search: Mapping[str, Knob], rows: Sequence[Row], common: float) -> None:
        self.search, self.common = dict(search), common
        self.steps: Sequence[int] = rows[0]["progress"]
        self.entries: dict[Key, dict[Replicate, Entry]] = {}
        for row in rows:
            chosen = {path: row[path] for path in search if row[path] is not None}
            curve = tuple(zip(row["progress"], row["accuracy"], strict=True))
            entry = Entry(curve, row["init_seconds"] + row["recover_seconds"], row["evaluate_seconds"])
            replicates = self.entries.setdefault(self.key(chosen), {})
            replicates[row["init_seed"], row["student_seed"]] = entry

    @classmethod
    def read(cls, path: Path, search: Mapping[str, Knob]) -> "Table":
        found = pq.read_table(path)
        common = json.loads(found.schema.metadata[b"core_seconds"])
        return cls(search, found.to_pylist(), sum(common.values()))

    def key(self, chosen: Chosen) -> Key:
        return tuple(cell(p, knob, chosen[p]) if p in chosen else -1 for p, knob in self.search.items())

    def look(self, chosen: Chosen, replicate: Replicate) -> Entry:
        return self.entries[self.key(chosen)][replicate]

    def complete(self) -> list[Replicate]:
        """The replicates that every configuration has."""
        return sorted(set.intersection(*(set(found) for found in self.entries.values())))

    def accuracies(self, replicate: Replicate) -> np.ndarray:
        """(configurations, reports)."""
        return np.array([[at[1] for at in found[replicate].curve] for found in self.entries.values()])

    def finals(self, key: Key) -> list[float]:
        """The final accuracies of a configuration with the search's own initial images."""
        return [entry.curve[-1][1] for (init, _), entry in sorted(self.entries[key].items()) if init == 0]

    def truth(self, key: Key) -> float:
        """The mean of `finals`."""
        return statistics.fmean(self.finals(key))


# --- the grid -----------------------------------------------------------------------------------------------


def points(path: str, knob: Knob) -> list[Any]:
    """The values of a knob in the table."""
    if knob.choices is not None:
        return list(knob.choices)
    assert knob.low is not None and knob.high is not None
    n = PARTS[path]
    low, high = (math.log(v) if knob.log else v for v in (knob.low, knob.high))
    middles = [low + (high - low) * (i + 0.5) / n for i in range(n)]
    return [math.exp(v) if knob.log else v for v in middles]


def cell(path: str, knob: Knob, value: Any) -> int:
    """Which of the knob's points stands for the value: that of the part of the range that it is in."""
    if knob.choices is not None:
        return knob.choices.index(value)
    assert knob.low is not None and knob.high is not None
    low, high, at = (math.log(v) if knob.log else v for v in (knob.low, knob.high, value))
    return min(PARTS[path] - 1, int(PARTS[path] * (at - low) / (high - low)))


def configurations(search: Mapping[str, Knob]) -> list[Chosen]:
    """All points of the grid, without the knobs that wait for others' values."""
    found: list[Chosen] = [{}]
    for path in space.order(search):
        knob = search[path]
        found = [
            chosen | more
            for chosen in found
            for more in ([{path: v} for v in points(path, knob)] if space.active(knob, chosen) else [{}])
        ]
    return found


def order(search: Mapping[str, Knob], outer: Collection[str]) -> Iterator[tuple[Replicate, Chosen]]:
    """What to compute, one after the other: replicate after replicate, each in an order of its own, so that
    wherever it stops, the share with replicates was drawn at random. Those of one synthesis stay together.
    """

    def synthesis(chosen: Chosen) -> str:
        return json.dumps({path: value for path, value in chosen.items() if path in outer})

    for replicate in REPLICATES:
        listed = sorted(configurations(search), key=synthesis)
        groups = [list(group) for _, group in itertools.groupby(listed, synthesis)]
        random.Random(str(replicate)).shuffle(groups)
        yield from ((replicate, chosen) for group in groups for chosen in group)


# --- making it ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Maker:
    """Runs the real stages in this process, one after the other."""

    search: Mapping[str, Knob]
    base: Experiment
    store: Store
    runtime: Runtime
    mapper: pipeline.Mapper

    def row(self, replicate: tuple[int, int], chosen: Chosen) -> tuple[Row, dict[str, float]]:
        """A row of the table, and the core-seconds of the stages that all rows share."""
        init, seed = replicate
        changes = {"init.seed": init, "evaluate.seeds": [seed]}
        experiment = config.override(space.apply(self.base, chosen, self.search), changes)
        done = pipeline.ensure(experiment, self.store, self.runtime, self.mapper)
        spent = {task.stage: pipeline.core_seconds(task, self.store) for task in done}
        curve = pipeline.reports(done[-1], self.store)
        row = {path: chosen.get(path) for path in self.search} | {
            "init_seed": init, "student_seed": seed,
            "progress": [at for at, _ in curve], "accuracy": [value for _, value in curve],
            "init_seconds": spent["init"], "recover_seconds": spent["recover"],
            "evaluate_seconds": spent["evaluate"],
        }  # fmt: skip
        return row, {stage: spent[stage] for stage in COMMON}


def write(path: Path, rows: Sequence[Row], common: Mapping[str, float]) -> None:
    schema = pa.Table.from_pylist(list(rows)).schema
    for name, kind in (("progress", pa.list_(pa.int16())), ("accuracy", pa.list_(pa.float32()))):
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    facts = {"core_seconds": json.dumps(common), "torch": torch.__version__, "processor": processor()}
    table = pa.Table.from_pylist(list(rows), schema.with_metadata(facts))
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def make(folder: str, minutes: float, path: Path = FILE) -> None:
    """Compute the table, or go on with it, for so many minutes of this process; folder: its store."""
    plan, base = sweep()
    store, runtime = Store(folder), config.override(Runtime(), {"device": "cpu"})
    store.check()
    maker = Maker(plan.search, base, store, runtime, pipeline.in_process(store, runtime))
    rows: list[Row] = []
    for replicate, chosen in order(plan.search, reuse.outer(plan.search, base)):
        row, common = maker.row(replicate, chosen)
        rows.append(row)
        over = time.process_time() > 60 * minutes
        if over or len(rows) % 60 == 0:
            write(path, rows, common)
            print(f"{len(rows)} rows, {time.process_time():.0f} core-s", flush=True)
        if over:
            return
    write(path, rows, common)
