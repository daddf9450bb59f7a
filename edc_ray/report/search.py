"""Sections about the search: leaderboard, history, knobs, training curves, cost. Drawn by Optuna."""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning

from edc_ray.report.section import Section, drawing, png
from edc_ray.report.trials import ACCURACY, COSTS, FEW, Trials

MAXIMIZE, MINIMIZE = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
LEADERS = 10
KNOBS = 6  # of a picture: more are not legible


def leaderboard(trials: Trials) -> Section:
    shown = trials.knobs[: 2 * KNOBS]
    varied = [name for name in trials.costs[0] if len({row[name] for row in trials.costs}) > 1]
    rows = [
        {name: cost[name] for name in ("trial", ACCURACY, *COSTS) if name in ("trial", ACCURACY, *varied)}
        | {name: trial.params.get(name) for name in shown}
        for trial, cost in zip(trials.complete[:LEADERS], trials.costs, strict=False)
    ]
    val = trials.facts["val"]
    ties = ", ".join(map(str, val["ties"])) or "none"
    text = [
        f"The best {len(rows)} of {len(trials.complete)} complete trials. One standard error of the best is "
        f"{100 * val['standard_error']:.2f} points ({val['images']} images); trials within it: {ties}."
    ]
    if left_out := len(trials.knobs) - len(shown):
        text.append(f"{left_out} less important knobs are in results.parquet.")
    return Section("Leaderboard", text, {"leaderboard": rows})


def history(trials: Trials) -> Section:
    with drawing() as plt:
        axes = optuna.visualization.matplotlib.plot_optimization_history(trials.study, target_name=ACCURACY)
        axes.set_title("")
        low, high = (trials.complete[i].value or 0.0 for i in (-1, 0))
        margin = 0.05 * (high - low) or 1
        axes.set_ylim(low - margin, high + margin)  # not that of pruned ones
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axes.legend(loc="lower right")
        found = png(plt.gcf())
    states = ", ".join(f"{n} {state}" for state, n in trials.facts["trials"].items())
    return Section("History", [f"Trials: {states}."], pictures={"history": found})


def importances(trials: Trials) -> Section:
    n, knobs = len(trials.complete), len(trials.knobs)
    if not trials.importances:
        why = f"Needs at least {FEW} complete trials of different accuracy; there are {n} complete ones."
        return Section("Which knobs matter", [why])
    fanova = _fanova(trials)
    rows = [
        {
            "knob": name,
            "PED-ANOVA": trials.importances.get(name),
            "fANOVA": fanova.get(name),
            "trials": sum(name in trial.params for trial in trials.complete),
        }
        for name in trials.knobs
    ]
    with drawing() as plt:
        top = {name: trials.importances.get(name, 0.0) for name in trials.knobs[: 2 * KNOBS]}
        _, axis = plt.subplots(figsize=(6.4, 1 + 0.3 * len(top)))
        axis.barh(list(top), list(top.values()))
        axis.invert_yaxis()
        axis.set_xlabel("share of the importance (PED-ANOVA)")
        found = png(plt.gcf())
    text = [
        f"{n} complete trials, {knobs} knobs that vary. With few trials, say below ten a knob, another seed "
        "of the search may give another order: a hint of what to look at, no finding. Knobs that fewer than "
        "half of the trials have come last, since a handful of trials can give them any share; fANOVA sees "
        "only those that all have."
    ]
    return Section("Which knobs matter", text, {"importances": rows}, {"importances": found})


def _fanova(trials: Trials) -> dict[str, float]:
    """Of the knobs that all complete trials have."""
    common = [name for name in trials.knobs if all(name in trial.params for trial in trials.complete)]
    if not common:
        return {}
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(trials.study, evaluator=evaluator, params=common)


def parallel(trials: Trials) -> Section:
    """Trials that lack one of the knobs would be left out, so only those that all have."""
    everywhere = [n for n in trials.knobs if all(n in trial.params for trial in trials.complete)][:KNOBS]
    if len(trials.complete) < 2 or not everywhere:
        return Section("Parallel coordinates", ["Needs two complete trials that differ."])
    with drawing() as plt:
        plt.rcParams["figure.figsize"] = (1.5 * len(everywhere) + 2.5, 4.2)
        axes = optuna.visualization.matplotlib.plot_parallel_coordinate(
            trials.study, params=everywhere, target_name=ACCURACY
        )
        axes.set_title("")
        axes.tick_params(axis="x", rotation=20)
        axes.set_facecolor("white")
        axes.collections[0].set_cmap("viridis_r")  # its own begins at white
        for each in plt.gcf().axes:  # one a knob
            each.grid(False)
            for tick in each.get_yticklabels():
                tick.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})
        found = png(plt.gcf())
    text = "A line is a complete trial; dark ones are better. Knobs that wait for others are in the slices."
    return Section("Parallel coordinates", [text], pictures={"parallel_coordinates": found})


def slices(trials: Trials) -> Section:
    found = {}
    for name in trials.knobs[:KNOBS]:
        with drawing() as plt:
            plt.rcParams["figure.figsize"] = (3.7, 3)
            axes: Any = optuna.visualization.matplotlib.plot_slice(
                trials.study, params=[name], target_name=ACCURACY
            )
            axes.set_title("")
            _quiet_ticks(axes)
            found[f"slice {name}"] = png(plt.gcf())
    return Section("Slices", ["Each complete trial, by one knob; later ones are darker."], pictures=found)


def interactions(trials: Trials) -> Section:
    found = {}
    for one, other in combinations(trials.knobs[:3], 2):
        if sum({one, other} <= set(trial.params) for trial in trials.complete) < FEW:
            continue
        with drawing() as plt:
            plt.rcParams["figure.figsize"] = (3.7, 3)
            axes: Any = optuna.visualization.matplotlib.plot_rank(
                trials.study, params=[one, other], target_name=ACCURACY
            )
            axes.set_title("")
            found[f"pair {one} {other}"] = png(plt.gcf())
    text = (
        f"Pairs of the three most important knobs that {FEW} complete trials or more have; the colour ranks."
    )
    return Section("Interactions", [text], pictures=found)


def _quiet_ticks(axes: Any) -> None:
    """Categories without Python's quotes, and turned where they are long."""
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    if any("'" in tick for tick in ticks):
        axes.set_xticks(axes.get_xticks(), [tick.strip("'") for tick in ticks])
        if max(map(len, ticks)) > 9:
            axes.tick_params(axis="x", rotation=30)


# --- cost ---------------------------------------------------------------------------------------------------


def pareto(trials: Trials) -> Section:
    """Accuracy against each cost that differs between trials; the fronts are Optuna's: of the study's own
    objectives, where there are several, else of accuracy and one cost each.
    """
    several = trials.claim.sweep.objectives[1:]
    found, rows = {}, []
    for costs in [several] if several else [(cost,) for cost in COSTS]:
        known = _objectives(trials, several) if several else trials.costs
        known = [row for row in known if all(row[cost] is not None for cost in costs)]
        study = optuna.create_study(directions=[MAXIMIZE, *[MINIMIZE] * len(costs)])
        for row in known:
            values = [row[ACCURACY], *(row[cost] for cost in costs)]
            study.add_trial(optuna.trial.create_trial(values=values))
        on = [known[trial.number] for trial in study.best_trials]
        for i, cost in enumerate(costs, 1):
            if len({row[cost] for row in known}) > 1:
                front = [{"trial": row["trial"], "amount": row[cost], ACCURACY: row[ACCURACY]} for row in on]
                rows += [{"cost": cost, **point} for point in front]
                found[f"pareto {cost}"] = _front(study, i, cost, front)
    text = (
        "Red, with their numbers: trials than which no other one is both better and cheaper"
        f"{', in all objectives of the sweep' * (len(several) > 1)}. Core-seconds "
        "are those of all that the trial's result was made of, shared with other trials or not."
    )
    return Section("What accuracy costs", [text], {"pareto": rows} if rows else {}, found)


def _objectives(trials: Trials, costs: Sequence[str]) -> list[dict[str, Any]]:
    """A row a complete trial, as `Trials.costs`, of the study's own values."""
    return [
        {"trial": trial.number, ACCURACY: 100 * trial.values[0]}
        | dict(zip(costs, trial.values[1:], strict=True))
        for trial in trials.claim.ranked
    ]


def _front(study: optuna.Study, index: int, cost: str, front: Sequence[dict[str, Any]]) -> bytes:
    with drawing() as plt:
        plt.rcParams["figure.figsize"] = (5, 3.4)
        axes = optuna.visualization.matplotlib.plot_pareto_front(
            study, targets=lambda trial: (trial.values[index], trial.values[0]), target_names=[cost, ACCURACY]
        )
        axes.set_title("")
        for point in front:
            axes.annotate(f" {point['trial']}", (point["amount"], point[ACCURACY]), fontsize="small")
        return png(plt.gcf())


# --- training curves ----------------------------------------------------------------------------------------


def curves_png(trials: Trials) -> bytes:
    """Val accuracy along the student's training, one line a trial, the best one thick."""
    best = trials.claim.best.number
    with drawing() as plt:
        figure, axis = plt.subplots(figsize=(7, 4.5))
        seen = set()
        for trial in trials.study.get_trials(deepcopy=False):
            steps = sorted(trial.intermediate_values.items())
            x, y = [step / 10 for step, _ in steps], [value for _, value in steps]
            state = "best" if trial.number == best else trial.state.name.lower()
            if not steps:
                continue
            color, width, end = {
                "best": ("C0", 2.5, ""), "complete": ("0.6", 1, ""), "pruned": ("C1", 1, "x"),
            }.get(state, ("C5", 1, "."))  # fmt: skip
            named = {"best": f"best (trial {best})"}.get(state, state) if state not in seen else None
            seen.add(state)
            axis.plot(x, y, color=color, linewidth=width, label=named, zorder=2 + (state == "best"))
            axis.plot(x[-1:], y[-1:], end, color=color)
        axis.set(xlabel="student's training, %", ylabel=ACCURACY, title=trials.name)
        if seen:
            axis.legend(loc="lower right")
        return png(figure)


def curves(trials: Trials) -> Section:
    rows = [
        {"share of the training": int(at) / 1000, "rank correlation with the end": r, "trials": n}
        for at, (r, n) in trials.facts["rungs"].items()
    ]
    pruned = trials.facts["trials"].get("pruned", 0)
    stopped = f"{pruned} trials were stopped early, where the crosses are."
    text = [stopped if pruned else "No trial was stopped early."]
    if rows:
        text.append(
            "The correlation is Spearman's, of complete trials: whether the early order is the last one."
        )
    tables = {"rungs": rows} if rows else {}
    return Section("Along the training", text, tables, {"curves": curves_png(trials)})
