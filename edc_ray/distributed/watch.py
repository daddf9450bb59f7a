"""What workers wait for: after some minutes without a node, the resource that no node offers is named."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

PATIENCE_SECONDS = 300.0


class Pending(Protocol):
    """A worker that may wait for a node."""

    @property
    def waiting(self) -> bool: ...


W = TypeVar("W", bound=Pending)
Shape = Mapping[str, float]  # resource -> amount


def unoffered(share: Shape, offers: Sequence[Shape]) -> str:
    """What of a worker's share no node has; "" where one has all of it."""
    wanted = {name: amount for name, amount in share.items() if amount > 0}

    def some_node_has(names: Sequence[str]) -> bool:
        return any(all(have.get(name, 0) >= wanted[name] for name in names) for have in offers)

    if some_node_has(list(wanted)):
        return ""
    lacking = [name for name in wanted if not some_node_has([name])]
    told = " and ".join(f"{name} {wanted[name]:g}" for name in lacking or wanted)
    return told if lacking else f"{told} together"


class Waiting(Generic[W]):
    """Spawns workers and remembers since when each waits for a node.

    Args:
        share: what a worker needs of its node.
        offers: asked in a thread, as it may block: what the nodes that are there or may come have.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        spawn: Callable[[], W],
        share: Shape,
        offers: Callable[[Shape], Sequence[Shape]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawn, self._share, self._offers, self._clock = spawn, share, offers, clock
        self._since: dict[W, float] = {}

    def spawn(self) -> W:
        worker = self._spawn()
        self._since[worker] = self._clock()
        return worker

    async def look(self) -> str:
        """A line about workers that have waited too long; "" while there is nothing to say."""
        self._since = {worker: since for worker, since in self._since.items() if worker.waiting}
        seconds = self._clock() - min(self._since.values(), default=self._clock())
        if seconds < PATIENCE_SECONDS:
            return ""
        lacking = unoffered(self._share, await asyncio.to_thread(self._offers, self._share))
        what = (
            f"no node offers {lacking}" if lacking else "all nodes that offer it are taken, or on their way"
        )
        workers = f"{len(self._since)} worker{'s' * (len(self._since) > 1)}"
        return f"{workers} waiting for a node, for {seconds:.0f} s: {what}"
