"""One condensed set looked at: arms that differ in one thing, the same seeds and vectors for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from edc_ray import config, pipeline
from edc_ray.artifacts import Store, pack_table
from edc_ray.config import ConfigError, Experiment, Flatness
from edc_ray.given import Given, to_json

SEEDS = (0, 1, 2)  # students, where the set's recipe has only one


@dataclass(frozen=True, slots=True)
class Statement:
    """One series of an arm is nowhere above one of another arm, or above a number.

    at: the place where this is read; "every": at each, the worst of them counts.
    """

    said: str
    left: tuple[str, str]  # arm, series
    right: tuple[str, str] | float
    at: Literal["first", "last", "every"] = "last"


@dataclass(frozen=True, slots=True)
class Look:
    """One row of DIAGNOSTICS for several arms; the first is what the others are compared with.

    each: what a repetition is; arms are paired by it. judged: also with the accuracies of students.
    """

    title: str
    x: str
    each: str
    arms: Mapping[str, tuple[Experiment, ...]]
    judged: bool = False
    notes: tuple[str, ...] = ()
    statements: tuple[Statement, ...] = ()

    @property
    def what(self) -> str:
        return self.experiments()[0].diagnose.what

    def experiments(self) -> list[Experiment]:
        """Of all arms, in order."""
        return [experiment for arm in self.arms.values() for experiment in arm]


def looks(given: Given, what: str) -> list[Look]:
    """What `--what` asks for, checked before anything runs.

    Raises:
        ConfigError: an unknown name, or the set has not what is to be looked at.
    """
    if what not in LOOKS:
        raise config.unknown("--what", what, LOOKS)
    base = config.override(given.experiment, given.over)
    if len(base.evaluate.seeds) == 1 and "evaluate.seeds" not in given.over:
        base = config.override(base, {"evaluate.seeds": SEEDS})
    found = list(LOOKS[what](given.name, base))
    for look in found:
        for experiment in look.experiments():
            pipeline.check(experiment)
    return found


def _arms(
    base: Experiment, what: str, changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Experiment, ...]]:
    return {
        name: (config.override(base, {"diagnose.what": what, **change}),) for name, change in changes.items()
    }


def _moved(name: str, base: Experiment) -> None:
    if base.recover.iterations == 0:
        legal = (
            "has no synthesis to look at (recover.iterations = 0); --what gradients and landscape need none"
        )
        raise ConfigError("SET", name, legal)


def _sharpness(name: str, base: Experiment) -> Iterator[Look]:
    """With and without flatness; with and without smoothing of the learning rate."""
    _moved(name, base)
    flat = base.recover.flatness
    kind = flat.kind if flat.kind != "none" else "logits"
    own = f"the set was made without flatness: beside it {kind}, weight {flat.weight:g}"
    size = f"rho {flat.rho:.3g}" if kind == "sam" else f"weight {flat.weight:.3g}"
    changes: dict[str, dict[str, Any]] = {
        "flatness none": {"recover.flatness.kind": "none"},
        f"flatness {kind}, {size}": {"recover.flatness.kind": kind},
    }
    yield Look(
        "Hessian of the matching loss in the pixels", "iteration", "group",
        _arms(base, "synthesis_sharpness", changes), notes=(own,) * (flat.kind == "none"),
    )  # fmt: skip
    if base.evaluate.schedule not in ("cos", "linear", "ssrs"):
        return
    changes = {f"zeta {zeta}": {"evaluate.zeta": float(zeta)} for zeta in (1, 2)}
    yield Look(
        "Hessian of the student's loss in its weights", "share of the training", "seed",
        _arms(base, "student_sharpness", changes),
    )  # fmt: skip


def _sets(base: Experiment, what: str) -> dict[str, tuple[Experiment, ...]]:
    """As many random real images, a new draw for each seed; the set."""
    (condensed,) = _arms(base, what, {"condensed": {}})["condensed"]
    seeds = (pipeline.with_seed(condensed, seed) for seed in condensed.evaluate.seeds)
    return {"random real": tuple(map(pipeline.random_real, seeds)), "condensed": (condensed,)}


def _gradients(name: str, base: Experiment) -> Iterator[Look]:
    """Of the set, and of as many random real images."""
    notes = ("cross-entropy to the classes; random real: in it, condensed means these real images",)
    yield Look(
        "cosine to the global gradient", "batch", "seed", _sets(base, "gradients"), notes=notes
    )  # fmt: skip


def _landscape(name: str, base: Experiment) -> Iterator[Look]:
    """Of students of the set, and of as many random real images."""
    yield Look("loss along filter-normalised directions", "distance", "seed", _sets(base, "landscape"))


def _initialisation(name: str, base: Experiment) -> Iterator[Look]:
    """The set's start against noise, or real images against noise."""
    _moved(name, base)
    if base.split.val == 0:
        legal = "nothing is held out, so only test could judge: hold some out with --set split.val=0.1"
        raise ConfigError("split.val", 0, legal)
    kind = base.init.kind if base.init.kind != "noise" else "real"
    changes = {start: {"init.kind": start} for start in ("noise", kind)}
    yield Look("real start against noise", "iteration", "group", _arms(base, "initialisation", changes), True)


def _theorems(name: str, base: Experiment) -> Iterator[Look]:
    """What the paper proves of real starts, of class-aware matching and of averaged images, in numbers."""
    _moved(name, base)
    start = base.init.kind if base.init.kind != "noise" else "real"
    yield Look(
        "a real start is nearer to the data than noise", "iteration", "group",
        _arms(base, "transport", {kind: {"init.kind": kind} for kind in ("noise", start)}),
        notes=(
            "method.md has none of the paper's theorems: these are checks of what they are about, not of "
            "their terms",
            "assumed: nearness is the squared 2-Wasserstein distance to random real training images of the "
            "class, over their own variance; the start is drawn from the same images",
        ),
        statements=tuple(
            Statement(f"nearer than noise in {where}", (start, where), ("noise", where), "first")
            for where in ("pixels", "features")
        ),
    )  # fmt: skip
    if base.recover.matching.weight > 0:
        yield _class_variance(base)
    yield _smoothing(base)


def _class_variance(base: Experiment) -> Look:
    weights, ratio = sorted({0.0, base.recover.matching.class_weight, 1.0}), "of that of real images"
    changes = {
        f"class weight {weight:.3g}": {"recover.matching.class_weight": weight, "init.kind": "noise"}
        for weight in weights
    }
    without, *_, aware = changes
    return Look(
        "class-aware matching leaves no more variance than it should", "iteration", "group",
        _arms(base, "class_variance", changes),
        notes=(
            "assumed: what it should is the variance, over all pixels, that real images of the class have at "
            "the matched layers; from noise, as a real start has it before the first step",
        ),
        statements=(
            Statement("no more than with global matching alone", (aware, ratio), (without, ratio)),
            Statement("no more than real images of the class have", (aware, ratio), 1.0),
        ),
    )  # fmt: skip


def _smoothing(base: Experiment) -> Look:
    flat = base.recover.flatness
    kind = flat.kind if flat.kind in ("logits", "statistics") else "logits"
    weight = flat.weight or Flatness().weight
    without, smooth = (f"flatness {kind}, weight {value:.3g}" for value in (0, weight))
    gap, bound = "images to averaged images", "its bound"
    changes = {
        arm: {"recover.flatness.kind": kind, "recover.flatness.weight": w}
        for arm, w in ((without, 0.0), (smooth, weight))
    }
    return Look(
        "averaged images bound the loss gap", "iteration", "group", _arms(base, "smoothing", changes),
        notes=(
            "assumed: the loss is matching and cross-entropy without crops, and quadratic: then the gap "
            "is at most |g d| + ||H||_F |d|^2 / 2, d the step to the averaged images, H as Hutchinson has it",
        ),
        statements=(
            *(Statement(f"within its bound, {arm}", (arm, gap), (arm, bound), "every") for arm in changes),
            Statement("no larger with flatness than without", (smooth, gap), (without, gap)),
        ),
    )  # fmt: skip


LOOKS: dict[str, Callable[[str, Experiment], Iterator[Look]]] = {
    "sharpness": _sharpness,
    "gradients": _gradients,
    "initialisation": _initialisation,
    "landscape": _landscape,
    "theorems": _theorems,
}


def wanted(look: Look) -> Iterator[tuple[str, Experiment, str]]:
    """(arm, experiment, its last stage) of all that must be made."""
    for name, arm in look.arms.items():
        for experiment in arm:
            yield name, experiment, "diagnose"
            if look.judged:
                yield name, experiment, "evaluate"


# --- what was found -----------------------------------------------------------------------------------------


def rows(look: Look, store: Store) -> list[dict[str, Any]]:
    """Of finished arms: one row a value. repeat: the group, or the seed of the student."""
    found = []
    for arm, experiment, upto in wanted(look):
        for task in pipeline.tasks(experiment, upto):
            if task.stage == upto:
                about = {"look": look.title, "arm": arm, "repeat": task.experiment.evaluate.seeds[0]}
                inside = _looked(task, store) if upto == "diagnose" else _judged(task, store)
                found += [about | row for row in inside]
    return found


def _looked(task: pipeline.Task, store: Store) -> Iterator[dict[str, Any]]:
    artifact = store.artifact(task.stage, task.key)
    names = sorted(artifact.units())
    for name, (table, _) in zip(names, artifact.read_tables(names), strict=True):
        kind, _, number = name.partition("-")
        yield from (({"repeat": int(number)} if kind == "group" else {}) | row for row in table.to_pylist())


def _judged(task: pipeline.Task, store: Store) -> Iterator[dict[str, Any]]:
    told = pipeline.facts(task, store)
    place = {"quantity": f"accuracy on {told['split']}", "series": "students", "x": None, "y": 0.0}
    yield place | {"value": told["accuracy"], "error": 0.0}


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
        values = tuple(row["value"] for row in sorted(members, key=lambda row: row["repeat"]))
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
        left = along[said.left]
        right = along[said.right] if isinstance(said.right, tuple) else [(said.right,) * len(v) for v in left]
        apart = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(left, right, strict=True)]
        wanted = {"first": slice(1), "last": slice(-1, None), "every": slice(None)}[said.at]
        one = interval([max(column) for column in zip(*apart[wanted], strict=True)])
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
