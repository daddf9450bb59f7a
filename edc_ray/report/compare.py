"""Two sweeps side by side: claims, paired where they can be, knobs that differ, leaderboards."""

from collections.abc import Callable
from typing import Any

import optuna

from edc_ray import config, pipeline, space
from edc_ray.claim import Claim, interval
from edc_ray.config import Experiment
from edc_ray.report.files import only_search
from edc_ray.report.html import page
from edc_ray.report.page import claimed, percent
from edc_ray.report.search import leaderboard
from edc_ray.report.section import Section, drawing, png
from edc_ray.report.table import leaderboard as leaders
from edc_ray.report.trials import ACCURACY, Trials
from edc_ray.specs import flatten


def compare(first: Claim, second: Claim, say: Callable[[str], None]) -> None:
    """Print the comparison and write it, as compare_NAME.html, into the folder of the first.

    Raises:
        RuntimeError: what the best trial of one of them made is not in the store any more.
    """
    sides = [_Side(claim, name) for claim, name in zip((first, second), _names(first, second), strict=True)]
    say("\n".join(lines(*sides)))
    made = [_claims(*sides), _differing(*sides), *_leaderboards(*sides), _search(*sides)]
    file = f"sweeps/{first.sweep.name}/compare_{second.sweep.name}.html"
    title = f"Sweeps {sides[0].name} and {sides[1].name}"
    first.store.put(file, page(title, made).encode())
    say(f"written to {first.store.path(file)}")


def _names(first: Claim, second: Claim) -> tuple[str, str]:
    """Their own; told apart where they are the same."""
    one, other = first.sweep.name, second.sweep.name
    return (one, other) if one != other else (f"{one} (first)", f"{other} (second)")


class _Side:
    """One of the two; without a confirmation that is finished, only its search."""

    def __init__(self, claim: Claim, name: str) -> None:
        self.name, self.confirmed = name, bool(claim.sweep.confirm.seeds) and not claim.missing()
        if not self.confirmed:
            claim = only_search(claim)
        self.claim, self.facts = claim, claim.facts()
        self.trials = Trials(claim, self.facts)

    @property
    def winner(self) -> Experiment:
        """As it is judged."""
        return self.claim.winner if self.confirmed else self.claim.experiment(self.claim.best)

    @property
    def data(self) -> str:
        """The name of the images; by their content, wherever they lie."""
        return pipeline.tasks(self.winner, "ingest")[-1].key


def unpaired(a: _Side, b: _Side) -> str:
    """Why their accuracies are not differences of pairs; "" where they are."""
    if not (a.confirmed and b.confirmed):
        return f"{' and '.join(s.name for s in (a, b) if not s.confirmed)} has no confirmation"
    return "" if a.data == b.data else "they are judged on different images"


def differences(a: _Side, b: _Side) -> dict[str, list[float]]:
    """Arm -> accuracy of the first minus that of the second, seed by seed; {} where nothing can be paired."""
    if unpaired(a, b):
        return {}
    ours, theirs = a.facts["accuracies"], b.facts["accuracies"]
    return {
        arm: [one - other for one, other in zip(ours[arm], theirs[arm], strict=False)]  # seeds count upwards
        for arm in ours
        if arm in theirs
    }


def differing(a: _Side, b: _Side) -> list[dict[str, Any]]:
    """Fields of the two winners that have an effect and are not the same, those that were searched first."""
    one, other = (dict(flatten(config.hashed(side.winner))) for side in (a, b))
    searched = set(a.claim.sweep.search) | set(b.claim.sweep.search)
    return [
        {"field": path, "searched": "yes" if path in searched else "",
         a.name: space.brief(one.get(path, "-")), b.name: space.brief(other.get(path, "-"))}
        for path in sorted({*one, *other}, key=lambda path: (path not in searched, path))
        if one.get(path) != other.get(path)
    ]  # fmt: skip


# --- for the terminal ---------------------------------------------------------------------------------------


def lines(a: _Side, b: _Side) -> list[str]:
    told = []
    for side in (a, b):
        told += [f"{side.name}:", *(f"    {line}" for line in claimed(side.trials).text[:2])]
    told += [f"paired, {a.name} - {b.name}:" if not (why := unpaired(a, b)) else f"not paired: {why}"]
    told += [f"    {arm:<12} {interval(values)}" for arm, values in differences(a, b).items()]
    told.append("what differs between the winners (* was searched):")
    told += [
        f"    {'*' if row['searched'] else ' '} {row['field']}: {row[a.name]} | {row[b.name]}"
        for row in differing(a, b)
    ]
    for side in (a, b):
        told += [f"{side.name}:", *leaders(side.claim, 5)]
    return told


# --- for the page -------------------------------------------------------------------------------------------


def _claims(a: _Side, b: _Side) -> Section:
    text = [f"{side.name}: {line}" for side in (a, b) for line in claimed(side.trials).text[:2]]
    if why := unpaired(a, b):
        text.append(f"No paired difference: {why}.")
    else:
        n = len(next(iter(differences(a, b).values())))
        text.append(f"Differences are paired by {n} common seeds, with 95 % Student t intervals.")
    return Section("Claims", text, {"accuracies": _accuracies(a, b), "costs": _costs(a, b)})


def _accuracies(a: _Side, b: _Side) -> list[dict[str, Any]]:
    paired = differences(a, b)
    arms = dict.fromkeys(arm for side in (a, b) for arm in side.facts["accuracies"])
    rows: list[dict[str, Any]] = [{"images": "condensed, best trial on val"}]
    for side in (a, b):
        rows[0] |= percent(side.name, [side.facts["best"]["val"]])
    for arm in arms:
        rows.append({"images": f"{arm}, confirmed"})
        for side in (a, b):
            rows[-1] |= percent(side.name, side.facts["accuracies"].get(arm, []))
        rows[-1] |= percent(f"{a.name} - {b.name}, paired", paired.get(arm, []))
    return rows


def _costs(a: _Side, b: _Side) -> list[dict[str, Any]]:
    return [
        {"core-seconds": what} | {side.name: side.facts["core_seconds"][name] for side in (a, b)}
        for what, name in (("one condensed set", "synthesis"), ("everything", "everything"))
    ]


def _differing(a: _Side, b: _Side) -> Section:
    rows = differing(a, b)
    return Section(
        "What differs between the winners", [] if rows else ["Nothing."], {"differing": rows} if rows else {}
    )


def _leaderboards(a: _Side, b: _Side) -> list[Section]:
    found = []
    for side in (a, b):
        made = leaderboard(side.trials)
        found.append(Section(f"Leaderboard of {side.name}", made.text, made.tables))
    return found


def _search(a: _Side, b: _Side) -> Section:
    studies = [side.trials.study for side in (a, b)]
    found = {}
    for name, plot in (
        ("history", optuna.visualization.matplotlib.plot_optimization_history),
        ("distribution of trials", optuna.visualization.matplotlib.plot_edf),
    ):
        with drawing() as plt:
            axes = plot(studies, target_name=ACCURACY)
            axes.set_title("")
            axes.legend(fontsize="small")
            found[name] = png(plt.gcf())
    return Section("Search", pictures=found)
