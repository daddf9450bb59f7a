"""Problems that are solved one after another."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edc_ray.core.recover.loop import State, begin, check, finished, synthesize
from edc_ray.core.recover.problem import Problem


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
        self._make, self._start, self._saved = make, images, saved
        self._at = int(saved["at"]) if saved else 0
        self.images: Float[Tensor, "n c s s"] = saved["done"] if saved else torch.zeros(0, *images.shape[1:])

    def steps(self) -> Iterator[int]:
        """How many iterations were made, after each; at the end `images` has all, in [0, 1], on the CPU.

        Raises:
            FloatingPointError: a loss became non-finite; names the group and the iteration.
        """
        saved, before = self._saved, None
        for turn in range(self._at, len(self._make)):
            self._at, self._problem = turn, self._make[turn]()
            done = len(self.images)
            start = self._start[done : done + self._problem.labels.numel()]
            self._state: State = begin(self._problem, start, saved, before)
            for state in synthesize(self._problem, self._state):
                yield turn * self._problem.cfg.iterations + state.iteration
            self.images = torch.cat([self.images, finished(self._problem, self._state)])
            saved, before = None, self._state

    def pack(self) -> dict[str, Tensor]:
        """The checkpoint after the last step. Raises FloatingPointError as `steps`."""
        check(self._problem, self._state)
        return self._state.pack() | {"at": torch.tensor(self._at), "done": self.images}
