"""What a result is compared with: the same recipe on other images, and the networks that saw all images."""

from dataclasses import replace

from edc_ray.config import Experiment

CONFIRM_SEED = 1000  # first seed of a confirmation; a search uses smaller ones
FRESH = 500_000  # added to init.seed: draws of real images that no search and no winner has seen


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """One repetition: init, recover, labels and student all follow `seed`; the observers stay."""
    return replace(
        experiment,
        init=replace(experiment.init, seed=seed),
        evaluate=replace(experiment.evaluate, seeds=(seed,)),
    )


def t0(experiment: Experiment) -> Experiment:
    """The experiment's own initial images, not optimised; itself where it has no iterations."""
    return replace(experiment, recover=replace(experiment.recover, iterations=0))


def random_real(experiment: Experiment) -> Experiment:
    """Fresh, independent draws of real images with the same labels and recipe."""
    fresh = replace(experiment.init, kind="real", seed=experiment.init.seed + FRESH)
    return t0(replace(experiment, init=fresh))


BASELINES = {"random_real": random_real, "t0": t0}


def arms(experiment: Experiment) -> dict[str, Experiment]:
    """The experiment, "condensed", and its baselines, each distinct one once."""
    made = {"condensed": experiment} | {name: make(experiment) for name, make in BASELINES.items()}
    return {name: e for i, (name, e) in enumerate(made.items()) if e not in list(made.values())[:i]}


def whole(experiment: Experiment) -> Experiment | None:
    """The student trained as an observer, on all training images: squeeze it to know its accuracy.

    Only an observer has `squeeze.weights`: another student starts at random ones and, where the observers
    are not trained at all, there is nothing to say how long it should be: None.
    """
    student, squeeze = experiment.evaluate.student, experiment.squeeze
    if student not in squeeze.observers:
        if squeeze.epochs == 0:
            return None
        squeeze = replace(squeeze, weights=None)
    return replace(
        experiment,
        squeeze=replace(squeeze, observers=(student,), checkpoint_epoch=None),
        init=replace(experiment.init, scorers=None),
        recover=replace(experiment.recover, observers=None, observer_weights=None),
        relabel=replace(experiment.relabel, observers=None, observer_weights=None),
    )


def refitted(experiment: Experiment) -> Experiment:
    """The same with nothing held out: trained on fit + val, judged on test, once, at the end.

    A `select: best_val` has no val to select on any more: the last accuracy counts.
    """
    once = replace(experiment.evaluate, reports=1, report_epochs=None, select="last")
    return replace(experiment, split=replace(experiment.split, val=0.0), evaluate=once)
