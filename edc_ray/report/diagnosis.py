"""The picture of a diagnosis: a panel for each quantity and series, a line for each arm."""

import math
from collections.abc import Sequence
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
            _draw(axis, *panel)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        return png(figure)


def _panels(look: "Look", its: Sequence["Line"]) -> list[tuple["Look", str, str, list["Line"]]]:
    made: dict[tuple[str, str, str], list[Line]] = {}
    for line in its:
        if look.what == "landscape":  # the line of both arms, then the plane of each
            if line.y == 0:
                made.setdefault((line.quantity, line.series, ""), []).append(line)
            made.setdefault((line.quantity, line.series, line.arm), []).append(line)
        else:
            made.setdefault((line.quantity, line.series, ""), []).append(line)
    return [
        (look, quantity, f"{series} {arm}".strip(), lines) for (quantity, series, arm), lines in made.items()
    ]


def _draw(axis: Any, look: "Look", quantity: str, title: str, its: Sequence["Line"]) -> None:
    axis.set_title(f"{look.title}\n{title}", fontsize="small")
    if len({line.y for line in its}) > 1:
        _contours(axis, its)
        return
    arms = list(dict.fromkeys(line.arm for line in its))
    for i, arm in enumerate(arms):
        own = sorted((line for line in its if line.arm == arm), key=lambda line: line.x or 0.0)
        each = [interval(line.values) for line in own]
        means = [one.mean for one in each]
        half = [one.half if one.n > 1 else 0.0 for one in each]
        if own[0].x is None:
            axis.bar([i], means, yerr=half, capsize=4)
        else:
            axis.errorbar([line.x for line in own], means, yerr=half, capsize=3, marker="o", ms=3, label=arm)
    if its[0].x is None:
        axis.set_xticks(range(len(arms)), labels=arms)
    else:
        axis.legend(fontsize="x-small")
        axis.set_xlabel(look.x)
        if look.what == "gradients":
            axis.set_xscale("log", base=2)
        if "norm" in quantity:
            axis.set_yscale("log")
    axis.set_ylabel(quantity)


def _contours(axis: Any, its: Sequence["Line"]) -> None:
    """log10 of the mean loss, as it rises steeply."""
    places = sorted({line.y for line in its})
    at = {(line.x, line.y): math.fsum(line.values) / len(line.values) for line in its}
    level = [[math.log10(max(at[x, y], 1e-9)) for x in places] for y in places]
    drawn = axis.contourf(places, places, level, levels=12)
    axis.figure.colorbar(drawn, ax=axis, label="log10 of the loss")
    axis.set(aspect="equal", xlabel="first direction", ylabel="second direction")
