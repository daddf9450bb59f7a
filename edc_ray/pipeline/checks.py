"""What is refused before anything runs: names that no table has, and what the dataset does not allow."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from edc_ray import config
from edc_ray.config import ConfigError, Experiment
from edc_ray.core import data, init, losses, matching, models, schedules, views
from edc_ray.pipeline.graph import kept, looked, needed


def check_names(experiment: Experiment) -> None:
    """Refuse what the tables do not have; needs no dataset.

    Raises:
        ConfigError: names the field, its value and what is legal.
    """
    tables: Sequence[tuple[str, Iterable[str]]] = (
        ("init.kind", init.INITS), ("relabel.mix", views.MIXES),
        ("evaluate.schedule", schedules.SCHEDULES), ("evaluate.loss", losses.LOSSES),
    )  # fmt: skip
    for path, table in tables:
        if (name := attrgetter(path)(experiment)) not in table:
            raise config.unknown(path, name, table)
    matching.norm_of(experiment.recover.matching.loss)
    models.check_name("evaluate.student", experiment.evaluate.student)
    for i, name in enumerate(experiment.squeeze.observers):
        models.check_name(f"squeeze.observers.{i}", name)
        if experiment.squeeze.weights is not None:
            models.check_offered(experiment.squeeze.weights, name)


def check(experiment: Experiment) -> None:
    """Refuse, before any compute, what the tables and the dataset do not allow.

    Raises:
        ConfigError: names the field, its value and what is legal.
    """
    check_names(experiment)
    counts, _, classes, tests = looked(experiment.dataset)
    data.require(experiment.dataset)
    if experiment.split.val == 0 and not tests:
        raise ConfigError("split.val", 0, "must be > 0: the dataset has no test images")
    _check_init(experiment, classes, min(kept(counts, experiment.split.val)))
    squeeze, shape = experiment.squeeze, (len(counts), experiment.dataset.size_px)
    models.check("evaluate.student", experiment.evaluate.student, *shape, matched=False)
    matched = (experiment.recover.observers or squeeze.observers) * matching.needed(experiment.recover)
    for i, name in enumerate(squeeze.observers if "squeeze" in needed(experiment) else ()):
        models.check(f"squeeze.observers.{i}", name, *shape, matched=name in matched)
        if squeeze.weights is not None:
            models.check_weights(squeeze.weights, name, *shape, new_head=squeeze.epochs > 0)
    _check_matching(experiment, len(counts))
    _check_labels(experiment, len(counts))


def _check_init(experiment: Experiment, classes: Sequence[str], least: int) -> None:
    """least: training images of the smallest class. Every experiment draws some, for its baseline."""
    cfg, kept = experiment.init, f"the smallest class keeps {least} training images"
    drawn = init.needed(replace(cfg, kind="real"))
    if (init.needed(cfg) if cfg.kind == "difficulty" else drawn) > least:
        legal = f"must be <= {least}: {kept} after split.val = {experiment.split.val:g}"
        raise ConfigError("init.ipc", cfg.ipc, legal)
    if cfg.kind == "rded" and init.needed(cfg) > (most := min(least, cfg.mipc)):
        legal = (
            f"must be <= {most // cfg.factor**2}: each image is made of init.factor^2 = {cfg.factor**2} of "
        )
        legal += f"the {most} that are scored (init.mipc = {cfg.mipc}, {kept})"
        path = "init.ipc" if cfg.pool is None else "init.pool"
        raise ConfigError(path, cfg.pool or cfg.ipc, legal)
    if cfg.kind in init.FROM_FOLDER:
        files = data.start_listing(cfg.path, classes).files
        few, name = min((len(names), name) for name, names in zip(classes, files, strict=True))
        if cfg.kind == "given" and {len(names) for names in files} != {cfg.ipc}:
            legal = f"must have {cfg.ipc} images of each class, no more and no fewer (init.ipc)"
            raise ConfigError("init.path", cfg.path, legal)
        if few < (wanted := init.needed(cfg)):
            legal = f"must have {wanted} images of each class (init.ipc); of class {name} there are {few}"
            raise ConfigError("init.path", cfg.path, legal)


def _check_matching(experiment: Experiment, classes: int) -> None:
    cfg, size_px = experiment.recover, experiment.dataset.size_px
    if not matching.needed(cfg):
        return
    names, families = cfg.observers or experiment.squeeze.observers, cfg.matching.families
    layers = [layer for name in names for layer in models.probe(name, classes, size_px)[1]]
    if not any(matching.kinds(layer, families) for layer in layers):
        legal = f"finds no layer in {', '.join(names)}; such networks have {_kinds(layers)}"
        raise ConfigError("recover.matching.families", families, legal)


def _kinds(layers: Sequence[models.Layer]) -> str:
    there = {"conv": "convolutions (channel, patch)", "bn": "BatchNorm (bn)"}
    found = [text for kind, text in there.items() if kind in {layer.kind for layer in layers}]
    return " and ".join(found) or "neither convolutions nor BatchNorm"


def _check_labels(experiment: Experiment, classes: int) -> None:
    if experiment.relabel.teacher_bn == "running" or experiment.evaluate.loss == "hard":
        return
    names, size_px = experiment.relabel.observers or experiment.squeeze.observers, experiment.dataset.size_px
    if not any(layer.kind == "bn" for name in names for layer in models.probe(name, classes, size_px)[1]):
        legal = f"has no effect: there is no BatchNorm in {', '.join(names)}"
        raise ConfigError("relabel.teacher_bn", "batch", legal)
