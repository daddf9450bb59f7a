"""The files of a report: final.json, results.parquet, best.yaml, report.html and what it shows."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import yaml

from edc_ray import config, pipeline, space
from edc_ray.artifacts import pack_table
from edc_ray.claim import Claim
from edc_ray.config import Confirm, Experiment
from edc_ray.presets import protocols
from edc_ray.report.html import page
from edc_ray.report.page import sections
from edc_ray.report.section import Rows, Section
from edc_ray.report.table import table
from edc_ray.specs import read_folder

FIRST = ("images.png", "curves.png")  # lie beside report.html, the others in report/


def open_claim(folder: str) -> Claim:
    """The claim of a finished or running sweep, from its folder or URI.

    Raises:
        ConfigError: the folder is not of a sweep. RuntimeError: no trial came to its end.
    """
    sweep, base, store, place = read_folder(folder)
    return Claim(base, sweep, store, space.read_study(place))


def write(claim: Claim, hits: tuple[int, int] | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Print the table and write the files; returns the facts."""
    facts = claim.facts()
    say("\n".join(["", *table(facts, hits)]))
    files = {
        "final.json": json.dumps(facts, indent=1).encode(),
        "results.parquet": results(claim),
        "best.yaml": best_yaml(claim),
    }
    _put(claim, files)
    written = write_page(claim, facts)
    say(f"written to {claim.store.folder(where(claim))}: {', '.join([*files, *written])}")
    return facts


def write_page(claim: Claim, facts: Mapping[str, Any], note: str = "") -> list[str]:
    """report.html, and its pictures and tables as files of their own; returns what is new in the folder."""
    made = list(sections(claim, facts, note))
    files = {"report.html": page(f"Sweep {claim.sweep.name}", made).encode(), **parts(made)}
    _put(claim, files)
    return list(dict.fromkeys(name if "/" not in name else "report/" for name in files))


def only_search(claim: Claim) -> Claim:
    """The same without its confirmation.

    Raises:
        RuntimeError: what the best trial made is not in the store any more.
    """
    found = Claim(claim.base, replace(claim.sweep, confirm=Confirm(seeds=0)), claim.store, claim.study)
    if left := found.missing():
        stages = ", ".join(stage for _, stage in left)
        raise RuntimeError(
            f"of the best trial of sweep {claim.sweep.name} there is no {stages} in {claim.store.root}: "
            "removed, or of another version of edc-ray; the same sweep command makes it again"
        )
    return found


def write_unfinished(claim: Claim, say: Callable[[str], None]) -> None:
    """report.html of a sweep that goes on, or whose confirmation does: what the search has found so far.

    Raises:
        RuntimeError: as `only_search`.
    """
    ended, budget = len(space.finished(claim.study)), claim.sweep.budget.trials
    searched = only_search(claim)
    note = f"Not finished: {ended} of {budget} trials ended, and the confirmation is to come."
    written = write_page(searched, searched.facts(), note)
    say(f"so far, written to {claim.store.folder(where(claim))}: {', '.join(written)}")


def where(claim: Claim) -> str:
    return f"sweeps/{claim.sweep.name}"


def _put(claim: Claim, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        claim.store.put(f"{where(claim)}/{name}", data)


def parts(made: Sequence[Section]) -> dict[str, bytes]:
    """File name -> bytes of every picture and table of the sections."""
    pictures = {f"{_file(name)}.png": data for each in made for name, data in each.pictures.items()}
    tables = {f"{_file(n)}.parquet": _parquet(rows) for each in made for n, rows in each.tables.items()}
    return {n if n in FIRST else f"report/{n}": data for n, data in {**pictures, **tables}.items()}


def _file(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")


def _parquet(rows: Rows) -> bytes:
    """Columns of mixed kinds, such as the values of categories, as text."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        numbers = len(kinds) < 2 or kinds <= {int, float}
        columns[name] = values if numbers else [None if v is None else str(v) for v in values]
    return pack_table(pa.table(columns), {})


def results(claim: Claim) -> bytes:
    """One row a trial and one a run of the confirmation; knobs and curve as JSON.

    Arms: of the search; the best "again" on val, with new seeds; "random_real on val" with the recipes of
    trials; the claim's; the other "students" of its condensed sets. Objectives but accuracy have columns.
    """
    costs = claim.sweep.objectives[1:]
    rows: list[dict[str, Any]] = [
        {
            "arm": "search", "trial": trial.number, "seed": None, "state": trial.state.name.lower(),
            "accuracy": trial.values[0] if trial.values else None, "split": "val",
            "params": json.dumps(trial.params),
            "curve": json.dumps(sorted(trial.intermediate_values.items())),
            **dict(zip(costs, (trial.values or [])[1:], strict=False)),
        }
        for trial in space.finished(claim.study)
    ]  # fmt: skip
    trials = {trial.number: trial for trial in claim.study.get_trials(deepcopy=False)}
    for name, number, experiment in _runs(claim):
        facts = pipeline.facts(pipeline.tasks(experiment)[-1], claim.store)
        rows.append({
            "arm": name, "trial": number, "seed": experiment.evaluate.seeds[0],
            "state": "complete", "accuracy": facts["accuracy"], "split": facts["split"],
            "params": json.dumps(trials[number].params), "curve": json.dumps(facts["reports"]),
        })  # fmt: skip
    names = ("arm", "state", "split", "params", "curve")
    schema = pa.schema(
        [
            ("trial", pa.int64()),
            ("seed", pa.int64()),
            ("accuracy", pa.float64()),
            *((n, pa.string()) for n in names),
            *((n, pa.float64()) for n in costs),
        ]
    )
    about = {"sweep": claim.sweep.name, "protocol": protocols.name_of(claim.experiment(claim.best))}
    return pack_table(pa.Table.from_pylist(rows, schema=schema), about)


def _runs(claim: Claim) -> Iterator[tuple[str, int, Experiment]]:
    """(arm, the trial whose knobs it has, run) of the confirmation."""
    for name, runs in (("again", claim.again()), ("random_real on val", claim.rivals())):
        yield from ((name, number, run) for number, each in runs.items() for run in each)
    for name, arm in claim.arms().items():
        number = claim.rival.number if name == "random_real" else claim.best.number
        yield from ((name, number, run) for run in arm)
    yield from (("students", claim.best.number, run) for each in claim.students() for run in each[1:])


def best_yaml(claim: Claim) -> bytes:
    """The best configuration, whole; runs unchanged with `edc-ray condense`."""
    head = (
        f"# Trial {claim.best.number} of sweep {claim.sweep.name}: "
        f"val accuracy {space.accuracy(claim.best):.4f}\n"
        "# edc-ray condense best.yaml\n"
    )
    data = {
        "name": f"{claim.sweep.name}-best",
        "experiment": config.dump(claim.experiment(claim.best)),
        "runtime": config.dump(claim.sweep.runtime),
    }
    return (head + yaml.safe_dump(data, sort_keys=False)).encode()
