"""Stored labels within their budget, in a real store."""

import os
import time

import pytest

from edc_ray import pipeline
from edc_ray.artifacts import Store, every_artifact
from tests import tiny


def fill(store: Store, name: str, bytes_: int, stage: str = "relabel") -> None:
    artifact = store.artifact(stage, name * 12)
    store.put(f"{artifact.folder}/page-00000.{name * 12}.parquet", b"x" * bytes_)
    store.put(f"{artifact.folder}/logs/page-00000.log", b"")
    old = time.time() - 1000 + ord(name)  # "a" is the oldest
    for folder, _, files in os.walk(store.path(artifact.folder)):
        for file in files:
            os.utime(os.path.join(folder, file), (old, old))


@pytest.mark.parametrize(
    ("limit", "held", "used", "gone"),
    [
        (300, "", {}, ""),
        (299, "", {}, "a"),
        (200, "", {"a": 2, "b": 1}, "c"),
        (100, "", {"a": 2, "b": 1}, "cb"),
        (100, "c", {"a": 2, "b": 1}, "ba"),
        (0, "abc", {}, ""),
        (0, "", {}, "abc"),
    ],
)
def test_the_least_recently_used_go_first(
    store: Store, limit: int, held: str, used: dict[str, int], gone: str
) -> None:
    for name in "abc":
        fill(store, name, 100)
    fill(store, "d", 1000, "recover")
    places = {name * 12: place for name, place in used.items()}
    assert pipeline.evict(store, limit, {name * 12 for name in held}, places) == [name * 12 for name in gone]
    left = {artifact.key[0] for artifact in every_artifact(store)}
    assert left == set("abcd") - set(gone)


def test_evicted_labels_are_made_again_with_the_same_bits(store: Store) -> None:
    exp, how = tiny.experiment(evaluate__seeds=[0]), tiny.runtime(labels="stream")
    before = tiny.in_process(store, exp, how)
    (labels,) = [task for task in pipeline.tasks(exp) if task.stage == "relabel"]
    assert pipeline.evict(store, 0, (), {}) == [labels.key]
    assert not os.path.exists(store.path(str(labels)))
    tiny.assert_same(tiny.in_process(store, exp, how), before)
