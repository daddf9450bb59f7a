"""The applications of a condensed set, each beside its baselines: arms, tables, files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edc_ray import config, evaluation, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Apply, ConfigError, Experiment
from edc_ray.core.applications import nas
from edc_ray.given import Given, to_json
from edc_ray.presets import protocols

Record = dict[str, Any]
BASELINES = {
    "robustness": ("random_real", "all"), "nas": ("random_real", "all"),
    "continual": ("random_real", "herding"), "slimming": ("random_real", "noise"),
}  # fmt: skip


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


KNOWING = "herding chooses by features of an observer that knows all classes"
CUT = "the labels are those of observers that know all classes, cut to the classes seen"


def study(name: str, given: Given, final: bool) -> Study:
    """What is run, all of it checked; final: to be read on test.

    Raises:
        ConfigError: names the field, its value and what is legal.
    """
    if name not in pipeline.APPLICATIONS:
        raise config.unknown("NAME", name, pipeline.APPLICATIONS)
    _check_arms(name, given.experiment.apply)
    (cell,) = evaluation.cells(given, (protocols.OWN,), (), final)
    base = replace(cell.condensed, apply=replace(cell.condensed.apply, name=name))
    arms: dict[str, tuple[Experiment, ...]] = {"condensed": (base,)}
    for arm in BASELINES[name]:
        arms[arm] = tuple(_baseline(arm, base))
    for experiments in arms.values():
        pipeline.check(experiments[0])
        pipeline.check_application(experiments[0], len(pipeline.looked(base.dataset)[2]))
    return Study(name, given, base.evaluate.seeds, arms)


def _check_arms(name: str, cfg: Apply) -> None:
    """Refuse what the arms differ in: set for all of them, the set would be compared with itself."""
    plain = Apply()
    for field in ("images", "memory"):
        if getattr(cfg, field) != getattr(plain, field):
            legal = f"is set by the arms of the comparison; leave it at {getattr(plain, field)}"
            raise ConfigError(f"apply.{field}", getattr(cfg, field), legal)
    if cfg.name not in (name, plain.name):
        raise ConfigError("apply.name", cfg.name, f"is set by NAME, which is {name}")


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
    found = list(_units(study, store))
    ((split, judged),) = {(meta["split"], meta["judged"]) for *_, meta in found}
    base, row = study.arms["condensed"][0], pipeline.APPLICATIONS[study.name]
    trained = {"nas": None, "slimming": base.apply.network}
    told: dict[str, Any] = {
        "application": study.name, "set": study.given.name, "recover": study.given.recover.key,
        "ipc": base.init.ipc,
        "network": trained.get(study.name, base.evaluate.student), "split": split, "judged": judged,
        "seeds": list(study.seeds),
        "arms": list(study.arms), "axes": list(row.axes), "apply": config.hashed(base.apply),
        "paper": row.note, "notes": [*study.given.notes, *_notes(study.name, base)],
        "records": [
            {"arm": arm, "seed": seed, "unit": unit, "series": series, "x": x, "accuracy": accuracy}
            for arm, seed, unit, meta in found for series, x, accuracy in meta["rows"]
        ],
        "test_reads": len(store.read_lines(pipeline.READS)),
    }  # fmt: skip
    if study.name == "slimming":
        told["sizes"] = _sizes([meta for arm, *_, meta in found if arm == "condensed"])
    if study.name == "nas":
        each: dict[str, dict[str, list[float]]] = {}
        for record in told["records"]:  # of each arm in the order of the seeds
            each.setdefault(record["series"], {}).setdefault(record["arm"], []).append(record["accuracy"])
        told["ranks"] = nas.ranks(each)
    return told


def _units(study: Study, store: Store) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """(arm, seed, unit, what it says) of all that was made."""
    for arm, experiment in study.experiments():
        for task in pipeline.tasks(experiment, "apply"):
            if task.stage == "apply":
                (seed,) = task.experiment.evaluate.seeds
                for unit, found in pipeline.manifest(task, store)["units"].items():
                    yield arm, seed, unit, found["meta"]


def _notes(name: str, base: Experiment) -> list[str]:
    if name != "continual":
        return []
    return [KNOWING, *[f"{CUT}; --set evaluate.loss=hard has none"] * (base.evaluate.loss != "hard")]


def _sizes(found: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Of the slim networks, by their share: channels, alike for all seeds; parameters, one number a seed."""
    made: dict[float, Record] = {}
    for meta in sorted(found, key=lambda meta: meta["rows"][0][1]):
        kept = meta["rows"][0][1]
        made.setdefault(kept, {"kept": kept, "channels": meta["channels"], "parameters": []})
        made[kept]["parameters"].append(meta["parameters"])
    return list(made.values())


def stem(study: Study) -> str:
    """Of its files in the store: named by what was compared, however the set was named."""
    keys = [[task.key for task in pipeline.tasks(each, "apply")] for _, each in study.experiments()]
    return f"applications/{study.name}-{config.digest(keys)}"


def write(study: Study, told: Mapping[str, Any], files: Mapping[str, bytes], store: Store) -> list[str]:
    """applications/NAME-DIGEST.json in the store, and these files by their suffix; returns where they are."""
    parts = {"json": to_json(dict(told)), **files}
    written = {f"{stem(study)}.{suffix}": data for suffix, data in parts.items()}
    for name, data in written.items():
        store.put(name, data)
    return list(map(store.path, written))
