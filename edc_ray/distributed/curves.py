"""The accuracies that an evaluation reports while its students are trained."""

from collections.abc import Iterable
from dataclasses import dataclass

Curve = tuple[tuple[int, float], ...]  # (per mille of the training, accuracy in [0, 1]), increasing


@dataclass(frozen=True, slots=True)
class Report:
    """The accuracies of all seeds at one point of the training."""

    progress: int  # per mille
    accuracy: float  # mean of
    accuracies: tuple[float, ...]  # one per seed, as Experiment.evaluate.seeds


class Curves:
    """The accuracies of a trial's seeds; a point is let out once every seed has reached it."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._seeds: dict[str, dict[int, float]] = {key: {} for key in keys}
        self.told: list[Report] = []

    def add(self, key: str, reports: Curve) -> list[Report]:
        """The new points. Progress repeats what it said before."""
        self._seeds[key].update(reports)
        last = self.told[-1].progress if self.told else -1
        common = set.intersection(*map(set, self._seeds.values()))
        new = []
        for progress in sorted(p for p in common if p > last):
            accuracies = tuple(seed[progress] for seed in self._seeds.values())
            new.append(Report(progress, sum(accuracies) / len(accuracies), accuracies))
        self.told += new
        return new
