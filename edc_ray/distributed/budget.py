"""Stored labels within a number of bytes: the least recently used go first, and never those in use."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from edc_ray.config import Runtime
from edc_ray.distributed.ledger import LABELS, Task

Evict = Callable[[Any, float, frozenset[str], dict[str, int]], list[str]]


class LabelBudget:
    """Which labels are in use, and when the others were; those of earlier jobs count as older.

    Args:
        evict: pipeline.evict; blocks, so it is called in a thread.
        on_event: is told labels_evicted.
    """

    def __init__(self, evict: Evict, store: Any, runtime: Runtime, on_event: Callable[..., None]) -> None:
        self._evict, self._store, self._event = evict, store, on_event
        self._limit = runtime.label_budget_gb
        self._held = Counter[str]()
        self._used: dict[str, int] = {}  # key -> place in the order of use
        self._removing = asyncio.Lock()

    @asynccontextmanager
    async def held(self, tasks: Iterable[Task]) -> AsyncGenerator[None, None]:
        """Nothing of the tasks' labels is removed while the block runs."""
        keys = {task.key for task in tasks if task.stage == LABELS}
        async with self._removing:
            self._held.update(keys)
        try:
            yield
        finally:
            self._held.subtract(keys)
            for key in keys:
                self._used.pop(key, None)
                self._used[key] = 1 + max(self._used.values(), default=0)

    async def trim(self) -> None:
        """Remove what is over the budget, as far as nobody holds it."""
        if self._limit is None:
            return
        async with self._removing:
            held = frozenset(key for key, count in self._held.items() if count)
            for key in await asyncio.to_thread(self._evict, self._store, self._limit * 1e9, held, self._used):
                self._event("labels_evicted", key=key)
