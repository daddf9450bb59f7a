"""Experiment: what is computed. Every field enters an artifact's name, but those with `hashed=False`, and
those that another field makes inactive (`when`). `search` is the range worth searching (method.md 9).
"""

import dataclasses
from typing import Literal

from edc_ray.config.apply import Apply
from edc_ray.config.condense import Init, Recover
from edc_ray.config.diagnose import Diagnose
from edc_ray.config.fields import ConfigError, config, knob
from edc_ray.config.judge import Evaluate, Relabel
from edc_ray.config.observe import Dataset, Split, Squeeze, Statistics


@config
class Quirks:
    """Deviations of the official code that no field can say (method.md 6); all False in `fixed`."""

    swap_class_patch: bool = knob(
        False, "B2: the class targets of patch mean and patch variance are exchanged"
    )
    double_conv_targets: bool = knob(
        False, "B4: the global targets of the convolutions are counted twice, as with the shipped files"
    )
    verifier_updates: bool = knob(
        False,
        "B7: every 100th iteration (20th from 224 px on) the first observer's running statistics see the "
        "un-augmented images",
    )
    alphabetical_init: bool = knob(
        False, "B18: initial images of a class list in another order are taken in alphabetical order"
    )
    alrs_weights_only: bool = knob(False, "B26: ALRS lowers only the learning rate of decayed weights")


@config
class Experiment:
    """What is computed. Every field is part of some artifact's name, except those with `hashed=False`."""

    dataset: Dataset = dataclasses.field(default_factory=Dataset)
    split: Split = dataclasses.field(default_factory=Split)
    squeeze: Squeeze = dataclasses.field(default_factory=Squeeze)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    init: Init = dataclasses.field(default_factory=Init)
    recover: Recover = dataclasses.field(default_factory=Recover)
    relabel: Relabel = dataclasses.field(default_factory=Relabel)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
    quirks: Quirks = dataclasses.field(default_factory=Quirks)
    diagnose: Diagnose = knob(Diagnose(), "how the set was made, and what it teaches", later=True)
    apply: Apply = knob(Apply(), "what the condensed images are used for", later=True)
    seed: int = knob(0, "drives squeeze to recover", low=0)
    precision: Literal["fp32", "tf32"] = knob("fp32", "of matrix products and convolutions on the GPU")

    def __post_init__(self) -> None:
        observers = self.squeeze.observers
        if not observers or len(set(observers)) < len(observers):
            raise ConfigError("squeeze.observers", observers, "needs at least one model, each named once")
        for path, chosen in (
            ("recover.observers", self.recover.observers),
            ("relabel.observers", self.relabel.observers),
            ("init.scorers", self.init.scorers),
        ):
            once = chosen is None or len(set(chosen)) == len(chosen) > 0
            if chosen is not None and not (once and set(chosen) <= set(observers)):
                legal = f"must be some of squeeze.observers ({', '.join(observers)}), each once, or null"
                raise ConfigError(path, chosen, legal)
        for path, weights, of in (
            ("recover.observer_weights", self.recover.observer_weights, self.recover.observers),
            ("relabel.observer_weights", self.relabel.observer_weights, self.relabel.observers),
        ):
            count = len(of or observers)
            if weights is not None and (len(weights) != count or not sum(weights) > 0):
                raise ConfigError(path, weights, f"needs {count} numbers, not all 0: one an observer")
        self._check_training()
        if self.init.kind == "rded" and self.dataset.size_px % self.init.factor:
            legal = f"must divide dataset.size_px = {self.dataset.size_px}"
            raise ConfigError("init.factor", self.init.factor, legal)
        if not self.evaluate.seeds or len(set(self.evaluate.seeds)) < len(self.evaluate.seeds):
            raise ConfigError("evaluate.seeds", self.evaluate.seeds, "needs at least one seed, each once")

    def _check_training(self) -> None:
        squeeze, evaluate = self.squeeze, self.evaluate
        if squeeze.epochs == 0 and squeeze.weights is None:
            raise ConfigError("squeeze.epochs", 0, "must be >= 1 where squeeze.weights is null")
        if squeeze.checkpoint_epoch is not None and squeeze.checkpoint_epoch > squeeze.epochs:
            legal = f"must be <= squeeze.epochs = {squeeze.epochs}, or null"
            raise ConfigError("squeeze.checkpoint_epoch", squeeze.checkpoint_epoch, legal)
        if list(evaluate.milestones) != sorted(set(evaluate.milestones)):
            raise ConfigError("evaluate.milestones", evaluate.milestones, "must increase")
        if evaluate.report_epochs is not None:
            if list(evaluate.report_epochs) != sorted(set(evaluate.report_epochs)):
                raise ConfigError("evaluate.report_epochs", evaluate.report_epochs, "must increase")
            if evaluate.report_epochs[-1:] > (evaluate.epochs,):
                legal = f"must be <= evaluate.epochs = {evaluate.epochs}"
                raise ConfigError("evaluate.report_epochs", evaluate.report_epochs, legal)
        if evaluate.select == "best_val" and self.split.val == 0:
            raise ConfigError(
                "evaluate.select", "best_val", "needs split.val > 0: nothing is selected on test"
            )
