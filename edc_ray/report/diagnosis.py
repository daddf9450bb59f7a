"""The picture of a diagnosis: a panel for each quantity and series, a line for each arm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edc_ray.claim import interval
from edc_ray.report.section import drawing, png

if TYPE_CHECKING:  # which calls this
    from edc_ray.diagnosis import Line, Look

WIDE = 3  # panels in a row


def drawn(found: Sequence[tuple["Look", Sequence["Line"]]]) -> bytes:
    """PNG: lines with 95 % intervals; of values without a place, bars; of planes, contours of each arm.

    A look begins on a new row.
    """
    rows: list[list[Panel]] = []
    for panels in (_panels(look, its) for look, its in found):
        rows += [panels[i : i + WIDE] for i in range(0, len(panels), WIDE)]
    wide = max(map(len, rows))
    with drawing() as plt:
        figure, axes = plt.subplots(len(rows), wide, figsize=(4.6 * wide, 3.6 * len(rows)), squeeze=False)
        for line, row in zip(axes, rows, strict=True):
            for axis, panel in zip(line, row, strict=False):
                _draw(axis, panel)
            for axis in line[len(row) :]:
                axis.axis("off")
        return png(figure)


@dataclass(frozen=True, slots=True)
class Panel:
    """curves: of each label, or the plane of one arm. peers: all lines that share its scale."""

    look: "Look"
    quantity: str
    title: str
    peers: Sequence["Line"]
    curves: dict[str, dict[tuple[float, float], "Line"]] = field(default_factory=dict)


def _panels(look: "Look", its: Sequence["Line"]) -> list[Panel]:
    """Of a quantity and a series the arms together; then the planes."""
    made: dict[tuple[str, str, str], Panel] = {}
    for plane in (False, True)[: 1 + (look.what == "landscape")]:
        for line in its:
            series, label = _named(look, line)
            place = line.quantity, series, line.arm if plane else ""
            if place not in made:
                title = f"{series}, students of {line.arm}" if plane else series
                peers = [one for one in its if (one.quantity, one.series) == (line.quantity, line.series)]
                made[place] = Panel(look, line.quantity, title, peers)
            if plane or line.y == 0:
                made[place].curves.setdefault(label, {})[line.x or 0.0, line.y] = line
    return list(made.values())


def _named(look: "Look", line: "Line") -> tuple[str, str]:
    """(series of the panel, label of the curve). Batches of all kinds are compared in one panel, at the same
    weights: the initial ones are those of both arms.
    """
    if look.what != "gradients":
        return line.series, line.arm
    kinds, state = line.series.rsplit(", ", 1)
    own = kinds.replace("condensed", line.arm)
    return f"weights {state}" + (f" on {line.arm}" if state == "trained" else ""), own


def _draw(axis: Any, panel: Panel) -> None:
    axis.set_title(f"{panel.look.title}\n{panel.title}", fontsize="small")
    every = [line for own in panel.curves.values() for line in own.values()]
    if any(line.y != 0 for line in every):
        _contours(axis, every, panel.peers)
        return
    logarithmic, wide = panel.look.what == "gradients", max(line.x or 0.0 for line in every)
    for i, (label, by_place) in enumerate(panel.curves.items()):
        own = [by_place[place] for place in sorted(by_place)]
        each = [interval(line.values) for line in own]
        means = [one.mean for one in each]
        half = [one.half if one.n > 1 else 0.0 for one in each]
        if own[0].x is None:
            axis.bar([i], means, yerr=half, capsize=4)
            continue
        aside = i - (len(panel.curves) - 1) / 2  # so that intervals do not hide each other
        places = [x * 1.04**aside if logarithmic else x + 0.008 * wide * aside for x, _ in sorted(by_place)]
        axis.errorbar(places, means, yerr=half, capsize=3, marker="o", ms=3, label=label)
    axis.set_ylabel(panel.quantity)
    if every[0].x is None:
        axis.set_xticks(range(len(panel.curves)), labels=list(panel.curves))
        return
    axis.legend(fontsize="xx-small" if len(panel.curves) > 2 else "x-small")
    axis.set_xlabel(panel.look.x)
    if logarithmic:
        axis.set_xscale("log", base=2)
    if "norm" in panel.quantity:
        axis.set_yscale("log")


def _contours(axis: Any, its: Sequence["Line"], peers: Sequence["Line"]) -> None:
    """log10 of the mean loss, as it rises steeply; the same colours for all that it is compared with."""

    def level(line: "Line") -> float:
        return math.log10(max(math.fsum(line.values) / len(line.values), 1e-9))

    places = sorted({line.y for line in its})
    at = {(line.x, line.y): level(line) for line in its}
    low, high = min(map(level, peers)), max(map(level, peers))
    drawn = axis.contourf(
        places, places, [[at[x, y] for x in places] for y in places],
        levels=[low + (high - low) * i / 12 for i in range(13)],
    )  # fmt: skip
    axis.figure.colorbar(drawn, ax=axis, label="log10 of the loss", format="%.1f")
    axis.set(aspect="equal", xlabel="first direction", ylabel="second direction")
