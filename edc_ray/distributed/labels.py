"""A label job: a Ray Data pipeline whose rows are pages of soft labels (architecture.md 5, ray.md 3.4).

Each page is labelled and written by the teachers' own process; what flows through Ray is the receipt. Its
bits are those of pipeline.Worker anywhere else.
"""

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from edc_ray.artifacts import Receipt
from edc_ray.config import Runtime
from edc_ray.distributed.ledger import Pages
from edc_ray.distributed.probe import Site
from edc_ray.distributed.workers import own_error
from edc_ray.pipeline import Task, Worker


class Labeller:
    """The teachers, kept over the pages that one actor of the pipeline gets."""

    def __init__(self, site: Site, runtime: Runtime, pages: Pages) -> None:
        self._site, self._runtime, self._pages = site, runtime, pages
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Row numbers of the pages -> their receipts, as text."""
        if self._worker is None:
            self._worker = Worker(self._site.look(), self._runtime)
            store = self._worker.store
            artifacts = {task.key: store.artifact(task.stage, task.key) for task, _ in self._pages}
            # A labeller before this one, which was lost, may have written a page and not told.
            self._left = {key: (artifact, artifact.units()) for key, artifact in artifacts.items()}
        receipts = [self._label(self._worker, *self._pages[int(row)]) for row in batch["id"]]
        return {"receipt": [json.dumps(receipt) for receipt in receipts]}

    def _label(self, worker: Worker, task: Any, unit: str) -> dict[str, Any]:
        artifact, left = self._left[task.key]
        *_, receipt = [artifact.receipt(unit)] if unit in left else worker.run(task, unit)
        assert isinstance(receipt, Receipt)
        return {"key": task.key, "receipt": asdict(receipt)}


def label_pages(site: Site, runtime: Runtime, pages: Pages, width: int = 1) -> Iterator[tuple[str, Receipt]]:
    """Run the pipeline on `width` actors; yields (key, receipt) as pages are finished, in any order."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # its own wrapper forgets the cause on the way
    if not runtime.gpus_per_worker and runtime.device == "auto":
        runtime = replace(runtime, device="cpu")
    rows = ray.data.from_items(
        [{"id": i} for i in range(len(pages))], override_num_blocks=len(pages)
    )  # one block is one page: the unit of retry
    receipts = rows.map_batches(
        Labeller,
        fn_constructor_args=(site, runtime, pages),
        batch_size=1,
        compute=ActorPoolStrategy(size=width),
        num_cpus=runtime.cpus_per_worker,
        num_gpus=runtime.gpus_per_worker or None,
    )
    receipts.set_name("labels")  # as the dashboard shows it
    for row in receipts.iter_rows():
        found = json.loads(row["receipt"])
        yield found["key"], Receipt(**found["receipt"])


@ray.remote(num_cpus=0, max_restarts=0)
class LabelJob:
    """The pipeline's driver, in a process of its own, since Ray Data blocks."""

    def __repr__(self) -> str:
        return "label-job"

    def run(self, site: Site, runtime: Runtime, pages: Pages, width: int) -> Iterator[tuple[str, Receipt]]:
        yield from label_pages(site, runtime, pages, width)


class LabelJobs:
    """What the Broker calls: label jobs in one process, which is started anew after it was lost.

    heard: is told of each receipt.
    """

    def __init__(self, site: Site, runtime: Runtime, heard: Callable[[Task, Receipt], None]) -> None:
        self._site, self._runtime, self._heard = site, runtime, heard
        self._actor: Any = None

    async def __call__(self, pages: Pages, width: int) -> AsyncGenerator[tuple[str, Receipt], None]:
        """One label job, as an asynchronous stream.

        Raises:
            WorkerLost: the job's process died. Else a page's own error.
        """
        self._actor = self._actor or LabelJob.remote()  # type: ignore[attr-defined]
        run = self._actor.run.options(num_returns="streaming", name=f"relabel:{len(pages)} pages")
        tasks = {task.key: task for task, _ in pages}
        try:
            async for item in run.remote(self._site, self._runtime, pages, width):
                key, receipt = await item
                self._heard(tasks[key], receipt)
                yield key, receipt
        except RayError as error:
            lost, self._actor = self._actor, None
            ray.kill(lost)
            raise own_error(error) from None
