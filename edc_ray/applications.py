"""The applications of a condensed set, each beside its baselines: arms, tables, files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edc_ray import config, evaluation, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Experiment
from edc_ray.core.applications import nas
from edc_ray.given import Given, to_json

Record = dict[str, Any]
WIDE = 16  # of a column with an interval
BASELINES = {
    "robustness": ("random_real", "all"), "nas": ("random_real", "all"),
    "continual": ("random_real", "herding"), "slimming": ("random_real", "noise"),
}  # fmt: skip
MEANING = {
    "random_real": "as many real images, a new draw for each seed, same labels and recipe",
    "all": "all training images, trained as observers are (squeeze)",
    "herding": "as many real images, led to the mean of their class in features of the first observer",
    "noise": "as many images of noise, same labels and recipe",
}


@dataclass(frozen=True, slots=True)
class Study:
    """One application. arms: name -> experiments whose seeds together are `seeds`; "condensed" is first."""

    name: str
    given: Given
    seeds: tuple[int, ...]
    arms: Mapping[str, tuple[Experiment, ...]]

    def experiments(self) -> Iterator[tuple[str, Experiment]]:
        for arm, experiments in self.arms.items():
            yield from ((arm, each) for each in experiments)


KNOWING = "the labels are those of observers that know all classes, cut to the classes seen"


def study(name: str, given: Given, final: bool) -> Study:
    """What is run, all of it checked; final: to be read on test.

    Raises:
        ConfigError: names the field, its value and what is legal.
    """
    if name not in pipeline.APPLICATIONS:
        raise config.unknown("NAME", name, pipeline.APPLICATIONS)
    (cell,) = evaluation.cells(given, (evaluation.protocols.OWN,), (), final)
    base = replace(cell.condensed, apply=replace(cell.condensed.apply, name=name))
    arms: dict[str, tuple[Experiment, ...]] = {"condensed": (base,)}
    for arm in BASELINES[name]:
        arms[arm] = tuple(_baseline(arm, base))
    for experiments in arms.values():
        pipeline.check(experiments[0])
        pipeline.check_application(experiments[0], len(pipeline.looked(base.dataset)[2]))
    return Study(name, given, base.evaluate.seeds, arms)


def _baseline(arm: str, base: Experiment) -> Iterator[Experiment]:
    if arm == "all":
        yield replace(base, apply=replace(base.apply, images="all"))
        return
    if arm == "herding":
        yield replace(base, apply=replace(base.apply, memory="herding"))
        return
    for seed in base.evaluate.seeds:
        drawn = pipeline.random_real(pipeline.with_seed(base, seed))
        noise = replace(drawn, init=replace(drawn.init, kind="noise"))
        yield noise if arm == "noise" else drawn


# --- what it says -------------------------------------------------------------------------------------------


def facts(study: Study, store: Store) -> dict[str, Any]:
    """Of a finished study, as plain data: one record a seed and measurement; accuracies are fractions."""
    records, splits = list[Record](), set()
    for arm, experiment in study.experiments():
        for task in pipeline.tasks(experiment, "apply"):
            if task.stage != "apply":
                continue
            (seed,) = task.experiment.evaluate.seeds
            for unit, found in pipeline.manifest(task, store)["units"].items():
                splits.add((found["meta"]["split"], found["meta"]["judged"]))
                records += [
                    {"arm": arm, "seed": seed, "unit": unit, "series": series, "x": x, "accuracy": accuracy}
                    for series, x, accuracy in found["meta"]["rows"]
                ]
    ((split, judged),) = splits
    notes = list(study.given.notes)
    base, row = study.arms["condensed"][0], pipeline.APPLICATIONS[study.name]
    if study.name == "continual" and base.evaluate.loss != "hard":
        notes.append(f"{KNOWING}; --set evaluate.loss=hard has none")
    return {
        "application": study.name, "set": study.given.name, "ipc": base.init.ipc,
        "student": base.evaluate.student, "split": split, "judged": judged, "seeds": list(study.seeds),
        "arms": list(study.arms), "axes": list(row.axes), "apply": config.hashed(base.apply),
        "paper": row.note, "notes": notes, "records": records,
        "test_reads": len(store.read_lines(pipeline.READS)),
    }  # fmt: skip


def values(told: Mapping[str, Any]) -> dict[tuple[str, float], dict[str, list[float]]]:
    """(series, x) -> arm -> accuracies in the order of the seeds."""
    found: dict[tuple[str, float], dict[str, list[float]]] = {}
    place = {seed: i for i, seed in enumerate(told["seeds"])}
    for record in sorted(told["records"], key=lambda record: place[record["seed"]]):
        cell = found.setdefault((record["series"], record["x"]), {})
        cell.setdefault(record["arm"], []).append(record["accuracy"])
    return found


def table(told: Mapping[str, Any]) -> list[str]:
    """Means and 95 % intervals over the seeds, the differences paired by seed, and what was compared."""
    from edc_ray.claim import interval

    if told["application"] == "nas":
        return [*_head(told), *_ranks(told), *_foot(told)]
    found, first, rest = values(told), told["arms"][0], told["arms"][1:]
    lines = _head(told)
    columns = [first, *rest, *(f"over {arm}" for arm in rest)]
    x, _ = told["axes"]
    if told["application"] == "continual":
        found |= _means(found)
    wide = max(len("series"), *(len(series) for series, _ in found))
    lines.append(
        f"{'series':<{wide}}  {x:<8}  " + "  ".join(f"{c.replace('_', ' '):<{WIDE}}" for c in columns)
    )
    for (series, at), cell in found.items():
        less = [[a - b for a, b in zip(cell[first], cell[arm], strict=True)] for arm in rest]
        shown = (interval(each) for each in (*(cell[arm] for arm in told["arms"]), *less))
        said = "  ".join(f"{str(each).partition(' (')[0]:<{WIDE}}" for each in shown)
        lines.append(
            f"{series:<{wide}}  {'' if math.isnan(at) else f'{at:g}':<{max(8, len(x))}}  {said}".rstrip()
        )
    return [*lines, *_foot(told)]


Values = dict[tuple[str, float], dict[str, list[float]]]


def _means(found: Values) -> Values:
    """Of each series over its x, seed by seed: the average incremental accuracy."""
    made: Values = {}
    for series in dict.fromkeys(name for name, _ in found):
        cells = [cell for (name, _), cell in found.items() if name == series]
        for arm in cells[0]:
            each = zip(*(cell[arm] for cell in cells), strict=True)
            mean = [sum(of_seed) / len(cells) for of_seed in each]
            made.setdefault((f"{series}, mean", math.nan), {})[arm] = mean
    return made


def ranks(told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of `nas`: arm -> how well it ranks the networks, beside the means over the seeds of `all`.

    rho: of its means over the seeds; low, high: 95 % by a bootstrap of the networks; seeds: rho of each seed
    alone; chosen: the network that it ranks first, and the accuracy of that one trained on all. `all` is
    compared with itself, each seed with the mean of the others: what a perfect set could reach.
    """
    found = {series: cell for (series, _), cell in values(told).items()}
    names, count = list(found), len(told["seeds"])
    mean = {arm: [sum(found[n][arm]) / count for n in names] for arm in told["arms"]}
    truth = mean["all"]
    made: dict[str, dict[str, Any]] = {}
    for arm in told["arms"]:
        each = [[found[n][arm][i] for n in names] for i in range(count)]
        if arm == "all":
            less = [
                [(count * t - e) / max(1, count - 1) for t, e in zip(truth, one, strict=True)] for one in each
            ]
            made[arm] = {
                "seeds": [nas.spearman(*pair) for pair in zip(each, less, strict=True)] * (count > 1)
            }
            continue
        ours = mean[arm]
        low, high = nas.bootstrap(
            lambda ids, ours=ours: nas.spearman([ours[i] for i in ids], [truth[i] for i in ids]),  # type: ignore[misc]
            len(names),
        )
        best = max(range(len(names)), key=lambda i: ours[i])
        made[arm] = {
            "rho": nas.spearman(ours, truth), "low": low, "high": high,
            "seeds": [nas.spearman(one, truth) for one in each], "chosen": [names[best], truth[best]],
        }  # fmt: skip
    return made


def _ranks(told: Mapping[str, Any]) -> list[str]:
    """The correlations and, by the rank of `all`, the accuracies of the networks."""
    from edc_ray.claim import interval

    made, found = ranks(told), values(told)
    lines = [
        f"rank correlation (Spearman) of {len(found)} networks with their ranks on all; 95 % over networks"
    ]
    for arm, said in made.items():
        if arm == "all":
            if said["seeds"]:
                lines.append(
                    f"  all           {_signed(said['seeds'])}, each seed with the mean of the others"
                )
            continue
        lines.append(
            f"  {arm.replace('_', ' '):<12}  {said['rho']:.3f} [{said['low']:.3f}, {said['high']:.3f}]; "
            f"one seed alone: {_signed(said['seeds'])}; it chooses {said['chosen'][0]}, "
            f"{100 * said['chosen'][1]:.2f} % on all"
        )
    less = [a - b for a, b in zip(made["condensed"]["seeds"], made["random_real"]["seeds"], strict=True)]
    lines.append(f"  condensed over random real, one seed alone, paired: {_signed(less)}")
    wide = max(len(series) for series, _ in found)
    lines.append(
        f"{'network':<{wide}}  " + "  ".join(f"{arm.replace('_', ' '):<{WIDE}}" for arm in told["arms"])
    )
    for (name, _), cell in sorted(found.items(), key=lambda item: -sum(item[1]["all"])):
        said = (str(interval(cell[arm])).partition(" (")[0] for arm in told["arms"])
        lines.append(f"{name:<{wide}}  " + "  ".join(f"{text:<{WIDE}}" for text in said).rstrip())
    return lines


def _signed(numbers: Sequence[float]) -> str:
    """Mean and half width of correlations, which are no percentages."""
    from edc_ray.claim import interval

    found = interval(numbers)
    return f"{found.mean:.3f}" + (f" +- {found.half:.3f}" if found.n > 1 else "")


def _head(told: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, told["seeds"]))
    return [
        f"{told['application']} of {told['set']} ({told['ipc']} images a class), student {told['student']}",
        f"accuracy on {told['split']} ({told['judged']} images) in %, mean and 95 % interval, seeds {seeds};",
        '"over": condensed minus that, paired by seed',
        *(f"{arm.replace('_', ' ')}: {MEANING[arm]}" for arm in told["arms"] if arm in MEANING),
    ]


def _foot(told: Mapping[str, Any]) -> list[str]:
    return [
        *(f"note: {note}" for note in told["notes"]),
        f"the paper: {told['paper']}",
        f"reads of a test split on record in this store: {told['test_reads']}",
    ]


def write(told: Mapping[str, Any], files: Mapping[str, bytes], store: Store) -> list[str]:
    """applications/NAME-DIGEST.json in the store, and these files by their suffix; returns where they are.

    Named by what was compared.
    """
    compared = [told[name] for name in ("set", "split", "seeds", "student", "apply", "arms")]
    stem = f"applications/{told['application']}-{config.digest(compared)}"
    written = {"json": to_json(dict(told)), **files}
    for suffix, data in written.items():
        store.put(f"{stem}.{suffix}", data)
    return [store.path(f"{stem}.{suffix}") for suffix in written]


def sequence(told: Mapping[str, Any], series: str) -> Sequence[float]:
    """The x of a series, in order."""
    return sorted({x for name, x in values(told) if name == series})
