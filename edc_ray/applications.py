"""The applications of a condensed set, each beside its baselines: arms, tables, files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edc_ray import config, evaluation, pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Apply, ConfigError, Experiment
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


KNOWING = "the labels are those of observers that know all classes, cut to the classes seen"


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
    trained = {"nas": None, "slimming": study.arms["condensed"][0].apply.network}
    base, row = study.arms["condensed"][0], pipeline.APPLICATIONS[study.name]
    if study.name == "continual" and base.evaluate.loss != "hard":
        notes.append(f"{KNOWING}; --set evaluate.loss=hard has none")
    return {
        "application": study.name, "set": study.given.name, "recover": study.given.recover.key,
        "ipc": base.init.ipc,
        "network": trained.get(study.name, base.evaluate.student), "split": split, "judged": judged,
        "seeds": list(study.seeds),
        "arms": list(study.arms), "axes": list(row.axes), "apply": config.hashed(base.apply),
        "paper": row.note, "notes": notes, "records": records,
        "test_reads": len(store.read_lines(pipeline.READS)),
    }  # fmt: skip


def stem(study: Study) -> str:
    """Of its files in the store: named by what was compared, however the set was named."""
    keys = [[task.key for task in pipeline.tasks(each, "apply")] for _, each in study.experiments()]
    return f"applications/{study.name}-{config.digest(keys)}"


def write(study: Study, told: Mapping[str, Any], files: Mapping[str, bytes], store: Store) -> list[str]:
    """applications/NAME-DIGEST.json in the store, and these files by their suffix; returns where they are."""
    written = {"json": to_json(dict(told)), **files}
    for suffix, data in written.items():
        store.put(f"{stem(study)}.{suffix}", data)
    return [store.path(f"{stem(study)}.{suffix}") for suffix in written]
