"""A condensed set for people who do not have this package: images without loss, a card, and checksums."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import yaml
from torch import Tensor

from edc_ray import config, ddranking, evaluation, given, pipeline
from edc_ray.artifacts import Store, pack_pt, pack_table, save_file
from edc_ray.config import ConfigError, Experiment
from edc_ray.core import models, storage
from edc_ray.given import CARD, Given, pngs, to_json
from edc_ray.presets import protocols

LICENCES = {
    "digits": "Optical Recognition of Handwritten Digits (UCI, by way of scikit-learn): CC BY 4.0",
    "cifar10": "CIFAR-10 states no licence; cite A. Krizhevsky, 2009",
    "cifar100": "CIFAR-100 states no licence; cite A. Krizhevsky, 2009",
    "tiny_imagenet": "images of ImageNet: its terms allow non-commercial research and education only",
    "imagenet_1k": "images of ImageNet: its terms allow non-commercial research and education only",
    "imagenet_10": "images of ImageNet: its terms allow non-commercial research and education only",
}
SUMS = "SHA256SUMS"
UNKNOWN = "of the images that it was made from: ask whoever owns those"


@dataclass(frozen=True, slots=True)
class Set:
    """What is exported. images: as stored, levels or half floats in [0, 1], in class order."""

    given: Given
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    @property
    def levels(self) -> Tensor:
        return storage.levels(self.images)

    @property
    def experiment(self) -> Experiment:
        return self.given.experiment


Files = Iterator[tuple[str, bytes]]  # name in the folder, content


def opened(found: Given) -> Set:
    """Of a finished set. Raises ConfigError as `given.content`."""
    found = replace(found, experiment=config.override(found.experiment, found.over))
    return Set(found, *given.content(found))


# --- formats ------------------------------------------------------------------------------------------------


def image_folder(found: Set, store: Store) -> Files:
    """CLASS/NUMBER.png; classes by name, or by number where a name is no name of a folder."""
    plain = all(name and name[0] != "." and "/" not in name for name in found.classes)
    yield from pngs(found.levels, found.labels, found.classes if plain else None)


def parquet(found: Set, store: Store) -> Files:
    """images.parquet: the columns `image` (PNG) and `label`, as `dataset.name: parquet` reads them."""
    columns = {
        "image": pa.array([png for _, png in pngs(found.levels, found.labels, None)], pa.binary()),
        "label": pa.array(found.labels.tolist(), pa.int32()),
    }
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps(found.classes)})
    yield "images.parquet", pack_table(table, {})


def tensors(found: Set, store: Store) -> Files:
    """images.pt: a dictionary with images as they are stored, labels (int64) and classes."""
    content = {"images": found.images, "labels": found.labels, "classes": list(found.classes)}
    yield "images.pt", pack_pt(content)


def dd_ranking(found: Set, store: Store) -> Files:
    """images.pt (normalised), an image folder, the teachers' weights, settings.yaml: docs/ddranking.md."""
    exp, teachers = found.experiment, list[str]()
    name, pixels = exp.dataset.name, exp.dataset.normalization
    yield "images.pt", pack_pt(ddranking.images(found.levels, pixels))
    for place, png in pngs(found.levels, found.labels, None):
        yield f"images/{place}", png
    artifact = store.artifact("squeeze", pipeline.tasks(exp, "squeeze")[-1].key)
    for network in protocols.labellers(exp):
        state = artifact.read(pipeline.unit_of(network))[0]
        names = models.skeleton(network, len(found.classes), exp.dataset.size_px).state_dict()
        model = {name: state[f"model.{name}"] for name in names}  # a file has them in another order
        content = pack_pt(ddranking.weights(network, model, pixels))
        teachers.append(ddranking.MODELS[network])
        yield f"teachers/{ddranking.NAMES.get(name, name)}/{teachers[-1]}/ckpt_best.pt", content
    recipe = config.dump(exp.relabel) | config.dump(exp.evaluate)
    settings = ddranking.settings(exp.dataset, exp.init.ipc, exp.evaluate.student, teachers, recipe)
    yield "settings.yaml", yaml.safe_dump(settings, sort_keys=False).encode()


FORMATS: dict[str, Callable[[Set, Store], Files]] = {
    "image_folder": image_folder, "parquet": parquet, "pt": tensors, "ddranking": dd_ranking,
}  # fmt: skip


# --- the card -----------------------------------------------------------------------------------------------


def card(found: Set, form: str, store: Store) -> dict[str, Any]:
    """How the set was made and what is known of it, as plain data; without the files' checksums."""
    exp, task = found.experiment, found.given.recover
    manifest, synthesis = pipeline.manifest(task, store), found.given.synthesis
    rounded = form != "pt" and found.images.is_floating_point()
    return {
        "set": found.given.name, "format": form, "made_by": "edc_ray", "artifact": str(task),
        "version": manifest["version"], "made": manifest["made"],
        "dataset": exp.dataset.name, "classes": list(found.classes), "ipc": exp.init.ipc,
        "images": len(found.images), "size_px": exp.dataset.size_px,
        "image_bytes": pipeline.facts(task, store)["bytes"],
        "lossless": not rounded, "held_out_for_val": exp.split.val,
        "init": exp.init.kind, "iterations": exp.recover.iterations,
        "synthesis": None if synthesis is None else list(synthesis),
        "seeds": {"experiment": exp.seed, "init": exp.init.seed, "evaluate": list(exp.evaluate.seeds)},
        "protocol": protocols.name_of(exp), "labels": list(protocols.labellers(exp)),
        "accuracy": known(found.given, store),
        "licence": LICENCES.get(exp.dataset.name, UNKNOWN), "experiment": config.dump(exp),
    }  # fmt: skip


def known(found: Given, store: Store) -> dict[str, Any] | None:
    """What the set's own recipe gave, and random real images, where both have been judged."""
    told: dict[str, Any] = {}
    arms = pipeline.arms(found.experiment)
    for name in ("condensed", "random_real"):
        tasks = [
            task for task in pipeline.tasks(arms.get(name, found.experiment)) if task.stage == "evaluate"
        ]
        if not all(pipeline.is_hit(task, store, found.runtime) for task in tasks):
            return None
        read = [pipeline.facts(task, store) for task in tasks]
        told |= {name: [one["accuracy"] for one in read], "split": read[0]["split"]}
    cfg = found.experiment.evaluate
    recipe = protocols.name_of(found.experiment)
    return told | {"student": cfg.student, "seeds": list(cfg.seeds), "protocol": recipe}


def readme(about: dict[str, Any]) -> str:
    """The card for people. about: as of `card`, with the checksums."""
    name, made = about["dataset"], evaluation.networks(about["synthesis"])
    lines = [
        f"# {about['images']} condensed images of {name}",
        "",
        f"{about['ipc']} a class, {len(about['classes'])} classes, {about['size_px']} px, "
        f"{about['image_bytes']:,} bytes as stored.",
        "",
        f"- made by {about['made_by']} ({about['artifact']}, {about['made']['at']}) from {about['set']}",
        f"- method: start {about['init']}, {about['iterations']} iterations, statistics of {made}",
        f"- protocol of its labels and students: {about['protocol']}; who labels: "
        f"{', '.join(about['labels']) or 'nobody (hard labels)'}",
        f"- seeds: {json.dumps(about['seeds'])}",
        f"- accuracy: {_accuracy(about['accuracy'])}",
        f"- held out of everything for val: {about['held_out_for_val']:g} of the training images",
        f"- images without loss: {'yes' if about['lossless'] else 'no, half floats rounded to levels'}",
        f"- licence: {about['licence']}",
        "",
        f"- files: {about['files']}, {about['file_bytes']:,} bytes; `sha256sum -c {SUMS}` checks them",
        "",
        f"To judge it: `edc-ray evaluate FOLDER --protocol all`; {CARD} has the whole configuration.",
    ]
    return "\n".join([*lines, ""])


def _accuracy(told: dict[str, Any] | None) -> str:
    if told is None:
        return "not read yet in the store that this is from"
    from edc_ray.claim import interval

    ours, theirs = (str(interval(told[name])) for name in evaluation.ARMS)
    about = f"protocol {told['protocol']}, student {told['student']}, seeds {told['seeds']}"
    return f"{ours} % on {told['split']}, random real images with the same labels {theirs} % ({about})"


def write(found: Set, form: str, out: str, store: Store) -> dict[str, Any]:
    """The files, README.md and card.json in a new folder; returns the card.

    Raises:
        ConfigError: no such format, or the folder is there already.
    """
    if form not in FORMATS:
        raise config.unknown("--format", form, FORMATS)
    if os.path.lexists(out):
        raise ConfigError("--out", out, "is there already: name a new folder")
    about, sums = card(found, form, store) | {"files": 0, "file_bytes": 0}, list[str]()
    for name, content in FORMATS[form](found, store):
        save_file(os.path.join(out, name), content)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
        about |= {"files": len(sums), "file_bytes": about["file_bytes"] + len(content)}
    save_file(os.path.join(out, SUMS), "".join(sums).encode())
    save_file(os.path.join(out, "README.md"), readme(about).encode())
    save_file(os.path.join(out, CARD), to_json(about))  # last: with it the folder is whole
    return about
