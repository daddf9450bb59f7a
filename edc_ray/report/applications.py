"""The files of an application: its records as Parquet, its curves as a picture."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from edc_ray import applications
from edc_ray.artifacts import pack_table
from edc_ray.claim import interval
from edc_ray.report.section import drawing, png


def files(told: Mapping[str, Any]) -> dict[str, bytes]:
    """Suffix -> bytes."""
    return {
        "parquet": pack_table(pa.Table.from_pylist(told["records"]), {}),
        "png": _scatter(told) if told["application"] == "nas" else _curves(told),
    }


def _scatter(told: Mapping[str, Any]) -> bytes:
    """A point a network: its accuracy on all images and on each arm's, means over the seeds."""
    found, made = applications.values(told), applications.ranks(told)
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
    found = applications.values(told)
    points = {s: applications.sequence(told, s) for s in dict.fromkeys(series for series, _ in found)}
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
