"""The condensed images as pictures."""

from typing import Any

import numpy as np

from edc_ray import pipeline
from edc_ray.artifacts import Damaged, Missing
from edc_ray.claim import Claim
from edc_ray.core import storage
from edc_ray.report.section import drawing, png

MOST_CLASSES, MOST_EACH = 40, 10  # of a grid: rows, and images in a row


def grid(images: np.ndarray, ipc: int) -> np.ndarray:
    """(classes * ipc, 3, s, s) uint8, class-major -> (height, width, 3), one row a class, with thin gaps."""
    n, c, s, _ = images.shape
    framed = np.full((n, s + 2, s + 2, c), 255, np.uint8)
    framed[:, 1:-1, 1:-1] = images.transpose(0, 2, 3, 1)
    return (
        framed.reshape(n // ipc, ipc, s + 2, s + 2, c).transpose(0, 2, 1, 3, 4).reshape(-1, ipc * (s + 2), c)
    )


def _first(images: np.ndarray, ipc: int) -> np.ndarray:
    """The grid of what fits: the first classes, and the first images of each."""
    shown = images.reshape(-1, ipc, *images.shape[1:])[:MOST_CLASSES, :MOST_EACH]
    return grid(shown.reshape(-1, *images.shape[1:]), shown.shape[1])


def grids(claim: Claim) -> dict[str, np.ndarray]:
    """Title -> grid: the best trial's images before and after the optimisation, and the median trial's.

    That one is left out where it is the best one, or where its images are not in the store any more.
    """
    best, median = claim.best, claim.ranked[len(claim.ranked) // 2]
    wanted = {
        "initial": (best, "init"),
        f"best (trial {best.number})": (best, "recover"),
    }
    if median is not best:
        wanted[f"median (trial {median.number})"] = (median, "recover")
    found = {}
    for title, (trial, stage) in wanted.items():
        experiment = claim.experiment(trial)
        key = pipeline.tasks(experiment, stage)[-1].key
        try:
            tensors, _ = claim.store.artifact(stage, key).read("all")
        except (Missing, Damaged):
            if trial is best:
                raise
            continue
        found[title] = _first(storage.levels(tensors["images"]).numpy(), experiment.init.ipc)
    return found


def images_png(claim: Claim) -> bytes:
    """The grids side by side, one row a class."""
    pictures = grids(claim)
    names: list[Any] = pipeline.facts(
        pipeline.tasks(claim.experiment(claim.best), "ingest")[-1], claim.store
    )["classes"][:MOST_CLASSES]
    height, width, _ = pictures["initial"].shape
    size = (len(pictures) * max(1.6, 6 * width / height) + 0.6, 6.5)
    with drawing() as plt:
        figure, axes = plt.subplots(1, len(pictures), figsize=size)
        for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize="medium")
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        row = height / len(names)
        axes[0].set_yticks([row * (i + 0.5) for i in range(len(names))], labels=names)
        return png(figure)
