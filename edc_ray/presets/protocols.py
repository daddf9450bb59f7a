"""PROTOCOLS: the recipe under which a condensed set is judged: views, labels, training of the student.

An accuracy means something only under a named protocol: EDC's 87.0 % on CIFAR-10 at 50 images a class is
64.8 % under RD3's. A protocol sets all of `relabel` and `evaluate`, but the student, its
seeds, how often accuracy is read, the size of a page and whether a flipped image is one of its class; those
of a publication are the values of its presets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edc_ray.config import ConfigError, Evaluate, Experiment, Relabel, dump, override, unknown
from edc_ray.presets.baselines import BASELINES
from edc_ray.presets.edc import EDC

OWN = "own"  # the name of a recipe that is no row


@dataclass(frozen=True, slots=True)
class Protocol:
    """family: of the presets whose recipe it is. changes: to that. labels: who gives them.

    "all": every observer that the set's own recipe labels with; "one": ResNet-18 or, where it is none of the
    observers, the first of them; "none": the label of the class.
    """

    text: str
    family: str
    labels: Literal["all", "one", "none"]
    changes: Mapping[str, Any] = field(default_factory=dict)


PROTOCOLS: dict[str, Protocol] = {
    "edc": Protocol("EDC: mean logits of a committee, MSE + 0.025 CE, EMA; method.md 5.3", "edc", "all"),
    "rded": Protocol("RDED: one teacher, KL at T = 20, 300 epochs, cosine to half", "rded", "one"),
    "rd3": Protocol(
        "RD3 (ICLR 2026, second-hand): RDED's views, 400 epochs of batch 50, KL, cosine to 0", "rded", "one",
        {"relabel.batch_size": 50, "evaluate.epochs": 400, "evaluate.zeta": 1.0},
    ),
    "sre2l": Protocol("SRe2L: one teacher, KL, cosine to 0, large batches", "sre2l", "one"),
    "hard": Protocol(
        "EDC's training on the labels of the classes: no teacher, no mixing", "edc", "none",
        {"evaluate.loss": "hard", "evaluate.ce_weight": 0.0, "relabel.mix": "none"},
    ),
}  # fmt: skip

# Fields that a protocol leaves as they are.
KEPT = {
    "relabel.page_images", "relabel.flip", "evaluate.student", "evaluate.seeds", "evaluate.reports",
}  # fmt: skip


def named(names: str) -> tuple[str, ...]:
    """Of a comma-separated list, or "all". Raises ConfigError for what is no row."""
    if names == "all":
        return tuple(PROTOCOLS)
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in found:
        if name not in PROTOCOLS:
            raise unknown("protocol", name, [*PROTOCOLS, "all"])
    return found


def apply(name: str, experiment: Experiment) -> Experiment:
    """The experiment judged under a protocol; how the images are made does not change.

    Raises:
        ConfigError: no such protocol.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    protocol, observers = PROTOCOLS[name], experiment.squeeze.observers
    fresh = dump(Experiment())
    defaults = {f"{part}.{f}": fresh[part][f] for part in ("relabel", "evaluate") for f in fresh[part]}
    recipe = {k: v for k, v in _model(protocol.family, experiment).items() if k in defaults}
    changes = {k: v for k, v in (defaults | recipe | dict(protocol.changes)).items() if k not in KEPT}
    changes["relabel.observers"] = experiment.relabel.observers
    changes["evaluate.report_epochs"] = None
    if protocol.labels == "one":
        changes["relabel.observers"] = [teacher(experiment)] if len(observers) > 1 else None
    return override(experiment, changes)


def _model(family: str, experiment: Experiment) -> Mapping[str, Any]:
    """The preset of the family with the recipe for this dataset and so many images a class.

    A dataset that the family has no recipe for is treated as the published one of its size; a number of
    images in between as the next smaller one.
    """
    presets, name, size = EDC | BASELINES, experiment.dataset.name, experiment.dataset.size_px
    alike = "cifar10" if size <= 32 else "tiny_imagenet" if size <= 64 else "imagenet_1k"
    known = {each.split("/")[1] for each in presets if each.startswith(f"{family}/")}
    rows = f"{family}/{name if name in known else alike}/ipc"
    counts = sorted(int(each.removeprefix(rows)) for each in presets if each.removeprefix(rows).isdigit())
    fits = [count for count in counts if count <= experiment.init.ipc] or counts[:1]
    return presets[f"{rows}{fits[-1]}"].changes


def teacher(experiment: Experiment) -> str:
    """Who labels alone: ResNet-18 or, where the set has no such observer, the first one."""
    observers = experiment.squeeze.observers
    return next((name for name in observers if name.rpartition("/")[2] == "resnet18"), observers[0])


def labellers(experiment: Experiment) -> tuple[str, ...]:
    """The observers whose logits are the labels; none with hard ones."""
    if experiment.evaluate.loss == "hard":
        return ()
    return experiment.relabel.observers or experiment.squeeze.observers


def name_of(experiment: Experiment) -> str:
    """The protocol that the experiment is judged under, "own" where its recipe is no row."""
    for name in PROTOCOLS:
        if _judged(apply(name, experiment)) == _judged(experiment):
            return name
    return OWN


def _judged(experiment: Experiment) -> tuple[Relabel, Evaluate]:
    return experiment.relabel, replace(experiment.evaluate, report_epochs=None)


def from_yaml(base: Experiment, name: object) -> Experiment:
    """`protocol: NAME` of a file, or of `--set`. Raises ConfigError for what is no row."""
    if not isinstance(name, str):
        raise ConfigError("protocol", name, f"must be one of {', '.join(PROTOCOLS)}, or null")
    return apply(name, base)
