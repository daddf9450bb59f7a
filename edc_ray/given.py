"""A condensed set, wherever it is: a sweep's winner, a preset or file, an artifact, or somebody's images."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from edc_ray import config, pipeline, presets, specs
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Experiment, Runtime, Sweep
from edc_ray.core import data, init, storage

CARD = "card.json"
INSIDE = {
    "image_folder": "",
    "parquet": "images.parquet",
    "pt": "images.pt",
    "ddranking": "images",
}  # the images
VAL = 0.1  # held out for a set that is read in, where nothing else is said
JUDGING = ("relabel", "evaluate")  # sections of --set that go over the protocol's


@dataclass(frozen=True, slots=True)
class Given:
    """The set as an experiment that makes it, or reads it in (`init.kind: given`), and how it is run.

    over: fields of relabel and evaluate that the user set, over every protocol. synthesis: networks that the
    images were made with; None = nobody says. notes: what a reader of its numbers must know.
    """

    name: str
    experiment: Experiment
    runtime: Runtime
    over: Mapping[str, Any]
    synthesis: tuple[str, ...] | None
    notes: tuple[str, ...] = ()

    @property
    def recover(self) -> pipeline.Task:
        """The artifact with its images."""
        return pipeline.tasks(self.experiment, "recover")[-1]


def open_set(target: str, dataset: str | None, changes: Sequence[str], final: bool = False) -> Given:
    """What `edc-ray evaluate` and `export` are given, with `--set`; final: to be judged on test.

    A set that is made here is made again on all training images to be judged on test; one that is there is
    judged as it is, by observers that saw all of them.

    Raises:
        ConfigError: there is no such thing, or nothing is held out to judge it on.
    """
    found = _opened(target, dataset, changes, final)
    return replace(found, experiment=specs.anchored(found.experiment))  # workers may stand in another folder


def _opened(target: str, dataset: str | None, changes: Sequence[str], final: bool) -> Given:
    own, over = _split(changes)
    known = Path(target).suffix in (".yaml", ".yml") or not Path(target).exists()
    if known and "://" not in target:
        sweep, base = (
            specs.load_file(target, own) if Path(target).suffix in (".yaml", ".yml") else _preset(target, own)
        )
        return _made(target, base, sweep.runtime, over, final)
    if (artifact := Path(target)).name.startswith("recover-") and (artifact / "manifest.json").is_file():
        return _artifact(artifact, own, over, final)
    if "://" in target or (Path(target) / "sweep.json").is_file():
        return _winner(target, own, over, final)
    return _imported(target, dataset, own, over, final)


def _split(changes: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Changes to the set, and {path: value} of those to how it is judged."""
    own, over = [], dict[str, Any]()
    for change in changes:
        path, _, value = change.partition("=")
        short = path.removeprefix("experiment.")
        if short.split(".")[0] in JUDGING:
            over[short] = config.parse_value(value)
        else:
            own.append(change)
    return own, over


def _preset(name: str, own: Sequence[str]) -> tuple[Sweep, Experiment]:
    try:
        return specs.with_changes(Sweep(preset=name), own)
    except ConfigError as error:
        if error.path != "preset":
            raise
        legal = "neither a file or folder, nor a preset: `edc-ray presets` lists them"
        raise ConfigError("SET", name, legal) from None


def changed(experiment: Experiment, runtime: Runtime, own: Sequence[str]) -> tuple[Experiment, Runtime]:
    """With `--set`, as of a file that says all of the experiment."""
    sweep, base = specs.with_changes(Sweep(experiment=config.dump(experiment), runtime=runtime), own)
    return base, sweep.runtime


def _made(
    target: str, experiment: Experiment, runtime: Runtime, over: Mapping[str, Any], final: bool
) -> Given:
    """A set that the pipeline makes."""
    notes: tuple[str, ...] = ()
    if final and experiment.split.val > 0:
        experiment, notes = (
            pipeline.refitted(experiment),
            ("condensed again on fit + val, to be read on test",),
        )
    elif final:
        experiment = pipeline.refitted(experiment)
    return Given(target, experiment, runtime, over, seen(experiment), notes)


def seen(experiment: Experiment) -> tuple[str, ...] | None:
    """Networks that had a part in the images; None where somebody else made them."""
    cfg, start = experiment.recover, experiment.init
    if start.kind == "given":
        return None
    scored = (start.scorers or experiment.squeeze.observers[:1]) if start.kind in init.SCORED else ()
    moved = (cfg.observers or experiment.squeeze.observers) if cfg.iterations else ()
    return tuple(dict.fromkeys((*moved, *scored)))


def _winner(target: str, own: Sequence[str], over: Mapping[str, Any], final: bool) -> Given:
    """The best configuration of a sweep."""
    from edc_ray import report  # Optuna

    claim = report.open_claim(target)
    here = replace(claim.sweep.runtime, store=claim.store.root)  # as named here; it may have been moved
    base, runtime = changed(claim.experiment(claim.best), here, own)
    return _made(f"{target} (trial {claim.best.number})", base, runtime, over, final)


def content(found: Given) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The images of a finished set as they are stored, their labels, and the names of the classes; images of
    somebody else are read in now.

    Raises:
        ConfigError: it has not been condensed yet.
    """
    store, tasks = Store(found.runtime.store), pipeline.tasks(found.experiment, "recover")
    task, ingest = tasks[-1], next(each for each in tasks if each.stage == "ingest")
    if not all(pipeline.is_hit(each, store, found.runtime) for each in (task, ingest)):
        if found.experiment.init.kind != "given":
            legal = f"is not in {store.root} ({task}): `edc-ray condense` makes it"
            raise ConfigError("SET", found.name, legal)
        pipeline.check(found.experiment)
        mapper = pipeline.in_process(store, found.runtime)
        pipeline.ensure(found.experiment, store, found.runtime, mapper, upto="recover")
    tensors, _ = store.artifact("recover", task.key).read("all")
    return tensors["images"], tensors["labels"], tuple(pipeline.facts(ingest, store)["classes"])


# --- a set that is there ------------------------------------------------------------------------------------


def _artifact(folder: Path, own: Sequence[str], over: Mapping[str, Any], final: bool) -> Given:
    """Recover's own: how it was made is in its manifest."""
    store, key = Store(str(folder.parent)), folder.name.removeprefix("recover-")
    base, runtime = changed(experiment_of(store, key), Runtime(store=str(folder.parent)), own)
    made = _made(str(folder), base, runtime, over, False)
    if pipeline.tasks(base, "recover")[-1].key != key:
        legal = "is not what --set makes: give only dataset.path, and fields of relabel, evaluate and runtime"
        raise ConfigError("SET", str(folder), legal)
    if not final or base.split.val == 0:
        return replace(made, experiment=pipeline.refitted(base)) if final else made
    tensors, _ = store.artifact("recover", key).read("all")
    place = _kept(store, storage.levels(tensors["images"]), tensors["labels"])
    return replace(made, experiment=_as_given(base, place, final), synthesis=seen(base))


def experiment_of(store: Store, key: str) -> Experiment:
    """The experiment that made a recover artifact; others may share it.

    Raises:
        ConfigError: the artifact does not say.
    """
    manifest = store.artifact("recover", key).manifest() or {}
    if "experiment" not in manifest:
        raise ConfigError("SET", store.path(f"recover-{key}"), "does not say what made it: condense it again")
    return config.load(Experiment, manifest["experiment"])


def _imported(
    target: str, dataset: str | None, own: Sequence[str], over: Mapping[str, Any], final: bool
) -> Given:
    """Somebody's images, or our own that were exported."""
    card = _card(Path(target))
    base = config.load(Experiment, card["experiment"]) if card else _base(dataset)
    runtime = Runtime()
    if not card:
        held = VAL if base.split.val == 0 else base.split.val
        base = config.override(base, {"split.val": 0.0 if final else held})
    base, runtime = changed(base, runtime, own)
    notes: tuple[str, ...] = ()
    source = str(Path(target, INSIDE[card["format"]])) if card else target
    about = base.dataset
    if card:
        data.check_classes(about, card["classes"], target)
    if Path(source).is_file():
        images, labels, notes = data.read_tensors(source, data.CONSTANTS.get(about.normalization))
        place = _kept(Store(runtime.store), images, labels)
        ipc, size = int((labels == 0).sum()), images.shape[-1]
    else:
        place, (ipc, size) = str(Path(source).resolve()), data.folder_shape(source)
        order = data.class_order(source, data.listing(about).classes)
        notes += (order,) if order else ()
    if size != about.size_px:
        raise ConfigError("SET", target, f"has images of {size} px; dataset.size_px is {about.size_px}")
    base = config.override(base, {"init.ipc": ipc})
    if not final and not (card and base.split.val > 0):
        notes += ("val may be among the images that the set was made from: only --final is a fair number",)
    known = card and card["synthesis"]  # a card of somebody's images does not know either
    synthesis = None if known is None else tuple(known)
    return Given(target, _as_given(base, place, final), runtime, over, synthesis, notes)


def _base(dataset: str | None) -> Experiment:
    """The recipe for a dataset: of its preset, where there is one."""
    if dataset is None:
        legal = "somebody's images need to know it, such as cifar10: its test images judge them"
        raise ConfigError("--dataset", None, legal)
    for name in (f"edc/{dataset}/ipc10", f"{dataset}/ipc1"):
        if name in presets.PRESETS:
            return presets.experiment(name)
    if dataset not in data.DATASETS:
        raise config.unknown("--dataset", dataset, data.DATASETS)
    return config.override(Experiment(), {"dataset.name": dataset})


def _card(folder: Path) -> dict[str, Any] | None:
    """Of a set that was exported from here."""
    found = config.read_yaml(folder / CARD) if (folder / CARD).is_file() else None
    if found is not None and not (
        isinstance(found, dict)
        and found.get("format") in INSIDE
        and {"experiment", "synthesis", "classes"} <= set(found)
    ):
        raise ConfigError("SET", str(folder / CARD), "is not a card that `edc-ray export` wrote")
    return found


def _as_given(experiment: Experiment, place: str, final: bool) -> Experiment:
    """The images of a folder, not moved, under the experiment's observers; on test with nothing held out."""
    still = config.override(
        experiment,
        {
            "init": config.dump(config.Init(kind="given", ipc=experiment.init.ipc, path=place)),
            "recover": config.dump(config.Recover(iterations=0)),
        },
    )
    return pipeline.refitted(still) if final else still


def _kept(store: Store, images: Tensor, labels: Tensor) -> str:
    """A folder of PNGs in the store, named by their content: where `given` reads them."""
    if not store.local:
        legal = "must be a local folder to read tensors into; a folder CLASS/FILE needs none of it"
        raise ConfigError("runtime.store", store.root, legal)
    digest = hashlib.sha256(images.contiguous().numpy().tobytes() + labels.numpy().tobytes())
    place = f"imports/{digest.hexdigest()[:12]}"
    for name, png in pngs(images, labels, None):
        if not store.exists(f"{place}/{name}"):
            store.put(f"{place}/{name}", png)
    return store.path(place)


def pngs(images: Any, labels: Any, classes: Sequence[str] | None) -> Iterator[tuple[str, bytes]]:
    """(CLASS/NUMBER.png, its bytes) in order. images: levels (n, 3, s, s), in class order.

    A class is named by its number where it has no name, or one that is no name of a folder.
    """
    ranks = dict[int, int]()
    for image, label in zip(images, labels.tolist(), strict=True):
        rank = ranks[label] = ranks.get(label, -1) + 1
        name = classes[label] if classes else f"{label:05d}"
        yield f"{name}/{rank:05d}.png", data.encoded(("", image))


def to_json(facts: Any) -> bytes:
    return json.dumps(facts, indent=1).encode()
