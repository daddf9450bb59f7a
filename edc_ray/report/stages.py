"""When each artifact was made, how often it was used, and on which machines; from the manifests."""

import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import optuna

from edc_ray.pipeline import STAGES
from edc_ray.report.section import Section, drawing, png
from edc_ray.report.trials import Trials

PACKAGES = ("edc-ray", "optuna", "ray", "torch", "numpy")


def _made(trials: Trials) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Manifests of what the sweep used and the store has."""
    tasks = {(task.stage, task.key): task for task in trials.tasks}
    found = {name: trials.manifest(task) for name, task in tasks.items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _at(manifest: Mapping[str, Any]) -> datetime:
    """When it was committed, in local time, as Optuna's times are."""
    return datetime.fromisoformat(manifest["made"]["at"]).astimezone().replace(tzinfo=None)


def timeline(trials: Trials) -> Section:
    made = _made(trials)
    starts = [trial.datetime_start for trial in trials.claim.study.get_trials(deepcopy=False)]
    began = min(start for start in starts if start).replace(microsecond=0)  # a manifest's time has none
    rows = []
    for stage in STAGES:
        names = [name for name in made if name[0] == stage]
        if not names:
            continue
        uses, before = sum(trials.used[name] for name in names), [n for n in names if _at(made[n]) < began]
        rows.append(
            {
                "stage": stage,
                "artifacts": len(names),
                "made before this sweep": len(before),
                "uses": uses,
                "hits, %": 100 * (uses - len(names) + len(before)) / uses,
                "seconds": math.fsum(made[name]["seconds"] for name in names),
                "core-seconds": math.fsum(made[name]["core_seconds"] for name in names),
                "bytes": sum(unit["bytes"] for name in names for unit in made[name]["units"].values()),
            }
        )
    text = [
        "A use is a trial, or a student of the confirmation, that needs the artifact; a hit is a use for "
        "which it was there. A bar ends when the artifact was finished, and is as long as its longest unit."
    ]
    pictures = {"stages": _bars(trials, made, began), "trials": _trials(trials)}
    return Section("Timeline", text, {"stages": rows}, pictures)


def _bars(trials: Trials, made: Mapping[tuple[str, str], Mapping[str, Any]], began: datetime) -> bytes:
    stages = [stage for stage in STAGES if any(name[0] == stage for name in made)]
    with drawing() as plt:
        figure, axis = plt.subplots(figsize=(7, 1 + 0.4 * len(stages)))
        for name, manifest in made.items():
            end = (_at(manifest) - began).total_seconds()
            if end < 0:  # a hit, perhaps of last week
                continue
            longest = max((u["meta"]["seconds"] for u in manifest["units"].values()), default=0.0)
            row, shared = stages.index(name[0]), trials.used[name] > 1
            axis.barh(row, longest / 60, left=(end - longest) / 60, height=0.6, alpha=0.5,
                      color="C0" if shared else "C1")  # fmt: skip
        axis.set_yticks(range(len(stages)), stages)
        axis.invert_yaxis()
        axis.set_xlabel("minutes since the first trial began")
        handles = [plt.Rectangle((0, 0), 1, 1, color=color, alpha=0.5) for color in ("C0", "C1")]
        figure.legend(handles, ["used more than once", "used once"], loc="outside upper right", ncols=2)
        return png(figure)


def _trials(trials: Trials) -> bytes:
    with drawing() as plt:
        plt.rcParams.update({"figure.figsize": (7, 3.4), "figure.constrained_layout.use": False})
        axes = optuna.visualization.matplotlib.plot_timeline(trials.claim.study)
        axes.set_title("")
        return png(plt.gcf())


def environment(trials: Trials) -> Section:
    """What the units ran on, and what wrote this."""
    seen: dict[tuple[str, ...], dict[str, Any]] = {}
    for manifest in _made(trials).values():
        versions = {name: manifest["made"].get(name) for name in ("python", "torch", "numpy")}
        for unit in manifest["units"].values():
            meta = unit["meta"]
            place = {"machine": meta.get("host"), "device": meta.get("device"), **versions}
            row = seen.setdefault(tuple(place.values()), place | {"units": 0, "core-seconds": 0.0})
            row["units"] += 1
            row["core-seconds"] += meta["core_seconds"]
    now = datetime.now(UTC).isoformat(timespec="minutes")
    there = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    by = ", ".join(f"{name} {there[name]}" for name in PACKAGES if name in there)
    written = f"This page was written at {now} by Python {platform.python_version()}, {by}."
    return Section(
        "Environment", [f"Store: {trials.claim.store.root}", written], {"environment": list(seen.values())}
    )
