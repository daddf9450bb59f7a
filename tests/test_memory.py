"""Where the memory of the GPU runs out, the error names the field to lower, and nothing finished is lost."""

import asyncio
import pickle
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edc_ray import pipeline
from edc_ray.artifacts import Store
from edc_ray.config import Runtime
from edc_ray.distributed.broker import Broker, UnitFailed
from edc_ray.pipeline.memory import FIELDS, OutOfMemory
from tests import tiny

RUNTIME = Runtime(device="cpu", groups_per_forward=2, forward_images=32)
CHANGES: dict[str, Any] = {"init__kind": "rded", "init__mipc": 8, "evaluate__seeds": [0]}
SAYS = {
    "squeeze": ["runtime.forward_images (now 32)", "squeeze.batch_size (now 50)"],
    "statistics": ["runtime.forward_images (now 32)"],
    "init": ["runtime.forward_images (now 32)"],
    "recover": ["runtime.groups_per_forward (now 2)", "recover.classes_per_group (now 4)"],
    "relabel": [
        "runtime.forward_images (now 32)", "relabel.page_images (now 20)", "relabel.batch_size (now 5)",
    ],
    "evaluate": [
        "runtime.forward_images (now 32)", "relabel.batch_size (now 5)", "relabel.page_images (now 20)",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("finished")))
    pipeline.ensure(tiny.experiment(**CHANGES), store, RUNTIME, pipeline.in_process(store, RUNTIME))
    return store


@pytest.fixture
def begun(store: Store) -> Store:
    """Without images and what comes after them."""
    for stage in ("statistics", "init"):
        mapper = pipeline.in_process(store, RUNTIME)
        pipeline.ensure(tiny.experiment(**CHANGES), store, RUNTIME, mapper, upto=stage)
    return store


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No convolution finds memory."""

    def conv2d(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 79 GiB ...")

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    return monkeypatch


def task_of(stage: str) -> pipeline.Task:
    return next(task for task in pipeline.tasks(tiny.experiment(**CHANGES)) if task.stage == stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", SAYS)
def test_the_error_names_what_to_lower(stage: str, finished: Store, full: pytest.MonkeyPatch) -> None:
    task = task_of(stage)
    unit = pipeline.units(task, RUNTIME)[0]
    with pytest.raises(OutOfMemory) as caught:
        list(pipeline.Worker(finished, RUNTIME).run(task, unit))
    text = str(caught.value)
    assert f"ran out (2.50 GiB more was wanted) in {task}, unit {unit}: lower " in text and "\n" not in text
    said = text.partition(": lower ")[2].partition(";")[0].split(" or ")
    assert said == SAYS[stage]
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    full.undo()
    assert list(pipeline.Worker(finished, RUNTIME).run(task, unit)), "it goes on where memory is found"


@pytest.mark.slow
def test_what_has_no_effect_or_is_at_its_least_is_not_named(
    finished: Store, full: pytest.MonkeyPatch
) -> None:
    experiment = tiny.experiment(**CHANGES, recover__group_images=5)
    task = next(t for t in pipeline.tasks(experiment) if t.stage == "recover")
    least = Runtime(device="cpu")
    with pytest.raises(OutOfMemory, match=r": lower recover\.group_images \(now 5\); what is finished"):
        list(pipeline.Worker(finished, least).run(task, pipeline.units(task, least)[0]))


@pytest.mark.slow
def test_forward_images_bounds_every_forward_that_records_no_graph(
    finished: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many images, a quarter of them in the statistics pass."""
    seen, real = set[int](), torch.nn.functional.conv2d

    def conv2d(images: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            seen.add(len(images))
        return real(images, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    small = replace(RUNTIME, forward_images=8)
    for stage, most in {"squeeze": 8, "statistics": 2, "init": 8, "relabel": 8, "evaluate": 8}.items():
        seen.clear()
        task = task_of(stage)
        list(pipeline.Worker(finished, small).run(task, pipeline.units(task, small)[0]))
        assert max(seen) == most, stage


def test_every_stage_has_its_fields() -> None:
    assert set(FIELDS) == set(pipeline.ROWS)


class Here:
    """A worker of the Broker, in this process."""

    node: str | None = None

    def __init__(self, store: Store) -> None:
        self._worker = pipeline.Worker(store, RUNTIME)

    async def run(self, task: Any, unit: str, until: float, /) -> AsyncGenerator[Any, None]:
        for item in self._worker.run(task, unit, until):
            yield item

    def kill(self) -> None:
        pass


@pytest.mark.slow
def test_the_broker_says_it_too_and_keeps_what_was_finished(begun: Store, full: pytest.MonkeyPatch) -> None:
    store, recover = begun, task_of("recover")
    chain = pipeline.tasks(tiny.experiment(**CHANGES))
    kept = {path for path in Path(store.root).rglob("*.safetensors")}

    async def build() -> None:
        broker = Broker(
            graph=pipeline,
            store=store,
            runtime=RUNTIME,
            spawn=lambda: Here(store),
            label=None,  # type: ignore[arg-type]
        )
        try:
            await broker.build(recover, chain)
        finally:
            await broker.close()

    with pytest.raises(
        UnitFailed, match=r"recover-\w+, unit groups-\S+: OutOfMemory: .* lower runtime\.groups"
    ) as caught:
        asyncio.run(build())
    assert not caught.value.lost, "the unit's own fault: it is not tried again"
    assert {path for path in Path(store.root).rglob("*.safetensors")} == kept
    full.undo()
    asyncio.run(build())
    assert pipeline.is_hit(recover, store, RUNTIME)
