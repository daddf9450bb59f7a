"""Ladders: a few configurations against each other, paired seed by seed, with what can be told apart.

Nothing is searched and nothing selected. The same command again goes on where it stood: what is made is in
the store.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import scipy  # loads scipy.stats, which takes a second, when it is asked for

from edc_ray import config, pipeline
from edc_ray.artifacts import Store, pack_table
from edc_ray.claim import Interval, interval
from edc_ray.config import ConfigError, Experiment, Ladder
from edc_ray.session import cluster, say, watched
from edc_ray.specs import anchored, flatten, load_ladder, under

if TYPE_CHECKING:
    from edc_ray.distributed.broker import Summary

FRESH = 500  # added to the seeds of a row that shares none
POWER = 0.8  # of the smallest difference that is called detectable


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked ladder: nothing has run and nothing is written yet."""

    ladder: Ladder
    rows: Mapping[str, Experiment]
    store: Store

    def arm(self, name: str) -> list[Experiment]:
        """The repetitions of a row; the i-th of all rows belong together."""
        first = FRESH if self.ladder.rows[name].fresh else 0
        return [pipeline.with_seed(self.rows[name], first + seed) for seed in range(self.ladder.seeds)]


def prepare(file: str, changes: Sequence[str]) -> Prepared:
    """Everything that can be refused before any compute; writes nothing.

    Raises:
        ConfigError: names the path in the file, the value and what is legal.
    """
    ladder, base = load_ladder(file, changes)
    with under("experiment"):
        pipeline.check_names(base)
    rows: dict[str, Experiment] = {}
    for name, row in ladder.rows.items():
        with under(f"rows.{name}.set"):
            rows[name] = config.override(rows[row.base] if row.base else base, dict(flatten(row.set)))
            pipeline.check(rows[name])
    if ladder.seeds > FRESH:
        raise ConfigError("seeds", ladder.seeds, f"must be <= {FRESH}")
    store = Store(ladder.runtime.store)
    store.check()
    return Prepared(ladder, {name: anchored(row) for name, row in rows.items()}, store)


def plan(ready: Prepared) -> list[str]:
    """A line a row: the repetitions that are there; runs and writes nothing."""
    lines = [f"ladder {ready.ladder.name}: {len(ready.rows)} rows, {ready.ladder.seeds} repetitions"]
    for name, row in ready.ladder.rows.items():
        there = sum(_there(experiment, ready) for experiment in ready.arm(name))
        lines.append(f"{name:<20} {there:>3} of {ready.ladder.seeds} there  {row.note}".rstrip())
    return lines


def run(ready: Prepared) -> dict[str, Any]:
    """Make what is missing, print and write the table; returns its facts.

    Raises:
        ConfigError: another process runs this ladder.
    """
    try:
        with ready.store.alone(f"ladders/{ready.ladder.name}/driver.lock"):
            return _run(ready)
    except BlockingIOError:
        raise ConfigError("name", ready.ladder.name, "another process is running this ladder") from None


def _run(ready: Prepared) -> dict[str, Any]:
    ladder, folder = ready.ladder, f"ladders/{ready.ladder.name}"
    wanted = [(name, e) for name in ladder.rows for e in ready.arm(name)]
    missing = [(name, e) for name, e in wanted if not _there(e, ready)]
    say(f"ladder {ladder.name}: {len(missing)} of {len(wanted)} evaluations to make")
    if missing:
        _make(missing, ready)
    facts = measure(ready)
    lines = table(facts, ladder)
    ready.store.put(f"{folder}/table.md", ("\n".join(lines) + "\n").encode())
    ready.store.put(f"{folder}/results.parquet", pack_table(results(facts), {}))
    say("\n".join(lines))
    return facts


def _there(experiment: Experiment, ready: Prepared) -> bool:
    return pipeline.is_hit(pipeline.tasks(experiment)[-1], ready.store, ready.ladder.runtime)


def _make(missing: Sequence[tuple[str, Experiment]], ready: Prepared) -> None:
    ended = 0

    def done(index: int, summary: "Summary") -> None:
        nonlocal ended
        ended += 1
        name, experiment = missing[index]
        accuracy = 100 * summary.accuracies[0]
        say(f"  {ended}/{len(missing)}: {name}, seed {experiment.evaluate.seeds[0]}: {accuracy:.2f} %")

    with cluster(ready.ladder.runtime):
        from edc_ray.distributed.service import start_broker

        broker = start_broker(ready.store.path(), ready.ladder.runtime, ready.ladder.name)
        with watched(broker, ready.store):
            broker.evaluate_all([experiment for _, experiment in missing], done)


# --- what it says -------------------------------------------------------------------------------------------


def measure(ready: Prepared) -> dict[str, Any]:
    """Accuracies, core-seconds and observers, read from the store; plain data, fractions and seconds."""
    store, rows = ready.store, dict[str, Any]()
    for name in ready.ladder.rows:
        tasks = [pipeline.tasks(experiment) for experiment in ready.arm(name)]
        judged = [pipeline.facts(each[-1], store) for each in tasks]
        sets = [next(task for task in each if task.stage == "recover") for each in tasks]
        rows[name] = {
            "accuracies": [each["accuracy"] for each in judged],
            "synthesis": math.fsum(pipeline.core_seconds(task, store) for task in sets) / len(sets),
            "student": math.fsum(pipeline.core_seconds(each[-1], store) for each in tasks) / len(tasks),
            "steps": judged[0]["steps"],
            "split": judged[0]["split"],
            "judged": judged[0]["judged"],
        }
    squeezed = {
        (task.stage, task.key): task
        for name in ready.ladder.rows
        for task in pipeline.tasks(ready.arm(name)[0])
        if task.stage == "squeeze"
    }
    observers = [pipeline.facts(task, store) for task in squeezed.values()]
    reads = len(store.read_lines(pipeline.READS))
    return {"rows": rows, "observers": observers, "test_reads": reads}


def differences(facts: Mapping[str, Any], ladder: Ladder) -> list[tuple[str, str, list[float]]]:
    """(row, other row, paired differences of accuracy) for each comparison of the file."""
    accuracies = {name: row["accuracies"] for name, row in facts["rows"].items()}
    return [
        (name, other, [a - b for a, b in zip(accuracies[name], accuracies[other], strict=True)])
        for name, row in ladder.rows.items()
        for other in row.against
    ]


def detectable(differences: Sequence[float]) -> float:
    """The smallest true difference that a paired t test at 5 % sees with probability POWER, given the spread
    of these differences: (t_{0.975} + t_{POWER}) s / sqrt(n).
    """
    n = len(differences)
    half = interval(differences).half
    return half * (1 + float(scipy.stats.t.ppf(POWER, n - 1)) / float(scipy.stats.t.ppf(0.975, n - 1)))


def table(facts: Mapping[str, Any], ladder: Ladder) -> list[str]:
    """Markdown: every row, then every comparison."""
    first = next(iter(facts["rows"].values()))
    lines = [
        f"{ladder.seeds} repetitions a row on {first['split']} ({first['judged']} images), "
        "mean and 95 % interval in %.",
        "",
        "| row | accuracy | paper, elsewhere | steps | core-s a set | core-s a student | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in facts["rows"].items():
        said = ladder.rows[name]
        cells = [name, _percent(interval(row["accuracies"])), _points(said.paper), row["steps"]]
        cells += [f"{row['synthesis']:.1f}", f"{row['student']:.1f}", said.note]
        lines.append(_line(*cells))
    lines += [
        "",
        f"| step | paired difference | paper, elsewhere | resolved | detectable, {100 * POWER:.0f} % power |",
        "|---|---|---|---|---|",
    ]
    for name, other, pairs in differences(facts, ladder):
        found, papers = interval(pairs), [ladder.rows[each].paper for each in (name, other)]
        step = papers[0] - papers[1] if papers[0] is not None and papers[1] is not None else None
        resolved = "yes" if abs(found.mean) > found.half else "not resolved"
        least = f"{100 * detectable(pairs):.2f}"
        lines.append(_line(f"{name} - {other}", _percent(found), _points(step), resolved, least))
    lines.append("")
    for each in facts["observers"]:
        told = ", ".join(f"{name} {100 * value:.1f}" for name, value in each["accuracy"].items())
        lines.append(f"Observers on {each['split']}: {told}; together {100 * each['ensemble']:.1f} %.")
    lines.append(f"Reads of a test split on record in this store: {facts['test_reads']}.")
    return lines


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _percent(found: Interval) -> str:
    return f"{100 * found.mean:.2f} +- {100 * found.half:.2f}"


def results(facts: Mapping[str, Any]) -> pa.Table:
    """One line a row and repetition."""
    return pa.Table.from_pylist(
        [
            {"row": name, "repetition": i, "accuracy": accuracy, "split": row["split"], "steps": row["steps"]}
            for name, row in facts["rows"].items()
            for i, accuracy in enumerate(row["accuracies"])
        ]
    )
