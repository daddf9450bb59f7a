"""What an application says: its table, its records as Parquet, its curves as a picture."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from edc_ray.artifacts import pack_table
from edc_ray.claim import Interval, interval
from edc_ray.report.section import drawing, png

WIDE = 16  # of a column with an interval
Values = dict[tuple[str, float], dict[str, list[float]]]
MEANING = {
    "random_real": "as many real images, a new draw for each seed, same labels and recipe",
    "all": "all training images, trained as observers are (squeeze)",
    "herding": "as many real images, led to the mean of their class in features of the first observer",
    "noise": "as many images of noise, same labels and recipe",
}


def values(told: Mapping[str, Any]) -> Values:
    """(series, x) -> arm -> accuracies in the order of the seeds."""
    found: Values = {}
    place = {seed: i for i, seed in enumerate(told["seeds"])}
    for record in sorted(told["records"], key=lambda record: place[record["seed"]]):
        cell = found.setdefault((record["series"], record["x"]), {})
        cell.setdefault(record["arm"], []).append(record["accuracy"])
    return found


def table(told: Mapping[str, Any]) -> list[str]:
    """Means and 95 % intervals over the seeds, the differences paired by seed, and what was compared."""
    body = {"nas": _ranks, "slimming": _slim}.get(told["application"], lambda told: _rows(told, values(told)))
    return [*_head(told), *body(told), *_foot(told)]


def _rows(told: Mapping[str, Any], found: Values) -> list[str]:
    """A line a series and x."""
    first, rest = told["arms"][0], told["arms"][1:]
    columns = [first, *rest, *(f"over {arm}" for arm in rest)]
    x, _ = told["axes"]
    if told["application"] == "continual":
        found |= _means(found)
    wide = max(len("series"), *(len(series) for series, _ in found))
    head = "  ".join(f"{name.replace('_', ' '):<{WIDE}}" for name in columns)
    lines = [f"{'series':<{wide}}  {x:<8}  {head}".rstrip()]
    for (series, at), cell in sorted(found.items(), key=lambda item: (_natural(item[0][0]), item[0][1])):
        less = [[a - b for a, b in zip(cell[first], cell[arm], strict=True)] for arm in rest]
        said = "  ".join(f"{_said(each):<{WIDE}}" for each in (*(cell[a] for a in told["arms"]), *less))
        at_x = "" if math.isnan(at) else f"{at:g}"
        lines.append(f"{series:<{wide}}  {at_x:<{max(8, len(x))}}  {said}".rstrip())
    return lines


def _natural(series: str) -> list[str | int]:
    """Numbers in a name count as such: 5 steps come before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", series)]


def _said(accuracies: Sequence[float]) -> str:
    """In %, without the count, which the head says."""
    return str(interval(accuracies)).partition(" (")[0]


def _means(found: Values) -> Values:
    """Of each series over its x, seed by seed: the average incremental accuracy."""
    made: Values = {}
    for series in dict.fromkeys(name for name, _ in found):
        cells = [cell for (name, _), cell in found.items() if name == series]
        for arm in cells[0]:
            each = zip(*(cell[arm] for cell in cells), strict=True)
            mean = [sum(of_seed) / len(cells) for of_seed in each]
            made.setdefault((f"{series}, mean", math.nan), {})[arm] = mean
    return made


def _slim(told: Mapping[str, Any]) -> list[str]:
    """What is left of the network, which is the same for all arms; then, fine-tuned, each arm."""
    found = values(told)
    lines = ["cut alone, the same network for all arms; 1: uncut"]
    lines.append(f"{'kept':<8}  {'channels':<8}  {'parameters':<20}  accuracy")
    for size in told["sizes"]:
        parameters = interval(size["parameters"])
        half = f" +- {parameters.half:,.0f}" if parameters.n > 1 else ""
        accuracy = _said(found.pop(("cut", size["kept"]))[told["arms"][0]])
        said = f"{parameters.mean:,.0f}{half}"
        lines.append(f"{size['kept']:<8g}  {size['channels']:<8}  {said:<20}  {accuracy}")
    return [*lines, *_rows(told, found)]


def rho(said: Mapping[str, float], sign: str = "") -> str:
    """A rank correlation, or a difference of two, with its interval."""
    value, low, high = (f"{said[name]:{sign}.2f}" for name in ("rho", "low", "high"))
    return f"{value} [{low}, {high}]"


def _ranks(told: Mapping[str, Any]) -> list[str]:
    """The correlations and, by the rank of `all`, the accuracies of the networks."""
    made, found = told["ranks"], values(told)
    lines = [
        f"rank correlation (Spearman) of {len(found)} networks with their ranks on all, by means over the "
        "seeds; 95 % by a bootstrap of the networks"
    ]
    for arm, said in made["arms"].items():
        lines.append(
            f"  {arm.replace('_', ' '):<12}  {rho(said)}; it chooses {said['chosen'][0]}, "
            f"{100 * said['chosen'][1]:.2f} % on all"
        )
    lines.append(f"  condensed over random real, the same resamples: {rho(made['over'], '+')}")
    if made["ceiling"] is not None:
        lines.append(f"  all: {made['ceiling']:.2f}, one seed with the mean of the others, their mean")
    wide = max(len(series) for series, _ in found)
    head = "  ".join(f"{arm.replace('_', ' '):<{WIDE}}" for arm in told["arms"])
    lines.append(f"{'network':<{wide}}  {head}".rstrip())
    for (name, _), cell in sorted(found.items(), key=lambda item: -sum(item[1]["all"])):
        shown = "  ".join(f"{_said(cell[arm]):<{WIDE}}" for arm in told["arms"])
        lines.append(f"{name:<{wide}}  {shown}".rstrip())
    return lines


def _head(told: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, told["seeds"]))
    who = "" if told["network"] is None else f", network {told['network']}"
    over = [] if told["application"] == "nas" else ['"over": condensed minus that, paired by seed']
    return [
        f"{told['application']} of {told['set']} ({told['ipc']} images a class){who}",
        f"accuracy on {told['split']} ({told['judged']} images) in %, mean and 95 % interval, seeds {seeds};",
        *over,
        *(f"{arm.replace('_', ' ')}: {MEANING[arm]}" for arm in told["arms"] if arm in MEANING),
    ]


def _foot(told: Mapping[str, Any]) -> list[str]:
    return [
        *(f"note: {note}" for note in told["notes"]),
        f"the paper: {told['paper']}",
        f"reads of a test split on record in this store: {told['test_reads']}",
    ]


# --- files --------------------------------------------------------------------------------------------------


def files(told: Mapping[str, Any]) -> dict[str, bytes]:
    """Suffix -> bytes."""
    return {
        "parquet": pack_table(pa.Table.from_pylist(told["records"]), {}),
        "png": _scatter(told) if told["application"] == "nas" else _curves(told),
    }


def _scatter(told: Mapping[str, Any]) -> bytes:
    """A point a network: its accuracy on all images and on each arm's, means over the seeds."""
    found, made = values(told), told["ranks"]["arms"]
    arms = [arm for arm in told["arms"] if arm != "all"]
    with drawing() as plt:
        figure, axes = plt.subplots(1, len(arms), figsize=(4.2 * len(arms), 3.6), sharey=True, squeeze=False)
        for axis, arm in zip(axes[0], arms, strict=True):
            points = [[100 * interval(cell[name]).mean for cell in found.values()] for name in ("all", arm)]
            axis.scatter(*points, s=18)
            axis.set(title=f"{arm.replace('_', ' ')}: rank correlation {rho(made[arm])}")
            axis.title.set_size("medium")
            axis.set_xlabel(f"trained on all, accuracy on {told['split']} in %")
        axes[0][0].set_ylabel("trained on these images, in %")
        return png(figure)


def _panels(told: Mapping[str, Any]) -> dict[str, dict[str, list[tuple[float, list[float]]]]]:
    """Title -> line -> (x, accuracies), in order: a panel a series, a line an arm."""
    found = values(told)
    series = sorted({name for name, _ in found}, key=_natural)
    start = [cell for (name, _), cell in found.items() if name == "clean"]  # attacks of no strength
    made = {
        name: {
            arm.replace("_", " "): [
                *((0.0, cell[arm]) for cell in start),
                *sorted((x, cell[arm]) for (other, x), cell in found.items() if other == name),
            ]
            for arm in told["arms"]
        }
        for name in series if name != "clean"
    }  # fmt: skip
    if told["application"] == "slimming":  # one network for all arms: a line more
        alone = made.pop("cut")[told["arms"][0].replace("_", " ")]
        made["fine-tuned"]["cut alone; 1: uncut"] = alone
    return made


def _curves(told: Mapping[str, Any]) -> bytes:
    """Means and 95 % intervals, as far as these are accuracies."""
    panels = _panels(told)
    with drawing() as plt:
        figure, axes = plt.subplots(
            1, len(panels), figsize=(max(5.2, 4.2 * len(panels)), 3.4), sharey=True, squeeze=False
        )
        for axis, (title, drawn) in zip(axes[0], panels.items(), strict=True):
            for name, points in drawn.items():
                each = [interval(accuracies) for _, accuracies in points]
                axis.errorbar(
                    [x for x, _ in points], [100 * one.mean for one in each],
                    list(zip(*map(_bars, each), strict=True)),
                    label=name, marker="o", markersize=4, capsize=3,
                )  # fmt: skip
            axis.set(title=title, xlabel=told["axes"][0])
        axes[0][0].set_ylabel(f"{told['axes'][1]} on {told['split']} in %")
        low, high = axes[0][0].get_ylim()
        axes[0][0].set_ylim(max(low, 0.0), min(high, 100.0))
        axes[0][0].legend(fontsize="small")
        return png(figure)


def _bars(one: Interval) -> tuple[float, float]:
    """How far its interval goes down and up, in %: no accuracy is below 0 or above 100."""
    half = one.half if one.n > 1 else 0.0
    return 100 * min(half, one.mean), 100 * min(half, 1 - one.mean)
