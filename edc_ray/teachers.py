"""Trained observers as one file, so that nobody trains them twice: `edc-ray teachers`.

The file is a zip, not compressed, of the squeeze artifact's own unit files (safetensors) and of card.json:
what they are, on what data they were trained, with which accuracy, and the checksum of each.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edc_ray import config, pipeline, specs
from edc_ray.artifacts import Meta, Store, Tensors, save_file
from edc_ray.artifacts.files import unpack
from edc_ray.config import LIBRARIES, ConfigError, Experiment, Runtime
from edc_ray.core import data

FORMAT, CARD = 1, "card.json"
_NOT_OURS = "is no file of `edc-ray teachers export`"


def export(experiment: Experiment, store: Store, out: str) -> list[str]:
    """Write the observers of the experiment to the file `out`; returns what to print.

    Raises:
        ConfigError: they are not in the store, or `out` is a folder or in none.
        Damaged: a file of the store is.
    """
    if os.path.isdir(out) or not os.path.isdir(os.path.dirname(os.path.abspath(out))):
        raise ConfigError("OUT", out, "must be a file in a folder that there is")
    task = pipeline.tasks(experiment, "squeeze")[-1]
    artifact = store.artifact(task.stage, task.key)
    if (manifest := artifact.manifest()) is None:
        legal = f"are not in {store.root}: `edc-ray condense` trains them (they would be {task})"
        raise ConfigError("squeeze.observers", experiment.squeeze.observers, legal)
    card = _card(experiment, task, manifest)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(CARD, json.dumps(card | {"digest": config.digest(card)}, indent=1))
        for unit, entry in card["units"].items():
            artifact.receipt(unit)  # checked; raises Damaged
            archive.writestr(entry["file"], store.get(f"{artifact.folder}/{entry['file']}") or b"")
    save_file(out, sink.getvalue())
    return [f"{out}: {len(sink.getvalue()):,} bytes", *_told(card)]


def _card(experiment: Experiment, task: pipeline.Task, manifest: dict[str, Any]) -> dict[str, Any]:
    """Without the paths of this machine."""
    changes: dict[str, Any] = {"dataset.path": None}
    if experiment.squeeze.weights not in (None, *LIBRARIES):
        changes["squeeze.weights"] = "weights"
    facts = manifest["units"]["all"]["meta"]
    return {
        "format": FORMAT,
        "key": task.key,
        "version": manifest["version"],
        "reads": manifest["reads"],
        "files": pipeline.STAGES["squeeze"].files(experiment),
        "experiment": config.dump(config.override(experiment, changes)),
        "dataset": data.fingerprint(experiment.dataset),
        "classes": list(data.listing(experiment.dataset).classes),
        "accuracy": {name: facts[name] for name in ("accuracy", "ensemble", "split", "judged")},
        "made": manifest["made"],
        "units": {
            unit: {name: entry[name] for name in ("file", "sha256", "bytes")}
            for unit, entry in manifest["units"].items()
        },
    }


def _told(card: dict[str, Any]) -> list[str]:
    found = card["accuracy"]
    where = f"on {found['split']} ({found['judged']} images)"
    lines = [f"    {name:<24} {100 * value:.2f} % {where}" for name, value in found["accuracy"].items()]
    shown = ", ".join([*card["classes"][:5], *(["..."] if len(card["classes"]) > 5 else [])])
    return [*lines, f"    classes: {len(card['classes'])} ({shown}); data {card['dataset'][:12]}"]


# --- import -------------------------------------------------------------------------------------------------


def bring(file: str, store: Store, changes: Sequence[str] = ()) -> list[str]:
    """Put the observers of a file into the store, as the artifact of the experiment that it holds; returns
    what to print. changes: to the experiment, as of --set; where the data lie here.

    Raises:
        ConfigError: the file is damaged or another one; class order, data or configuration differ.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            card = _read_card(file, archive)
            task = _task(file, card, changes)
            units = {unit: _unit(file, archive, unit, entry) for unit, entry in card["units"].items()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError("FILE", file, f"{_NOT_OURS}: {error}") from error
    wanted = {*pipeline.units(task, Runtime()), "all"}
    if set(units) != wanted:
        raise ConfigError(
            "FILE", file, f"has {', '.join(sorted(units))}; must have {', '.join(sorted(wanted))}"
        )
    if pipeline.is_hit(task, store, Runtime()):
        return [f"{task} is there already"]
    artifact = store.artifact(task.stage, task.key)
    for unit, content in units.items():
        artifact.write(unit, *content)
    pipeline.commit(task, store, Runtime())
    return [f"{task} in {store.root}", *_told(card)]


def _read_card(file: str, archive: zipfile.ZipFile) -> dict[str, Any]:
    try:
        card = dict(json.loads(archive.read(CARD)))
    except (KeyError, ValueError, TypeError):
        raise ConfigError("FILE", file, f"{_NOT_OURS}: it has no {CARD}") from None
    if card.pop("digest", None) != config.digest(card):
        raise ConfigError("FILE", file, f"has another checksum: its {CARD} is not as it was written")
    if card["format"] != FORMAT:
        raise ConfigError("FILE", file, f"has format {card['format']}; must be {FORMAT}")
    return card


def _task(file: str, card: dict[str, Any], changes: Sequence[str]) -> pipeline.Task:
    """Of the artifact, by the data that lie here."""
    experiment = config.load(Experiment, card["experiment"])
    experiment = specs.anchored(config.override(experiment, dict(specs.pair(change) for change in changes)))
    dataset = experiment.dataset
    data.check_classes(dataset, card["classes"], file)
    if (content := data.fingerprint(dataset)) != card["dataset"]:
        legal = f"has other content ({content[:12]}) than the data of {file} ({card['dataset'][:12]})"
        raise ConfigError("dataset.path", dataset.path, legal)
    ingest = pipeline.tasks(experiment, "ingest")[0]
    row, inputs = pipeline.STAGES["squeeze"], {"ingest": ingest.key}
    folder = experiment.squeeze.weights not in (None, *LIBRARIES)  # of weights that need not be here
    files = card["files"] if folder else row.files(experiment)
    if pipeline.key("squeeze", experiment, inputs, files) != card["key"]:
        legal = f"is of version {card['version']} of the stage or of another configuration or plug-in; here "
        raise ConfigError("FILE", file, f"{legal}it is version {row.version}: train them again")
    return replace(ingest, stage="squeeze", key=card["key"], inputs=(("ingest", ingest.key),))


def _unit(file: str, archive: zipfile.ZipFile, unit: str, entry: dict[str, Any]) -> tuple[Tensors, Meta]:
    """What a unit's file holds, checked."""
    try:
        content = archive.read(entry["file"])
    except (KeyError, zipfile.BadZipFile):
        content = b""
    if hashlib.sha256(content).hexdigest() != entry["sha256"] or not re.fullmatch(r"[\w=-]+", unit):
        raise ConfigError("FILE", file, f"has another checksum: {entry['file']} is not as it was written")
    try:
        return unpack(content)
    except ValueError as error:
        raise ConfigError("FILE", file, f"{entry['file']} {error}") from error
