"""edc_ray as a library: condense images that a program has, judge them, and load what was condensed before.

What is computed lies in a store and is not computed again: the same call a second time only reads.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from edc_ray import arrays, config, given, pipeline, session, specs
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Dataset, Experiment, Runtime, Sweep
from edc_ray.core import data, storage
from edc_ray.pipeline.worker import Inputs, Judge, pick_device
from edc_ray.presets import protocols

Changes = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Condensed:
    """A condensed set: images of class 0, then of class 1 ...

    experiment: what made them, or reads them in. store: where all that belongs to them lies.
    path: the folder of the images, for `load`.
    """

    images: UInt8[Tensor, "n 3 s s"]
    labels: Int[Tensor, " n"]
    classes: tuple[str, ...]
    experiment: Experiment
    store: str
    path: str

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        per_class = len(self) / max(1, len(self.classes))
        size = self.images.shape[-1]
        return f"Condensed({len(self)} images of {size} px, {per_class:g} a class, {self.path})"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Accuracies (fractions) of students, one a seed, on `images` images of `split`, under `protocol`.

    random_real: of students that saw random real images instead, as many, with the same labels and recipe.
    """

    accuracies: tuple[float, ...]
    random_real: tuple[float, ...] | None
    student: str
    seeds: tuple[int, ...]
    split: str
    images: int
    protocol: str

    @property
    def accuracy(self) -> float:
        """The mean."""
        return fmean(self.accuracies)

    def __str__(self) -> str:
        real = f", random real images {100 * fmean(self.random_real):.2f} %" if self.random_real else ""
        where = f"{self.split} ({self.images} images), student {self.student}, seeds {list(self.seeds)}"
        return f"{100 * self.accuracy:.2f} % on {where}, protocol {self.protocol}{real}"


# --- condense -----------------------------------------------------------------------------------------------


def condense(
    images: Any,
    labels: Any = None,
    ipc: int = 10,
    *,
    classes: Sequence[str] | None = None,
    test: Any = None,
    preset: str | None = None,
    changes: Changes = (),
    store: str = "store",
    ray: bool = False,
) -> Condensed:
    """Condense a dataset to `ipc` images a class.

    images: uint8 levels or floats in [0, 1], (n, h, w), (n, h, w, 3) or (n, 3, h, w), arrays or tensors, or a
        list of PIL images. Or a torch Dataset of (image, label), without `labels`.
    labels: whole numbers 0, 1, ... or names of classes. classes: their names in label order.
    test: (images, labels) or a Dataset: the test images that belong to them. Nothing reads these here.
    preset: as `edc-ray presets` lists; None = the defaults: four small networks, for small images.
    changes: fields to change, as of --set: ["recover.iterations=50"] or {"recover.iterations": 50}.
    store: a folder, which may serve many datasets. ray: on Ray actors instead of in this process.

    Images become squares of the shorter side of the smallest one, or of `dataset.size_px` of the changes.

    Raises:
        ConfigError: names what is wrong, its value and what is legal.
        FloatingPointError: a loss is not finite.
    """
    place = Store(store)
    place.check()
    train = arrays.read(images, labels, classes)
    tested = (
        None if test is None else arrays.read(*_pair(test), train.classes if train.named else None, "test")
    )
    dataset = {
        "name": "parquet", "path": arrays.keep(place, train, tested), "classes": None, "limit": None,
        "normalization": "measured", "size_px": min(min(side) for side in train.sides),
    }  # fmt: skip
    words = _words(changes)
    if not any(word.removeprefix("experiment.").startswith("dataset.size_px=") for word in words):
        _check_side(int(str(dataset["size_px"])))
    sweep = Sweep(
        preset=preset, experiment={"dataset": dataset, "init.ipc": ipc}, runtime=Runtime(store=store)
    )
    spec, experiment = specs.with_changes(sweep, words)
    return _condensed(specs.anchored(experiment), spec.runtime, ray)


def _check_side(side: int) -> None:
    limits = next(f.metadata for path, f in config.paths(Dataset).items() if path == "size_px")
    if not limits["low"] <= side <= limits["high"]:
        legal = f"the shorter side must be {limits['low']} to {limits['high']} px, or set dataset.size_px"
        raise ConfigError("images", f"{side} px", legal)


def _condensed(experiment: Experiment, runtime: Runtime, ray: bool) -> Condensed:
    pipeline.check(experiment)
    store = Store(runtime.store)
    with session.mapper(ray, store, runtime) as mapper:
        pipeline.ensure(experiment, store, runtime, mapper, upto="recover")
    return _of(given.Given("", experiment, runtime, {}, None))


def _of(found: given.Given) -> Condensed:
    images, labels, classes = given.content(found)
    store = Store(found.runtime.store)
    path = store.path(str(found.recover))
    return Condensed(storage.levels(images), labels, classes, found.experiment, store.path(), path)


def _pair(test: Any) -> tuple[Any, Any]:
    if isinstance(test, tuple) and len(test) == 2:
        return test[0], test[1]
    return test, None


def _words(changes: Changes) -> list[str]:
    """As after --set."""
    if isinstance(changes, str):
        raise ConfigError("changes", changes, 'must be a list, such as ["recover.iterations=50"]')
    if isinstance(changes, Mapping):
        return [f"{path}={json.dumps(value)}" for path, value in changes.items()]
    return list(changes)


# --- evaluate -----------------------------------------------------------------------------------------------


def evaluate(
    condensed: Condensed,
    student: str | None = None,
    test: Any = None,
    *,
    seeds: Sequence[int] | None = None,
    baseline: bool = True,
    changes: Changes = (),
    ray: bool = False,
) -> Evaluated:
    """Train students on the condensed images and read their accuracy.

    student: a network, as `evaluate.student`: a name, timm/NAME, torchvision/NAME or module:function.
    test: (images, labels) or a Dataset to read it on, once, at the end; on record in the store's
        test_reads.jsonl, and computed in this process. None: what the experiment holds out, val by default.
    seeds: one student each. baseline: random real images too. changes: to relabel, evaluate and runtime.

    Raises:
        ConfigError: as `condense`; or the changes are to how the images are made.
    """
    words = _words(changes)
    experiment, runtime = given.changed(condensed.experiment, Runtime(store=condensed.store), words)
    more = {"evaluate.student": student, "evaluate.seeds": None if seeds is None else list(seeds)}
    experiment = config.override(
        experiment, {path: value for path, value in more.items() if value is not None}
    )
    if _recover_key(experiment) != _recover_key(condensed.experiment):
        raise ConfigError("changes", words, "must be to relabel, evaluate or runtime")
    pipeline.check(experiment)
    store, runtime = Store(condensed.store), replace(runtime, store=condensed.store)
    inline = replace(runtime, labels="inline")
    wanted = ["condensed", "random_real"] if baseline else ["condensed"]
    found = dict[str, list[dict[str, Any]]]()
    if test is not None:
        tested = _tested(condensed, test)
        experiment = pipeline.refitted(experiment)
        experiment = replace(experiment, split=condensed.experiment.split)  # read once; the same observers
    arms = pipeline.arms(experiment)
    with session.mapper(ray, store, runtime) as mapper:
        for name in wanted:
            arm = arms.get(name, experiment)
            if test is None:
                tasks = pipeline.ensure(arm, store, runtime, mapper)
                found[name] = [pipeline.facts(task, store) for task in tasks if task.stage == "evaluate"]
            else:
                upto = "recover" if arm.evaluate.loss == "hard" else "relabel"  # for who labels; no labels
                pipeline.ensure(arm, store, inline, mapper, upto=upto)
                found[name] = _on_test(arm, store, inline, tested)
    return _evaluated(experiment, found)


def _evaluated(experiment: Experiment, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Evaluated:
    cfg, first = experiment.evaluate, found["condensed"][0]
    ours, real = (
        tuple(float(facts["accuracy"]) for facts in found[name]) if name in found else None
        for name in ("condensed", "random_real")
    )
    assert ours is not None
    name = protocols.name_of(experiment)
    return Evaluated(ours, real, cfg.student, cfg.seeds, first["split"], first["judged"], name)


def _recover_key(experiment: Experiment) -> str:
    return pipeline.tasks(experiment, "recover")[-1].key


@dataclass(frozen=True, slots=True)
class _Test:
    images: UInt8[Tensor, "n 3 s s"]
    labels: Int[Tensor, " n"]
    content: str


def _tested(condensed: Condensed, test: Any) -> _Test:
    found = arrays.read(*_pair(test), None, "test")
    numbers = tuple(str(label) for label in range(len(condensed.classes)))
    if found.named and found.classes != condensed.classes != numbers:
        legal = (
            f"must have the classes of the condensed set, in their order: {', '.join(condensed.classes[:10])}"
        )
        raise ConfigError("test", list(found.classes), legal)
    if max(found.labels) >= len(condensed.classes):
        raise ConfigError("test", max(found.labels), f"must have labels 0 to {len(condensed.classes) - 1}")
    cfg = condensed.experiment.dataset
    items = [(f"test[{i}]", image) for i, image in enumerate(found.images)]
    images = data.decoded(cfg, "test", items, len(items))
    return _Test(images, torch.tensor(found.labels), found.content)


class _OnTest(Inputs):
    """What students are judged on is what the caller gave."""

    def __init__(self, store: Store, runtime: Runtime, test: _Test) -> None:
        super().__init__(store, runtime, pick_device(runtime))
        self._test = test

    def judge(self, task: pipeline.Task) -> Judge:
        real, test = self.real(task), self._test
        pipeline.note_test_read(task, self.store, f"evaluate of {task}, on images that a program gave")
        rows = torch.arange(len(test.labels))
        images = data.Pixels(lambda ids: test.images[ids.cpu()], rows, real.mean, real.std, self.device)
        return Judge(images, test.labels.to(self.device), "test")


def _on_test(experiment: Experiment, store: Store, runtime: Runtime, test: _Test) -> list[dict[str, Any]]:
    """The facts of one evaluation a seed; each has a name of its own, by the images that it was read on."""
    worker, found = pipeline.Worker(store, runtime, _OnTest(store, runtime, test)), []
    for task in pipeline.tasks(experiment):
        if task.stage != "evaluate":
            continue
        own = replace(task, key=config.digest([task.key, "test", test.content]))
        if not pipeline.is_hit(own, store, runtime):
            for _ in worker.run(own, "student"):
                pass
            pipeline.commit(own, store, runtime)
        found.append(pipeline.facts(own, store))
    return found


# --- load ---------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], dataset: str | None = None, *, changes: Changes = ()) -> Condensed:
    """A condensed set that is there, as `edc-ray evaluate` takes it: the folder of `Condensed.path` or of a
    sweep (its best trial), what `edc-ray export` wrote, or somebody else's images: a folder CLASS/FILE, or a
    file .pt, .npz or .parquet.

    dataset: of somebody else's images, such as "cifar10": its images label and judge them.
    changes: as of `condense`, such as where the data lie ("dataset.path=FOLDER"); runtime.store is where
        images are read into that are in no store.

    Raises:
        ConfigError: it is none of these, or not condensed yet; or the real images that belong to it are not
            where they were.
    """
    found = given.open_set(os.path.expanduser(os.fspath(path)), dataset, _words(changes))
    return _of(replace(found, experiment=config.override(found.experiment, found.over)))
