"""What a diagnosis found: values by place, tables, statements, files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from edc_ray import config, pipeline
from edc_ray.artifacts import Store, pack_table
from edc_ray.config import Experiment
from edc_ray.diagnosis.looks import Look
from edc_ray.given import Given, to_json


def wanted(look: Look) -> Iterator[tuple[str, Experiment, str]]:
    """(arm, experiment, its last stage) of all that must be made."""
    for name, arm in look.arms.items():
        for experiment in arm:
            yield name, experiment, "diagnose"
            if look.judged:
                yield name, experiment, "evaluate"


def rows(look: Look, store: Store) -> list[dict[str, Any]]:
    """Of finished arms: one row a value. seed: of the student, or of the synthesis that the group is of."""
    found = []
    for arm, experiment, upto in wanted(look):
        for task in pipeline.tasks(experiment, upto):
            if task.stage == upto:
                inside = _looked(task, store) if upto == "diagnose" else _judged(task, store)
                found += [{"look": look.title, "arm": arm, **row} for row in inside]
    return found


def _looked(task: pipeline.Task, store: Store) -> Iterator[dict[str, Any]]:
    artifact = store.artifact(task.stage, task.key)
    names = sorted(artifact.units())
    for name, (table, _) in zip(names, artifact.read_tables(names), strict=True):
        kind, _, number = name.partition("-")
        if kind == "group":
            about = {"seed": task.experiment.init.seed, "group": int(number)}
        else:
            about = {"seed": task.experiment.evaluate.seeds[0], "group": 0}
        yield from (about | row for row in table.to_pylist())


def _judged(task: pipeline.Task, store: Store) -> Iterator[dict[str, Any]]:
    told = pipeline.facts(task, store)
    about = {"seed": task.experiment.evaluate.seeds[0], "group": 0}
    place = {"quantity": f"accuracy on {told['split']}, %", "series": "students", "x": None, "y": 0.0}
    yield about | place | {"value": 100 * told["accuracy"], "error": 0.0}


@dataclass(frozen=True, slots=True)
class Line:
    """The mean and its 95 % interval over the repetitions, at one place of one series of one arm."""

    quantity: str
    series: str
    arm: str
    x: float | None
    y: float
    values: tuple[float, ...]  # one a repetition, in the order of these
    error: float  # mean standard error inside a repetition


def lines(found: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Rows of one look, by place."""
    places: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in found:
        place = tuple(row[name] for name in ("quantity", "series", "arm", "x", "y"))
        places.setdefault(place, []).append(row)
    made = []
    for (quantity, series, arm, x, y), members in places.items():
        values = tuple(row["value"] for row in sorted(members, key=lambda row: (row["seed"], row["group"])))
        error = sum(row["error"] for row in members) / len(members)
        made.append(Line(quantity, series, arm, x, y, values, error))
    return made


def seen(look: Look, its: Sequence[Line]) -> list[str]:
    """What these lines say of its statements: left - right, mean and 95 % interval over the repetitions."""
    from edc_ray.claim import interval

    along = dict[tuple[str, str], list[tuple[float, ...]]]()
    for line in sorted(its, key=lambda line: line.x or 0.0):
        along.setdefault((line.arm, line.series), []).append(line.values)
    told = []
    for said in look.statements:
        wanted = {"first": slice(1), "last": slice(-1, None), "every": slice(None)}[said.at]
        left = along[said.left][wanted]
        if isinstance(said.right, tuple):
            right = along[said.right][wanted]
        else:
            right = [(said.right,) * len(values) for values in left]
        apart = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(left, right, strict=True)]
        one = interval([max(column) for column in zip(*apart, strict=True)])
        low, high = one.mean - one.half, one.mean + one.half
        verdict = "seen" if high <= 0 else "the contrary was seen" if low > 0 else "not resolved"
        told.append(f"{verdict}: {said.said} ({one.mean:.3g} +- {one.half:.2g}, n = {one.n})")
    return told


def table(look: Look, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each place: the arms with intervals, and the last arm minus the first, paired."""
    from edc_ray.claim import interval

    def said(values: Sequence[float]) -> str:
        one = interval(values)
        return f"{one.mean:.4g}" + (f" +- {one.half:.2g}" if one.n > 1 else "")

    arms, by_place, its = list(look.arms), dict[tuple[Any, ...], dict[str, Line]](), lines(found)
    for line in its:
        if look.what != "landscape" or line.y == 0:  # of the plane only the line
            by_place.setdefault((line.quantity, line.series, line.x), {})[line.arm] = line
    n = len(next(iter(by_place.values()))[arms[0]].values)
    told = [f"{look.title}: mean and 95 % interval over {look.each}s (n = {n}), paired", *look.notes]
    head = "".join(f"  {arm:<24}" for arm in arms)
    told.append(f"{'quantity, series':<48}{look.x:>12}{head}  {arms[-1]} - {arms[0]}; error inside one")
    for (quantity, series, x), of in by_place.items():
        own = len(of[arms[0]].values)
        series += f" (n = {own})" if own != n else ""
        cells = "".join(f"  {said(of[arm].values):<24}" for arm in arms)
        apart = [b - a for a, b in zip(of[arms[0]].values, of[arms[-1]].values, strict=True)]
        at = "" if x is None else f"{x:.4g}"
        error = max(of[arm].error for arm in arms)
        told.append(f"{f'{quantity}, {series}':<48}{at:>12}{cells}  {said(apart)}; {error:.2g}")
    return told + seen(look, its)


def write(given: Given, what: str, found: Sequence[Look], store: Store) -> list[str]:
    """diagnoses/WHAT-DIGEST.{parquet,json,png} in the store; where they are."""
    from edc_ray.report import diagnosis as picture  # matplotlib

    every_one = [experiment for look in found for experiment in look.experiments()]
    keys = [[task.key for task in pipeline.tasks(each, "diagnose")] for each in every_one]
    stem = f"diagnoses/{what}-{config.digest(keys)}"
    every = [(look, rows(look, store)) for look in found]
    told = {
        "set": given.name, "recover": given.recover.key, "what": what, "notes": list(given.notes),
        "looks": [
            {
                "title": look.title, "each": look.each, "notes": list(look.notes),
                "seen": seen(look, lines(its)),
                "arms": {arm: [config.dump(e) for e in own] for arm, own in look.arms.items()},
            }
            for look, its in every
        ],
    }  # fmt: skip
    parts = {
        "parquet": pack_table(pa.Table.from_pylist([row for _, its in every for row in its]), {}),
        "json": to_json(told),
        "png": picture.drawn([(look, lines(its)) for look, its in every]),
    }
    for ending, content in parts.items():
        store.put(f"{stem}.{ending}", content)
    return [store.path(f"{stem}.{ending}") for ending in parts]
