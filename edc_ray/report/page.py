"""The sections of report.html, in order: the claim first."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edc_ray.claim import Claim, interval
from edc_ray.config import Experiment
from edc_ray.presets import protocols
from edc_ray.report import judged, search, stages
from edc_ray.report.figures import figures
from edc_ray.report.images import images_png
from edc_ray.report.remarks import remarks
from edc_ray.report.section import Section
from edc_ray.report.trials import Trials

log = logging.getLogger(__name__)


def sections(claim: Claim, facts: Mapping[str, Any], note: str = "") -> Iterator[Section]:
    """note: stands before all else. A section that cannot be made says why, and costs only its own place."""
    trials = Trials(claim, facts)
    for title, make in SECTIONS.items():
        try:
            made = make(trials)
        except Exception as error:  # hours of work are behind the sweep, and one picture is not worth them
            log.warning("the report has no section %r: %s", title, error, exc_info=error)
            made = Section(title, [f"This cannot be shown: {type(error).__name__}: {error}"])
        if note:
            made, note = replace(made, text=[note, *made.text]), ""
        yield made


def claimed(trials: Trials) -> Section:
    """What the sweep found: accuracy with its interval, beside what it must be compared with."""
    facts, claim = trials.facts, trials.claim
    best = facts["best"]
    if "test" not in facts:
        text = [
            f"{100 * best['val']:.2f} % on val ({facts['val']['images']} images): trial {best['trial']}, the "
            f"best of {len(trials.complete)} complete trials.",
            protocol(claim.experiment(claim.best)),
        ]
        chosen = "It was chosen by this number, so a fair one is lower; nothing is confirmed on test."
        return Section("Claim", [*text, chosen, *remarks(facts), _cost(facts)])
    test, winner = facts["test"], claim.arms()["condensed"][0]
    ours = interval(facts["accuracies"]["condensed"])
    half = f" +- {100 * ours.half:.2f}" if ours.n > 1 else ""
    text = [
        f"{100 * ours.mean:.2f}{half} % on {test['split']} ({test['images']} images): mean and 95 % interval "
        f"of {ours.n} new seeds ({', '.join(map(str, facts['seeds']))}).",
        protocol(winner),
        f"The configuration is that of trial {best['trial']}, the best on val of {len(trials.complete)} "
        "complete trials. The seeds vary initial images, synthesis, labels and student.",
        f"{test['kept']} of {test['of']} training images are kept (1/{test['of'] / test['kept']:.0f}); "
        f"{test['image_bytes']:,} bytes of images, {test['label_bytes']:,} bytes of labels a student.",
        _cost(facts),
        *remarks(facts),
        f"Reads of a test split on record in this store: {facts['test_reads']}.",
    ]
    return Section("Claim", text, {"claim": _arms(facts)})


def _arms(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = {
        "condensed": "condensed",
        "random_real": "random real images, same labels and recipe",
        "t0": "the winner's own start (T = 0)",
    }
    rows: list[dict[str, Any]] = []
    for name, values in facts["accuracies"].items():
        rows.append({"images": told.get(name, name), **percent("accuracy", values), "n": len(values)})
        if paired := facts["differences"].get(name):
            rows[-1] |= percent("condensed - this, paired", paired)
    test = facts["test"]
    whole = {f"all images: student {name}": value for name, value in test["student"].items()}
    whole |= {f"all images: observer {name}": value for name, value in test["observers"].items()}
    if len(test["observers"]) > 1:
        whole["all images: the observers together"] = test["ensemble"]
    return [*rows, *({"images": name, "accuracy, %": 100 * value, "n": 1} for name, value in whole.items())]


def percent(name: str, values: Sequence[float]) -> dict[str, float]:
    """Columns of a table: the mean, and half the interval of more than one; nothing of no value."""
    if not values:
        return {}
    found = interval(values)
    half = {f"+- {name}, %": 100 * found.half} if found.n > 1 else {}
    return {f"{name}, %": 100 * found.mean, **half}


def _cost(facts: Mapping[str, Any]) -> str:
    cost = facts["core_seconds"]
    return (
        f"Core-seconds: {cost['synthesis']:,.1f} to synthesise one condensed set, {cost['everything']:,.0f} "
        "for everything that the sweep used."
    )


def protocol(experiment: Experiment) -> str:
    """How the number was made, in words."""
    exp, judge, labels = experiment, experiment.evaluate, experiment.relabel
    names = labels.observers or exp.squeeze.observers
    soft = f"soft labels, the mean of {', '.join(names)}, learned with {judge.loss}"
    split = f"val, {100 * exp.split.val:g} % of the training images" if exp.split.val else "test"
    return (
        f"Protocol {protocols.name_of(exp)}: {exp.dataset.name} at {exp.dataset.size_px} px, "
        f"{exp.init.ipc} images a class; student {judge.student}, {judge.epochs} epochs in "
        f"batches of {labels.batch_size} with {judge.optimizer}; "
        f"{'hard labels' if judge.loss == 'hard' else soft}; views: crops from {labels.crop_min:g}, "
        f"mix {labels.mix}; judged on {split}."
    )


def images(trials: Trials) -> Section:
    text = "The best trial's initial images, what became of them, and the median trial's; a row a class."
    return Section("Condensed images", [text], pictures={"images": images_png(trials.claim)})


SECTIONS: dict[str, Callable[[Trials], Section]] = {
    "Claim": claimed,
    "Leaderboard": search.leaderboard,
    "Condensed images": images,
    "Classes": judged.per_class,
    "History": search.history,
    "Which knobs matter": search.importances,
    "Slices": search.slices,
    "Parallel coordinates": search.parallel,
    "Interactions": search.interactions,
    "Along the training": search.curves,
    "What accuracy costs": search.pareto,
    "Diagnostics and applications": figures,
    "Timeline": stages.timeline,
    "Environment": stages.environment,
}
