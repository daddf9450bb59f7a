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
    """PNG: lines with 95 % intervals; of values without a place, bars; of planes, contours of each arm."""
    panels = [panel for look, its in found for panel in _panels(look, its)]
    high = math.ceil(len(panels) / WIDE)
    wide = min(WIDE, len(panels))
    with drawing() as plt:
        figure, axes = plt.subplots(high, wide, figsize=(4.6 * wide, 3.6 * high), squeeze=False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            _draw(axis, panel)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        return png(figure)


@dataclass(frozen=True, slots=True)
class Panel:
    """curves: of each label, or the plane of one arm."""

    look: "Look"
    quantity: str
    title: str
    curves: dict[str, list["Line"]] = field(default_factory=dict)


def _panels(look: "Look", its: Sequence["Line"]) -> list[Panel]:
    """Of a quantity and a series the arms together; then the planes."""
    made: dict[tuple[str, str, str], Panel] = {}
    for plane in (False, True):
        for line in its:
            if plane and look.what != "landscape":
                continue
            series, label = _named(look, line)
            place = line.quantity, series, line.arm if plane else ""
            title = f"{series}, students of {line.arm}" if plane else series
            panel = made.setdefault(place, Panel(look, line.quantity, title))
            if plane or line.y == 0:
                panel.curves.setdefault(label, []).append(line)
    return list(made.values())


def _named(look: "Look", line: "Line") -> tuple[str, str]:
    """(series of the panel, label of the curve). Batches of all kinds are compared in one panel."""
    if look.what != "gradients":
        return line.series, line.arm
    kinds, state = line.series.rsplit(", ", 1)
    return f"weights {state}", f"{kinds.replace('condensed', 'its set')}, student of {line.arm}"


def _draw(axis: Any, panel: Panel) -> None:
    axis.set_title(f"{panel.look.title}\n{panel.title}", fontsize="small")
    every = [line for own in panel.curves.values() for line in own]
    if any(line.y != 0 for line in every):
        _contours(axis, every)
        return
    for i, (label, own) in enumerate(panel.curves.items()):
        own = sorted(own, key=lambda line: line.x or 0.0)
        each = [interval(line.values) for line in own]
        means = [one.mean for one in each]
        half = [one.half if one.n > 1 else 0.0 for one in each]
        if own[0].x is None:
            axis.bar([i], means, yerr=half, capsize=4)
        else:
            axis.errorbar(
                [line.x for line in own], means, yerr=half, capsize=3, marker="o", ms=3, label=label
            )
    axis.set_ylabel(panel.quantity)
    if every[0].x is None:
        axis.set_xticks(range(len(panel.curves)), labels=list(panel.curves))
        return
    axis.legend(fontsize="xx-small" if len(panel.curves) > 2 else "x-small")
    axis.set_xlabel(panel.look.x)
    if panel.look.what == "gradients":
        axis.set_xscale("log", base=2)
    if "norm" in panel.quantity:
        axis.set_yscale("log")


def _contours(axis: Any, its: Sequence["Line"]) -> None:
    """log10 of the mean loss, as it rises steeply."""
    places = sorted({line.y for line in its})
    at = {(line.x, line.y): math.fsum(line.values) / len(line.values) for line in its}
    level = [[math.log10(max(at[x, y], 1e-9)) for x in places] for y in places]
    drawn = axis.contourf(places, places, level, levels=12)
    axis.figure.colorbar(drawn, ax=axis, label="log10 of the loss")
    axis.set(aspect="equal", xlabel="first direction", ylabel="second direction")
