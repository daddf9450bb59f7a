"""Problems that are solved one after another."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from edc_ray.core.recover.loop import State, begin, check, finished, synthesize
from edc_ray.core.recover.problem import Problem
from edc_ray.core.storage import Stored, store


class Chain:
    """Each problem takes over the running statistics of the one before (B6); most chains have only one.

    make: the problems, each made when it is its turn. images: where all of them start. saved: what `pack`
    made; with it the chain goes on to the same bits.
    """

    def __init__(
        self,
        make: Sequence[Callable[[], Problem]],
        images: UInt8[Tensor, "m c s s"],
        saved: dict[str, Tensor] | None = None,
    ) -> None:
        self._make, self._start, self._saved = make, images, dict(saved or {})
        self._at, self.bytes = (int(self._saved.pop(name, 0)) for name in ("chain.at", "chain.bytes"))
        self._done: list[Tensor] = [self._saved.pop("chain.done")] if self._at else []

    @property
    def images(self) -> Stored:
        """Those of the finished problems, as they are stored; `bytes` is what they take."""
        return torch.cat(self._done)

    @property
    def moving(self) -> int:
        """How many images the last iteration has moved."""
        return self._problem.labels.numel()

    def loss(self) -> float:
        """Of the last iteration, the mean over the groups; waits for the GPU."""
        return float(self._state.loss)

    def steps(self) -> Iterator[int]:
        """How many iterations were made, after each.

        Raises:
            FloatingPointError: a loss became non-finite; names the group and the iteration.
        """
        saved, before = self._saved or None, None
        for turn in range(self._at, len(self._make)):
            self._at, self._problem = turn, self._make[turn]()
            done = sum(map(len, self._done))
            start = self._start[done : done + self._problem.labels.numel()]
            self._state: State = begin(self._problem, start, saved, before)
            for state in synthesize(self._problem, self._state):
                yield turn * self._problem.cfg.iterations + state.iteration
            kept, size = store(finished(self._problem, self._state), self._problem.cfg)
            self._done.append(kept)
            self.bytes += size
            saved, before = None, self._state

    def pack(self) -> dict[str, Tensor]:
        """The checkpoint after the last step. Raises FloatingPointError as `steps`."""
        check(self._problem, self._state)
        place = {"chain.at": torch.tensor(self._at), "chain.bytes": torch.tensor(self.bytes)}
        return self._state.pack() | place | ({"chain.done": self.images} if self._done else {})
