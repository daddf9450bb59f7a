"""What an application says: its table, its records as Parquet, its curves as a picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from edc_ray.artifacts import pack_table
from edc_ray.claim import interval
from edc_ray.core.applications import nas
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
    if told["application"] == "nas":
        return [*_head(told), *_ranks(told), *_foot(told)]
    found, first, rest = values(told), told["arms"][0], told["arms"][1:]
    lines = _head(told)
    columns = [first, *rest, *(f"over {arm}" for arm in rest)]
    x, _ = told["axes"]
    if told["application"] == "continual":
        found |= _means(found)
    wide = max(len("series"), *(len(series) for series, _ in found))
    lines.append(
        f"{'series':<{wide}}  {x:<8}  " + "  ".join(f"{c.replace('_', ' '):<{WIDE}}" for c in columns)
    )
    order = list(dict.fromkeys(series for series, _ in found))
    for (series, at), cell in sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        less = [[a - b for a, b in zip(cell[first], cell[arm], strict=True)] for arm in rest]
        shown = (interval(each) for each in (*(cell[arm] for arm in told["arms"]), *less))
        said = "  ".join(f"{str(each).partition(' (')[0]:<{WIDE}}" for each in shown)
        lines.append(
            f"{series:<{wide}}  {'' if math.isnan(at) else f'{at:g}':<{max(8, len(x))}}  {said}".rstrip()
        )
    return [*lines, *_foot(told)]


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


def ranks(told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of `nas`: arm -> how well it ranks the networks, beside the means over the seeds of `all`.

    rho: of its means over the seeds; low, high: 95 % by a bootstrap of the networks; seeds: rho of each seed
    alone; chosen: the network that it ranks first, and the accuracy of that one trained on all. `all` is
    compared with itself, each seed with the mean of the others: what a perfect set could reach.
    """
    found = {series: cell for (series, _), cell in values(told).items()}
    names, count = list(found), len(told["seeds"])
    mean = {arm: [sum(found[n][arm]) / count for n in names] for arm in told["arms"]}
    truth = mean["all"]
    made: dict[str, dict[str, Any]] = {}
    for arm in told["arms"]:
        each = [[found[n][arm][i] for n in names] for i in range(count)]
        if arm == "all":
            less = [
                [(count * t - e) / max(1, count - 1) for t, e in zip(truth, one, strict=True)] for one in each
            ]
            made[arm] = {
                "seeds": [nas.spearman(*pair) for pair in zip(each, less, strict=True)] * (count > 1)
            }
            continue
        ours = mean[arm]
        low, high = nas.bootstrap(
            lambda ids, ours=ours: nas.spearman([ours[i] for i in ids], [truth[i] for i in ids]),  # type: ignore[misc]
            len(names),
        )
        best = max(range(len(names)), key=lambda i: ours[i])
        made[arm] = {
            "rho": nas.spearman(ours, truth), "low": low, "high": high,
            "seeds": [nas.spearman(one, truth) for one in each], "chosen": [names[best], truth[best]],
        }  # fmt: skip
    return made


def _ranks(told: Mapping[str, Any]) -> list[str]:
    """The correlations and, by the rank of `all`, the accuracies of the networks."""
    made, found = ranks(told), values(told)
    lines = [
        f"rank correlation (Spearman) of {len(found)} networks with their ranks on all; 95 % over networks"
    ]
    for arm, said in made.items():
        if arm == "all":
            if said["seeds"]:
                lines.append(
                    f"  all           {_signed(said['seeds'])}, each seed with the mean of the others"
                )
            continue
        lines.append(
            f"  {arm.replace('_', ' '):<12}  {said['rho']:.3f} [{said['low']:.3f}, {said['high']:.3f}]; "
            f"one seed alone: {_signed(said['seeds'])}; it chooses {said['chosen'][0]}, "
            f"{100 * said['chosen'][1]:.2f} % on all"
        )
    less = [a - b for a, b in zip(made["condensed"]["seeds"], made["random_real"]["seeds"], strict=True)]
    lines.append(f"  condensed over random real, one seed alone, paired: {_signed(less)}")
    wide = max(len(series) for series, _ in found)
    lines.append(
        f"{'network':<{wide}}  " + "  ".join(f"{arm.replace('_', ' '):<{WIDE}}" for arm in told["arms"])
    )
    for (name, _), cell in sorted(found.items(), key=lambda item: -sum(item[1]["all"])):
        shown = (str(interval(cell[arm])).partition(" (")[0] for arm in told["arms"])
        lines.append(f"{name:<{wide}}  " + "  ".join(f"{text:<{WIDE}}" for text in shown).rstrip())
    return lines


def _signed(numbers: Sequence[float]) -> str:
    """Mean and half width of correlations, which are no percentages."""
    found = interval(numbers)
    return f"{found.mean:.3f}" + (f" +- {found.half:.3f}" if found.n > 1 else "")


def _head(told: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, told["seeds"]))
    who = "" if told["network"] is None else f", network {told['network']}"
    return [
        f"{told['application']} of {told['set']} ({told['ipc']} images a class){who}",
        f"accuracy on {told['split']} ({told['judged']} images) in %, mean and 95 % interval, seeds {seeds};",
        '"over": condensed minus that, paired by seed',
        *(f"{arm.replace('_', ' ')}: {MEANING[arm]}" for arm in told["arms"] if arm in MEANING),
    ]


def _foot(told: Mapping[str, Any]) -> list[str]:
    return [
        *(f"note: {note}" for note in told["notes"]),
        f"the paper: {told['paper']}",
        f"reads of a test split on record in this store: {told['test_reads']}",
    ]


def _sequence(told: Mapping[str, Any], series: str) -> Sequence[float]:
    """The x of a series, in order."""
    return sorted({x for name, x in values(told) if name == series})


# --- files --------------------------------------------------------------------------------------------------


def files(told: Mapping[str, Any]) -> dict[str, bytes]:
    """Suffix -> bytes."""
    return {
        "parquet": pack_table(pa.Table.from_pylist(told["records"]), {}),
        "png": _scatter(told) if told["application"] == "nas" else _curves(told),
    }


def _scatter(told: Mapping[str, Any]) -> bytes:
    """A point a network: its accuracy on all images and on each arm's, means over the seeds."""
    found, made = values(told), ranks(told)
    arms = [arm for arm in told["arms"] if arm != "all"]
    with drawing() as plt:
        figure, axes = plt.subplots(1, len(arms), figsize=(4.2 * len(arms), 3.6), sharey=True, squeeze=False)
        for axis, arm in zip(axes[0], arms, strict=True):
            points = [[100 * interval(cell[name]).mean for cell in found.values()] for name in ("all", arm)]
            axis.scatter(*points, s=18)
            axis.set(title=f"{arm.replace('_', ' ')}: rank correlation {made[arm]['rho']:.2f}")
            axis.set_xlabel(f"trained on all, accuracy on {told['split']} in %")
        axes[0][0].set_ylabel("trained on these images, in %")
        return png(figure)


def _curves(told: Mapping[str, Any]) -> bytes:
    """One panel a series that has an x: mean and 95 % interval of each arm."""
    found = values(told)
    points = {s: _sequence(told, s) for s in dict.fromkeys(series for series, _ in found)}
    if clean := points.pop("clean", []):  # what attacks of no strength leave
        found |= {(series, x): found["clean", x] for series in points for x in clean}
        points = {series: [*clean, *xs] for series, xs in points.items()}
    with drawing() as plt:
        figure, axes = plt.subplots(
            1, len(points), figsize=(4.2 * len(points), 3.4), sharey=True, squeeze=False
        )
        for axis, series in zip(axes[0], points, strict=True):
            for arm in told["arms"]:
                each = [interval(found[series, x][arm]) for x in points[series]]
                half = [100 * one.half if one.n > 1 else 0.0 for one in each]
                axis.errorbar(
                    points[series], [100 * one.mean for one in each], half,
                    label=arm.replace("_", " "), marker="o", markersize=4, capsize=3,
                )  # fmt: skip
            axis.set(title=series, xlabel=told["axes"][0])
        axes[0][0].set_ylabel(f"{told['axes'][1]} on {told['split']} in %")
        axes[0][0].legend(fontsize="small")
        return png(figure)
