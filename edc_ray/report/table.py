"""A sweep's tables for the terminal: leaderboard, claim; and that of one experiment."""

from typing import Any

from edc_ray import pipeline, space
from edc_ray.artifacts import Store
from edc_ray.claim import Claim, interval
from edc_ray.config import Experiment
from edc_ray.report.remarks import remarks

LEADERS = 10
MAXIMUM = "maximum_over_reports_on_test"  # a fact of a student that was read at `report_epochs`


def leaderboard(claim: Claim, most: int = LEADERS) -> list[str]:
    """The best trials, one line each."""
    lines = [f"{'trial':>5}  {'val':>7}  knobs"]
    for trial in claim.ranked[:most]:
        knobs = ", ".join(f"{path} = {space.brief(value)}" for path, value in trial.params.items())
        lines.append(f"{trial.number:>5}  {100 * space.accuracy(trial):6.2f}%  {knobs}")
    return lines


def table(facts: dict[str, Any], hits: tuple[int, int] | None) -> list[str]:
    """The final table. hits: artifacts of this run that were there already, and that were made."""
    best, val = facts["best"], facts["val"]
    ties, error = ", ".join(map(str, val["ties"])) or "none", 100 * val["standard_error"]
    lines = [
        f"trials: {', '.join(f'{n} {state}' for state, n in facts['trials'].items())}",
        f"best: trial {best['trial']}, val {100 * best['val']:.2f} %, protocol {facts['protocol']} "
        f"(standard error {error:.2f}, {val['images']} images); trials within one standard error: {ties}",
    ]
    lines += [f"    {path} = {space.brief(value)}" for path, value in best["params"].items()]
    if "test" in facts:
        lines += _confirmed(facts)
    lines += remarks(facts)
    if rungs := facts["rungs"]:
        points = ", ".join(f"{int(at) / 10:g} %: {r:.2f} (n = {n})" for at, (r, n) in rungs.items())
        lines.append(f"rank correlation of val accuracy along the training with the end: {points}")
    cost = facts["core_seconds"]
    per_set, everything = cost["synthesis"], cost["everything"]
    lines.append(f"core-seconds: {per_set:.1f} for one condensed set, {everything:.0f} for everything")
    if hits is not None:
        share = hits[0] / max(1, sum(hits))
        lines.append(f"stage hits: {100 * share:.0f} % ({hits[0]} there already, {hits[1]} made in this run)")
    lines.append(f"reads of a test split on record in this store: {facts['test_reads']}")
    return lines


def _confirmed(facts: dict[str, Any]) -> list[str]:
    test, seeds = facts["test"], facts["seeds"]
    judged = f"{test['split']} ({test['images']} images), protocol {facts['protocol']}"
    new = f"{len(seeds)} new seeds ({', '.join(map(str, seeds))})"
    lines = [f"confirmed on {judged}, {new}, mean and 95 % interval in %:"]
    for name, values in facts["accuracies"].items():
        paired = facts["differences"].get(name)
        difference = f"   condensed - {name}: {interval(paired)}" if paired else ""
        lines.append(f"    {name:<12} {interval(values)}{difference}")
    whole = {f"student {name}": value for name, value in test["student"].items()}
    whole |= test["observers"] | ({"ensemble": test["ensemble"]} if test["observers"] else {})
    if whole:
        lines.append("    whole data: " + ", ".join(f"{n} {100 * value:.2f}" for n, value in whole.items()))
    kept = f"{test['kept']} of {test['of']} training images kept (1/{test['of'] / test['kept']:.0f})"
    sizes = f"{test['image_bytes']:,} bytes of images, {test['label_bytes']:,} bytes of labels a student"
    return [*lines, f"compression: {kept}, {sizes}"]


def condensed(experiment: Experiment, store: Store) -> list[str]:
    """The table of `edc-ray condense`: the experiment, its baselines and the whole data, as finished."""
    accuracies, maxima = dict[str, list[float]](), dict[str, list[float]]()
    for name, arm in pipeline.arms(experiment).items():
        tasks = [task for task in pipeline.tasks(arm) if task.stage == "evaluate"]
        read = [pipeline.facts(task, store) for task in tasks]
        accuracies[name] = [one["accuracy"] for one in read]
        maxima[name] = [one[MAXIMUM] for one in read if MAXIMUM in one]
    images = next(task for task in pipeline.tasks(experiment) if task.stage == "recover")
    judged = "val" if experiment.split.val > 0 else "test"
    lines = [f"accuracy on {judged} in %, {len(experiment.evaluate.seeds)} students of one condensed set:"]
    lines += [f"    {name:<12} {interval(values)}" for name, values in accuracies.items()]
    if whole := pipeline.whole(experiment):
        ((student, accuracy),) = _squeezed(whole, store)["accuracy"].items()
        lines += [f"    whole data   student {student} {100 * accuracy:.2f}"]
    if any(maxima.values()):
        lines.append(
            "diagnostic, not an accuracy: maximum over the reports on test (B25), as the paper has it:"
        )
        lines += [f"    {name:<12} {interval(values)}" for name, values in maxima.items()]
    return [*lines, *_observers(experiment, store), f"images: {store.path(str(images))}"]


def _squeezed(experiment: Experiment, store: Store) -> dict[str, Any]:
    return pipeline.facts(pipeline.tasks(experiment, "squeeze")[-1], store)


def _observers(experiment: Experiment, store: Store) -> list[str]:
    """Those that label or observe, and a warning for each that is as good as guessing."""
    if "squeeze" not in pipeline.needed(experiment):
        return []
    facts = _squeezed(experiment, store)
    accuracies = facts["accuracy"] | {"ensemble": facts["ensemble"]}
    said = ", ".join(f"{name} {100 * value:.2f}" for name, value in accuracies.items())
    return [f"    observers    {said}", *(f"warning: {text}" for text in pipeline.at_chance(facts))]
