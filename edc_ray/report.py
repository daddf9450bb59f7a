"""What a sweep leaves for people: the final table, results.parquet, best.yaml, and two pictures."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from edc_ray import config, pipeline, space
from edc_ray.artifacts import Store, pack_table
from edc_ray.claim import Claim, interval
from edc_ray.config import Experiment
from edc_ray.core import storage
from edc_ray.remarks import remarks
from edc_ray.specs import read_folder

LEADERS = 10
MAXIMUM = "maximum_over_reports_on_test"  # a fact of a student that was read at `report_epochs`
MOST_NAMES = 40  # classes whose names fit beside a picture


def open_claim(folder: str) -> Claim:
    """The claim of a finished or running sweep, from its folder or URI.

    Raises:
        ConfigError: the folder is not of a sweep. RuntimeError: no trial came to its end.
    """
    sweep, base, store, place = read_folder(folder)
    return Claim(base, sweep, store, space.read_study(place))


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
        f"best: trial {best['trial']}, val {100 * best['val']:.2f} % (standard error {error:.2f}, "
        f"{val['images']} images); trials within one standard error: {ties}",
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
    test, seeds = facts["test"], len(facts["accuracies"]["condensed"])
    judged = f"{test['split']} ({test['images']} images)"
    lines = [f"confirmed on {judged}, {seeds} new seeds, mean and 95 % interval in %:"]
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


# --- files --------------------------------------------------------------------------------------------------


def write(claim: Claim, hits: tuple[int, int] | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Print the table and write the files; returns the facts."""
    facts = claim.facts()
    say("\n".join(["", *table(facts, hits)]))
    where = f"sweeps/{claim.sweep.name}"
    files = {
        "final.json": json.dumps(facts, indent=1).encode(),
        "results.parquet": results(claim),
        "best.yaml": best_yaml(claim),
        "images.png": images_png(claim),
        "curves.png": curves_png(claim),
    }
    for name, data in files.items():
        claim.store.put(f"{where}/{name}", data)
    say(f"written to {claim.store.folder(where)}: {', '.join(files)}")
    return facts


def results(claim: Claim) -> bytes:
    """One row a trial and one a run of the confirmation; knobs and curve as JSON."""
    rows = [
        {
            "arm": "search", "trial": trial.number, "seed": None, "state": trial.state.name.lower(),
            "accuracy": trial.values[0] if trial.values else None, "split": "val",
            "params": json.dumps(trial.params),
            "curve": json.dumps(sorted(trial.intermediate_values.items())),
        }
        for trial in space.finished(claim.study)
    ]  # fmt: skip
    for name, arm in claim.arms().items():
        for experiment in arm:
            task = pipeline.tasks(experiment)[-1]
            facts = pipeline.facts(task, claim.store)
            rows.append({
                "arm": name, "trial": claim.best.number, "seed": experiment.evaluate.seeds[0],
                "state": "complete", "accuracy": facts["accuracy"], "split": facts["split"],
                "params": json.dumps(claim.best.params), "curve": json.dumps(facts["reports"]),
            })  # fmt: skip
    names = ("arm", "state", "split", "params", "curve")
    schema = pa.schema(
        [
            ("trial", pa.int64()),
            ("seed", pa.int64()),
            ("accuracy", pa.float64()),
            *((n, pa.string()) for n in names),
        ]
    )
    return pack_table(pa.Table.from_pylist(rows, schema=schema), {"sweep": claim.sweep.name})


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


def grid(images: np.ndarray, ipc: int) -> np.ndarray:
    """(classes * ipc, 3, s, s) uint8, class-major -> (height, width, 3), one row a class, with thin gaps."""
    n, c, s, _ = images.shape
    framed = np.full((n, s + 2, s + 2, c), 255, np.uint8)
    framed[:, 1:-1, 1:-1] = images.transpose(0, 2, 3, 1)
    return (
        framed.reshape(n // ipc, ipc, s + 2, s + 2, c).transpose(0, 2, 1, 3, 4).reshape(-1, ipc * (s + 2), c)
    )


def images_png(claim: Claim) -> bytes:
    """The best trial's images before and after the optimisation, one row a class."""
    best = claim.experiment(claim.best)
    pictures, tasks = {}, {task.stage: task for task in pipeline.tasks(best)}
    for stage, title in (("init", "initial"), ("recover", "condensed")):
        tensors, _ = claim.store.artifact(stage, tasks[stage].key).read("all")
        pictures[title] = grid(storage.levels(tensors["images"]).numpy(), best.init.ipc)
    plt = _pyplot()
    height, width, _ = pictures["initial"].shape
    size = (2 * max(1.6, 6 * width / height) + 0.6, 6.5)
    figure, axes = plt.subplots(1, 2, figsize=size, layout="constrained")
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
    classes = pipeline.facts(tasks["ingest"], claim.store)["classes"]
    if len(classes) <= MOST_NAMES:
        row = height / len(classes)
        axes[0].set_yticks([row * (i + 0.5) for i in range(len(classes))], labels=classes)
    return _png(figure)


def curves_png(claim: Claim) -> bytes:
    """Val accuracy along the student's training, one line a trial, the best one thick."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for trial in space.finished(claim.study):
        steps = sorted(trial.intermediate_values.items())
        x, y = [step / 10 for step, _ in steps], [100 * value for _, value in steps]
        if trial.number == claim.best.number:
            axis.plot(x, y, color="C3", linewidth=2.5, label=f"best (trial {trial.number})", zorder=3)
        else:
            axis.plot(x, y, color="0.6", linewidth=1)
    axis.set(xlabel="student's training, %", ylabel="accuracy on val, %", title=claim.sweep.name)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    return _png(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _png(figure: Any) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    _pyplot().close(figure)
    return sink.getvalue()


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
