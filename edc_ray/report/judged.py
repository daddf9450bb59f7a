"""Which classes the students get right, from the logits that evaluations leave."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edc_ray import pipeline
from edc_ray.artifacts import Store
from edc_ray.claim import interval
from edc_ray.config import Experiment, Runtime
from edc_ray.pipeline.worker import Inputs
from edc_ray.report.images import MOST_CLASSES
from edc_ray.report.section import Section, drawing, png
from edc_ray.report.trials import Trials

PAIRS = 10


class Judged:
    """Confusion matrices of evaluations that judged the same images."""

    def __init__(self, store: Store) -> None:
        self._inputs = Inputs(store, Runtime(store=store.root), torch.device("cpu"))

    def classes(self, experiment: Experiment) -> tuple[str, ...]:
        return self._inputs.real(pipeline.tasks(experiment)[-1]).classes

    def confusion(self, experiment: Experiment) -> np.ndarray:
        """(k, k) counts of images: row = the true class, column = the student's. Raises Missing, Damaged."""
        task = pipeline.tasks(experiment)[-1]
        tensors, _ = self._inputs.unit(task.stage, task.key, "student")
        k = len(self.classes(experiment))
        pairs = k * self._inputs.judge(task).labels + tensors["logits"].argmax(1)
        return torch.bincount(pairs, minlength=k * k).reshape(k, k).numpy()


def per_class(trials: Trials) -> Section:
    """Of the confirmation's students, else of the best trial's."""
    claim = trials.claim
    arms = claim.arms() or {"condensed": [claim.experiment(claim.best)]}
    judged = Judged(claim.store)
    found = {name: [judged.confusion(each) for each in arm] for name, arm in arms.items()}
    names = judged.classes(arms["condensed"][0])
    rows = _rows(names, found)
    counts = np.sum(found["condensed"], axis=0)
    split, n = ("test", len(arms["condensed"])) if claim.arms() else ("val", 1)
    text = [
        f"{n} student{'s' * (n > 1)} of condensed images on {split}; a row of the matrix is the true class."
    ]
    if len(names) <= MOST_CLASSES:
        pictures = {"per_class": _bars(rows, list(found)), "confusion": _matrix(counts, names)}
    else:
        pictures = {}
        rows = sorted(rows, key=lambda row: row["condensed, %"])
        text.append(f"The {len(names)} classes, worst first.")
    tables = {"per_class": rows, "most_confused": confused(counts, names)}
    return Section("Classes", text, tables, pictures)


def _rows(names: Sequence[str], found: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(names):
        row: dict[str, Any] = {"class": name, "images": int(found["condensed"][0][label].sum())}
        for arm, matrices in found.items():
            shares = [float(m[label, label] / max(1, m[label].sum())) for m in matrices]
            row[f"{arm}, %"] = 100 * (told := interval(shares)).mean
            if arm == "condensed" and len(shares) > 1:
                row["+- condensed, %"] = 100 * told.half
        rows.append(row)
    return rows


def confused(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs that are taken for each other most often."""
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:PAIRS]
    pairs = [(int(at) // len(names), int(at) % len(names)) for at in order]
    return [
        {"class": names[true], "taken for": names[said], "of its images, %": 100 * float(shares[true, said])}
        for true, said in pairs
        if shares[true, said] > 0
    ]


def _bars(rows: Sequence[dict[str, Any]], arms: Sequence[str]) -> bytes:
    at = np.arange(len(rows))
    with drawing() as plt:
        figure, axis = plt.subplots(figsize=(max(5.4, 0.3 * len(rows)), 3.8))
        halves = [row.get("+- condensed, %", 0) for row in rows]
        axis.bar(at, [row["condensed, %"] for row in rows], yerr=halves, color="C1",
                 error_kw={"alpha": 0.5}, label="condensed")  # fmt: skip
        for arm, mark in zip([arm for arm in arms if arm != "condensed"], "o^sv", strict=False):
            axis.plot(at, [row[f"{arm}, %"] for row in rows], mark, color="black", markersize=4, label=arm)
        long = max(len(row["class"]) for row in rows) > 3
        axis.set_xticks(at, [row["class"] for row in rows], rotation=60 if long else 0)
        axis.set(ylabel="accuracy, %", ylim=(0, 101))
        figure.legend(loc="outside upper right", ncols=len(arms), fontsize="small")
        return png(figure)


def _matrix(counts: np.ndarray, names: Sequence[str]) -> bytes:
    from sklearn.metrics import ConfusionMatrixDisplay

    shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    few = len(names) <= 12
    with drawing() as plt:
        figure, axis = plt.subplots(figsize=(5, 4.4) if few else (7, 6.4))
        axis.grid(False)
        turned = 60 if max(map(len, names)) > 3 else 0
        shown = ConfusionMatrixDisplay(shares, display_labels=list(names))
        shown.plot(ax=axis, cmap="Blues", include_values=few, values_format=".0f", xticks_rotation=turned)
        axis.set(xlabel="the student says", ylabel="true class", title="% of a class's images")
        axis.title.set_fontsize("medium")
        return png(figure)
