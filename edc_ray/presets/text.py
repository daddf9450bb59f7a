"""PRESETS for a person: the lines of `edc-ray presets`, and docs/presets.md."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edc_ray.config import Experiment
from edc_ray.config.fields import active
from edc_ray.presets import PRESETS, experiment, students
from edc_ray.presets.table import Measured, Preset
from edc_ray.presets.why import LEFT_OUT, WHY

DATASETS = ("cifar10", "cifar100", "tiny_imagenet", "imagenet_10", "imagenet_1k")


def lines(found: Mapping[str, Preset]) -> list[str]:
    """One aligned line a preset; accuracies in %."""
    rows = [("name", "steps", "published", "measured", "source")]
    rows += [
        (name, brief(experiment(name)), _percent(p.target), _measured(p.measured) or "-", p.source)
        for name, p in found.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return ["  ".join([*map(str.ljust, row[:4], widths), row[4]]) for row in rows]


def brief(e: Experiment) -> str:
    """What is done, in one line: start, steps and class statistics, observers; student's training."""
    factor = f" {e.init.factor}x{e.init.factor}" if e.init.kind == "rded" else ""
    form = e.recover.matching.class_form if e.recover.matching.class_weight else "global"
    moved = f"{e.recover.iterations} steps {form}" if e.recover.iterations else "as they are"
    counts = [len(some or e.squeeze.observers) for some in (e.recover.observers, e.relabel.observers)]
    who = "/".join(map(str, dict.fromkeys(counts)))
    zeta = f" {e.evaluate.zeta:g}" if e.evaluate.schedule in ("cos", "linear", "ssrs") else ""
    return (
        f"{e.init.kind}{factor}, {moved}; observers {who}; {e.evaluate.epochs} epochs of "
        f"{e.relabel.batch_size}, {e.evaluate.loss}, {e.evaluate.optimizer}, {e.evaluate.schedule}{zeta}"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _measured(m: Measured | None) -> str:
    return "" if m is None else f"{100 * m.accuracy:.1f} +- {100 * m.half_width:.1f} (n = {m.n})"


# --- docs/presets.md ----------------------------------------------------------------------------------------


def markdown() -> str:
    """The whole of docs/presets.md: every preset, and why the versions of EDC differ."""
    parts = [_HEAD, _table(_COLUMNS, [_row(name, preset) for name, preset in PRESETS.items()])]
    parts += [_STUDENTS, _table(("preset", "student", "published"), list(_other_students()))]
    parts += [_DIFFERENCES]
    for version, reasons in WHY.items():
        rows = [
            (f"`{path}`", names, mine, fixed, reasons[path])
            for path, names, mine, fixed in differences(version)
        ]
        parts += [f"### {version}", _table(("field", "datasets", version, "fixed", "why"), rows)]
    parts += [_FIXED, _NOT_SHOWN, _table(("row", "why"), list(LEFT_OUT.items()))]
    return "\n\n".join(parts)


_COLUMNS = (
    "preset",
    "start, steps; observers (of images/labels); student",
    "published",
    "measured",
    "source",
)
_HEAD = """# Presets

Written by `edc-ray presets --markdown`; do not edit. As in `edc-ray condense digits/ipc1` every row can be
run, as in `edc-ray plan edc/cifar10/ipc10` planned, and changed by `--set path=value`. Top-1 accuracy on test
in %, of the preset's own student. The plain name of an EDC row is its `fixed` version. "Measured" is ours:
mean and 95 % half-width of n students; an empty one was never run."""
_STUDENTS = """## Other students

Published accuracies of other students on the same images: `--set evaluate.student=NAME`."""
_DIFFERENCES = """## What differs between the versions, and why

B and P number the findings about the official code (B: in it; P: paper against it). The tables are made from
the presets at 10 images a class; those at 1 and 50 differ in the same fields."""
_FIXED = """### fixed

The reference of both tables: what the paper intends, without the defects of its code. Class statistics have
the variance over all pixels of the class's images; running statistics are bias-corrected and begin anew in
every group; flatness is on the logits, as in the paper. The paper leaves open how its observers were trained,
and label teachers move the student by 17 points (Table 19): so `fixed` has a squeeze of its own, 50 epochs
(100 on ImageNet-10, from scratch as the paper says), SGD 0.05 with momentum 0.9, batch 128, weight decay
5e-4, gradients of norm 1 at most, cosine to 0, shifted crops and flips; on ImageNet-1k the downloaded
weights. What the paper does not have (r, momentum of the statistics, the factor of the first layer) is the
scripts'. Images are stored as bytes, rounded."""
_NOT_SHOWN = "### Findings that no table shows"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _row(name: str, p: Preset) -> tuple[str, ...]:
    ours = ", ".join(filter(None, [_measured(p.measured), p.measured.note if p.measured else ""]))
    return f"`{name}`", brief(experiment(name)), _percent(p.target), ours, p.source


def _other_students() -> Iterator[tuple[str, ...]]:
    for name in PRESETS:
        if others := students(name):
            numbers = ", ".join(f"{100 * value:.1f}" for value in others.values())
            yield f"`{name}`", ", ".join(others), numbers


def differences(version: str, ipc: int = 10) -> list[tuple[str, str, str, str]]:
    """(field, datasets, value in the version, value in fixed) wherever they differ."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for dataset in DATASETS:
        plain = f"edc/{dataset}/ipc{ipc}"
        mine, fixed = _flat(f"{plain}/{version}"), _flat(plain)
        named = PRESETS[f"{plain}/{version}"].changes
        for path, value in mine.items():
            if value != fixed.get(path) and (path in fixed or path in named):  # else its parent says it
                shown = _short(value), _short(fixed[path]) if path in fixed else ""
                groups.setdefault((path, *shown), []).append(dataset)
    found = [(path, _names(names), mine, fixed) for (path, mine, fixed), names in groups.items()]
    order = list(_flat("edc/cifar10/ipc10"))
    return sorted(found, key=lambda row: order.index(row[0]) if row[0] in order else len(order))


def _names(datasets: Sequence[str]) -> str:
    return "all" if len(datasets) == len(DATASETS) else ", ".join(datasets)


def _flat(name: str) -> dict[str, Any]:
    """Every field that has an effect."""
    found: dict[str, Any] = {}

    def walk(section: Any, prefix: str) -> None:
        for f in dataclasses.fields(section):
            value = getattr(section, f.name)
            if dataclasses.is_dataclass(value):
                walk(value, f"{prefix}{f.name}.")
            elif active(section, f):
                found[prefix + f.name] = value

    walk(experiment(name), "")
    return found


def _short(value: Any) -> str:
    """Long lists of numbers by their ends."""
    if isinstance(value, tuple):
        texts = [_short(item) for item in value]
        ends = f"{texts[0]}, {texts[1]} ... {texts[-1]} ({len(texts)})" if len(texts) > 8 else None
        return ends or ", ".join(texts)
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
