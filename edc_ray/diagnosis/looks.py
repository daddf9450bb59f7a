"""LOOKS: what is compared with what; to add one, write a row."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edc_ray import config, pipeline
from edc_ray.config import ConfigError, Diagnose, Experiment, Flatness
from edc_ray.core import recover
from edc_ray.given import Given

SEEDS = (0, 1, 2)  # students, where the set's recipe has only one
FEW = 3  # groups: with fewer, the synthesis is repeated for each seed


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
    if base.diagnose.what != Diagnose().what:
        raise ConfigError("diagnose.what", base.diagnose.what, "is set by --what")
    if len(base.evaluate.seeds) == 1 and "evaluate.seeds" not in given.over:
        base = config.override(base, {"evaluate.seeds": SEEDS})
    found = list(LOOKS[what](given.name, base))
    for look in found:
        for experiment in look.experiments():
            pipeline.check(experiment)
    return found


def _arms(
    base: Experiment, what: str, changes: Mapping[str, Mapping[str, Any]], synthesis: bool = True
) -> dict[str, tuple[Experiment, ...]]:
    """synthesis: repetitions are groups, where there are few of them of several syntheses."""
    made = [base]
    if synthesis:
        classes = len(pipeline.looked(base.dataset)[2])
        groups = len(recover.cut(base.recover, classes, base.init.ipc)[: base.diagnose.groups])
        if groups < FEW:
            made = [pipeline.with_seed(base, seed) for seed in base.evaluate.seeds]
    return {
        name: tuple(config.override(one, {"diagnose.what": what, **change}) for one in made)
        for name, change in changes.items()
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
    loss = "matching loss" if base.recover.matching.weight > 0 else "loss"
    size = f"rho {flat.rho:.3g}" if kind == "sam" else f"weight {flat.weight:.3g}"
    changes: dict[str, dict[str, Any]] = {
        "flatness none": {"recover.flatness.kind": "none"},
        f"flatness {kind}, {size}": {"recover.flatness.kind": kind},
    }
    yield Look(
        f"Hessian of the {loss} in the pixels", "iteration", "group",
        _arms(base, "synthesis_sharpness", changes), notes=(own,) * (flat.kind == "none"),
    )  # fmt: skip
    schedule = base.evaluate.schedule if base.evaluate.schedule in ("cos", "linear", "ssrs") else "cos"
    changes = {
        f"zeta {zeta}": {"evaluate.zeta": float(zeta), "evaluate.schedule": schedule} for zeta in (1, 2)
    }
    own = f"the set's schedule, {base.evaluate.schedule}, has no zeta: here {schedule}"
    yield Look(
        "Hessian of the student's loss in its weights", "share of the training", "seed",
        _arms(base, "student_sharpness", changes, synthesis=False),
        notes=(own,) * (schedule != base.evaluate.schedule),
    )  # fmt: skip


def _sets(base: Experiment, what: str) -> dict[str, tuple[Experiment, ...]]:
    """As many random real images, a new draw for each seed; the set."""
    (condensed,) = _arms(base, what, {"condensed": {}}, synthesis=False)["condensed"]
    seeds = (pipeline.with_seed(condensed, seed) for seed in condensed.evaluate.seeds)
    return {"random real": tuple(map(pipeline.random_real, seeds)), "condensed": (condensed,)}


def _gradients(name: str, base: Experiment) -> Iterator[Look]:
    """Of the set, and of as many random real images."""
    if not base.diagnose.batch_sizes:
        raise ConfigError("diagnose.batch_sizes", base.diagnose.batch_sizes, "needs at least one")
    notes = ("cross-entropy to the classes; random real: in it, condensed means these real images",)
    yield Look(
        "cosine to the global gradient", "batch", "seed", _sets(base, "gradients"), notes=notes,
        statements=tuple(
            Statement(
                f"small batches of the set are no farther than {source} ones, weights {state}",
                ("condensed", f"{source} to all real, {state}"),
                ("condensed", f"condensed to all real, {state}"), "first",
            )
            for state in ("initial", "trained") for source in ("real", "class-balanced real")
        ),
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
