"""One condensed set under several protocols and students, with random real images beside it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edc_ray import config, ddranking, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Experiment
from edc_ray.core import models
from edc_ray.given import Given, to_json
from edc_ray.presets import protocols

SEEDS = (0, 1, 2)  # where the set's recipe has only one
SMALL = 64  # px; networks for larger images are those of torchvision
ARMS = ("condensed", "random_real")


@dataclass(frozen=True, slots=True)
class Cell:
    """One student under one protocol. random_real: as many fresh real images, a new draw for each seed."""

    protocol: str
    student: str
    labels: tuple[str, ...]
    condensed: Experiment
    random_real: tuple[Experiment, ...]

    def experiments(self) -> Iterator[tuple[str, Experiment]]:
        yield "condensed", self.condensed
        yield from (("random_real", each) for each in self.random_real)


def network(name: str, size_px: int) -> str:
    """A student by its short name: a row of MODELS for small images, torchvision's for others."""
    if "/" in name or size_px <= SMALL:
        return name
    try:
        models.check_name("--students", f"torchvision/{name}")
    except ConfigError:
        return name
    return f"torchvision/{name}"


def cells(given: Given, names: Sequence[str], students: Sequence[str], final: bool) -> list[Cell]:
    """Every pair, checked before anything runs; names: rows of PROTOCOLS, or "own".

    Raises:
        ConfigError: an unknown name, or nothing is held out and this is not to be final.
    """
    base = given.experiment
    if not final and base.split.val == 0:
        legal = (
            "nothing is held out, so only test can judge: --final reads it, and logs that; or hold some out "
        )
        raise ConfigError(
            "split.val", 0, legal + "with --set split.val=0.1, which condenses again without it"
        )
    found = []
    for name in names:
        for student in students or [given.over.get("evaluate.student", base.evaluate.student)]:
            judged = _judged(given, name, network(student, base.dataset.size_px), final)
            found.append(_cell(_label(given, name, judged), judged))
    return found


def _judged(given: Given, name: str, student: str, final: bool) -> Experiment:
    """Checked. SRe2L's labels of batch statistics need a BatchNorm; a teacher without one keeps its own."""
    base = given.experiment if name == protocols.OWN else protocols.apply(name, given.experiment)
    seeds = base.evaluate.seeds if len(base.evaluate.seeds) > 1 else SEEDS
    judged = config.override(base, {"evaluate.seeds": seeds, **given.over, "evaluate.student": student})
    judged = pipeline.refitted(judged) if final else judged
    try:
        pipeline.check(judged)
    except ConfigError as error:
        if error.path != "relabel.teacher_bn" or "relabel.teacher_bn" in given.over:
            raise
        judged = config.override(judged, {"relabel.teacher_bn": "running"})
        pipeline.check(judged)
    return judged


def _label(given: Given, name: str, judged: Experiment) -> str:
    """The protocol's name and, in brackets, what is not its own: what --set changed."""
    if name == protocols.OWN:
        return protocols.name_of(judged)
    plain, found = protocols.apply(name, given.experiment), []
    for path in ("relabel", "evaluate"):
        ours, theirs = (config.dump(getattr(each, path)) for each in (judged, plain))
        free = {"select", *(kept.partition(".")[2] for kept in protocols.KEPT)}
        found += [f"{f}={value}" for f, value in ours.items() if f not in free and value != theirs[f]]
    return f"{name} ({', '.join(found)})" if found else name


def _cell(protocol: str, judged: Experiment) -> Cell:
    random = (pipeline.random_real(pipeline.with_seed(judged, seed)) for seed in judged.evaluate.seeds)
    return Cell(protocol, judged.evaluate.student, protocols.labellers(judged), judged, tuple(random))


# --- who knew the student -----------------------------------------------------------------------------------


def family(network: str) -> str:
    """A network without its library and its width or depth in letters: convnet_w128 is a convnet."""
    return re.sub(r"(_(half|w\d+|d\d+|x\d+_\d+))+$", "", network.rpartition("/")[2])


def mark(student: str, synthesis: Sequence[str] | None, labels: Sequence[str]) -> str:
    """Whether networks of the student's family made the images or their labels: "unseen" where neither."""
    kin = family(student)
    parts = ["in synthesis"] * (kin in map(family, synthesis or ()))
    parts += ["in labels"] * (kin in map(family, labels))
    if synthesis is None:
        parts.append("synthesis unknown")
    return ", ".join(parts) or "unseen"


# --- what it says -------------------------------------------------------------------------------------------


def facts(given: Given, found: Sequence[Cell], store: Store) -> dict[str, Any]:
    """Of finished cells, as plain data: accuracies are fractions, one a seed."""
    rows, splits = [], set()
    for cell in found:
        read = {arm: list[float]() for arm in ARMS}
        for arm, experiment in cell.experiments():
            for task in pipeline.tasks(experiment):
                if task.stage == "evaluate":
                    told = pipeline.facts(task, store)
                    read[arm].append(told["accuracy"])
                    splits.add((told["split"], told["judged"]))
        rows.append(
            {
                "protocol": cell.protocol, "student": cell.student, "labels": list(cell.labels),
                "seen": mark(cell.student, given.synthesis, cell.labels),
                "seeds": list(cell.condensed.evaluate.seeds), **read,
            }
        )  # fmt: skip
    ((split, judged),) = splits
    images = pipeline.facts(pipeline.tasks(found[0].condensed, "recover")[-1], store)["images"]
    synthesis = None if given.synthesis is None else list(given.synthesis)
    return {
        "set": given.name, "images": images, "ipc": given.experiment.init.ipc, "split": split,
        "judged": judged, "synthesis": synthesis, "notes": list(given.notes), "rows": rows,
        "test_reads": len(store.read_lines(pipeline.READS)),
    }  # fmt: skip


def table(told: dict[str, Any]) -> list[str]:
    """Every number with its protocol, split, seeds and baseline; then the claim of generalisation."""
    from edc_ray.claim import interval

    lines = [
        f"{told['set']}: {told['images']} images ({told['ipc']} a class), "
        f"made with {networks(told['synthesis'])}",
        f"accuracy on {told['split']} ({told['judged']} images) in %, mean and 95 % interval of students;",
        "random real: as many images, a new draw for each seed, same labels and recipe; "
        "difference: paired by seed",
    ]
    wide = max(len(row["protocol"]) for row in told["rows"])
    long = max(len(row["student"]) for row in told["rows"])
    columns = "".join(f"  {name:<22}" for name in ("condensed", "random real", "difference"))
    lines.append(f"{'protocol':<{wide}}  {'student':<{long}}{columns}  seeds, seen")
    for row in told["rows"]:
        ours, theirs = row["condensed"], row["random_real"]
        said = "  ".join(f"{interval(values)!s:<22}" for values in (ours, theirs, _gains(row)))
        seeds = ",".join(map(str, row["seeds"]))
        lines.append(f"{row['protocol']:<{wide}}  {row['student']:<{long}}  {said}  {seeds}; {row['seen']}")
    lines += [f"labels under {name}: {who}" for name, who in _labels(told).items()]
    lines += _claim(told)
    lines += [f"note: {note}" for note in told["notes"]]
    lines += score_lines(told)
    return [*lines, f"reads of a test split on record in this store: {told['test_reads']}"]


def networks(names: Sequence[str] | None) -> str:
    """Those of the synthesis, for people."""
    return "unknown networks" if names is None else ", ".join(names) or "no network"


def _gains(row: dict[str, Any]) -> list[float]:
    """Condensed minus random real, seed by seed."""
    return [a - b for a, b in zip(row["condensed"], row["random_real"], strict=True)]


def _labels(told: dict[str, Any]) -> dict[str, str]:
    rows = told["rows"]
    return {row["protocol"]: ", ".join(row["labels"]) or "the classes of the images" for row in rows}


def _claim(told: dict[str, Any]) -> list[str]:
    """By protocol, over unseen students only: the mean of their differences, with its interval over seeds."""
    from edc_ray.claim import interval

    lines = []
    for name in dict.fromkeys(row["protocol"] for row in told["rows"]):
        rows = [row for row in told["rows"] if row["protocol"] == name and row["seen"] == "unseen"]
        if not rows:
            lines.append(f"generalisation under {name}: no claim, as no student is known to be unseen")
            continue
        gains = [_gains(row) for row in rows]
        each = interval([sum(of_seed) / len(rows) for of_seed in zip(*gains, strict=True)])
        who = ", ".join(row["student"] for row in rows)
        lines.append(f"generalisation under {name}, unseen only ({who}): {each} over random real")
    return lines


def how(experiment: Experiment, store: Store) -> list[str]:
    """What an accuracy of `condense` must be read with: protocol, seeds, and the reads of test on record."""
    seeds = ", ".join(map(str, experiment.evaluate.seeds))
    lines = [f"protocol: {protocols.name_of(experiment)}; students of seeds {seeds}"]
    if experiment.split.val == 0:
        reads = len(store.read_lines(pipeline.READS))
        lines.append(f"test was read, as split.val is 0; reads of a test split on record here: {reads}")
    return lines


def write(told: dict[str, Any], store: Store) -> str:
    """evaluations/DIGEST.json in the store, named by what was compared; returns where it is."""
    rows = [[row["protocol"], row["student"], row["seeds"]] for row in told["rows"]]
    name = f"evaluations/{config.digest([told['set'], told['split'], rows])}.json"
    store.put(name, to_json(told))
    return store.path(name)


# --- the scores of DD-Ranking -------------------------------------------------------------------------------


def without_views(experiment: Experiment) -> Experiment:
    """The same recipe without augmentation: whole images, no flips, nothing mixed."""
    plain = replace(experiment.relabel, randaugment_ops=0, crop_min=1.0, flip=False, mix="none")
    return replace(experiment, relabel=plain)


def with_hard_labels(experiment: Experiment) -> Experiment:
    """The same recipe on the classes of the images, without augmentation."""
    hard = replace(experiment.evaluate, loss="hard", ce_weight=0.0)
    return without_views(replace(experiment, evaluate=hard))


def score_arms(cell: Cell) -> dict[str, tuple[Experiment, ...]]:
    """What the scores need beside the cell itself; `ddranking` says what each is.

    Raises:
        ConfigError: nothing says how the student is trained on all real images.
    """
    if (whole := pipeline.whole(cell.condensed)) is None:
        legal = "has no recipe for all real images, which the scores need: choose one of squeeze.observers"
        raise ConfigError("--students", cell.student, legal)
    plain = tuple(without_views(each) for each in cell.random_real)
    return {
        "full_hard": (whole,), "hard": (with_hard_labels(cell.condensed),),
        "plain": (without_views(cell.condensed),), "random_plain": plain,
    }  # fmt: skip


def scored(row: Mapping[str, Any], cell: Cell, store: Store) -> dict[str, Any]:
    """The eight accuracies, one a seed (one network saw all the images), and the two scores of each seed."""
    arms = score_arms(cell)
    full = pipeline.facts(pipeline.tasks(arms.pop("full_hard")[0], "squeeze")[-1], store)["accuracy"]
    found = {"soft": row["condensed"], "random_soft": row["random_real"]}
    found["full_hard"] = [full[cell.student]] * len(row["seeds"])
    for name, experiments in arms.items():
        tasks = [task for each in experiments for task in pipeline.tasks(each) if task.stage == "evaluate"]
        found[name] = [pipeline.facts(task, store)["accuracy"] for task in tasks]
    label = [
        ddranking.label_robust(*each)
        for each in zip(*(found[name] for name in ddranking.LABEL_ARMS), strict=True)
    ]
    augmented = [
        ddranking.augmentation_robust(*each)
        for each in zip(*(found[name] for name in ddranking.AUGMENTATION_ARMS), strict=True)
    ]
    return {
        "accuracies": found, "hlr": [one.hlr for one in label], "ior": [one.ior for one in label],
        "lrs": [one.lrs for one in label], "ars": augmented,
    }  # fmt: skip


def score_lines(told: dict[str, Any]) -> list[str]:
    """Of rows with scores: each of them in per cent, over the seeds."""
    from edc_ray.claim import interval

    lines = []
    for row in told["rows"]:
        if "scores" in row:
            said = ", ".join(
                f"{n.upper()} {interval(row['scores'][n])}" for n in ("hlr", "ior", "lrs", "ars")
            )
            lines.append(f"DD-Ranking, {row['protocol']}, {row['student']}, {told['split']}: {said}")
    return lines
