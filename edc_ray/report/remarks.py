"""Lines of the final table that only some sweeps have: how the winner was chosen, how far its runs differ."""

from collections.abc import Mapping
from typing import Any

from edc_ray.claim import interval


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """Of the facts of a Claim."""
    lines = []
    if "front" in facts:
        names, points = facts["objectives"], facts["front"]
        lines.append(
            f"Pareto front of {', '.join(names)}: {len(points)} trials; the most accurate counts below"
        )
        for point in points:
            costs = [
                f"{name} {value:,.1f}" for name, value in zip(names[1:], point["values"][1:], strict=True)
            ]
            lines.append(
                f"    trial {point['trial']:>4} {100 * point['values'][0]:6.2f} %, {', '.join(costs)}"
            )
    if "again" in facts:
        each = [f"trial {number} {interval(values)}" for number, values in facts["again"].items()]
        lines.append(f"chosen on val with new seeds, in %: {'; '.join(each)}")
    if "rivals" in facts:
        tried = len(facts["rivals"]["val"])
        why = f"of {tried} recipes, as many as the winner's images had, the best for it on val"
        lines.append(f"random_real has the evaluation knobs of trial {facts['rivals']['trial']}: {why}")
    if "spread" in facts:
        found = facts["spread"]
        count = f"{len(found['accuracies'])} condensed sets, {len(found['accuracies'][0])} students each"
        parts = (
            f"{100 * found['synthesis']:.2f} of the synthesis, {100 * found['student']:.2f} of the student"
        )
        lines.append(f"spread (standard deviation in %): {parts} ({count})")
    if len(after := facts.get("confirmed_after", [])) > 1:
        trials = ", ".join(map(str, after))
        lines.append(f"confirmed on test {len(after)} times, after {trials} trials: not one clean read")
    return lines
