"""Real photographs at 224 px through every stage, with tiny settings."""

from pathlib import Path

import pytest
import torch

from edc_ray import cli
from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime, override
from edc_ray.core import data
from edc_ray.pipeline import ensure, graph, in_process

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "imagenette224"
CHANGES = {
    "dataset.name": "parquet", "dataset.path": str(FOLDER), "dataset.size_px": 224, "dataset.limit": 60,
    "dataset.normalization": "imagenet", "split.val": 0.1,
    "squeeze.observers": ["resnet10_w8", "convnet_w16_d2"], "squeeze.epochs": 1, "squeeze.batch_size": 16,
    "statistics.patch": 16, "statistics.shard_images": 32, "recover.iterations": 2,
    "relabel.batch_size": 5, "relabel.page_images": 10,
    "evaluate.student": "convnet_w16_d2", "evaluate.epochs": 2, "evaluate.reports": 1,
}  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/data/imagenette224"),
]


def test_the_command_condenses_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = CHANGES | {"runtime.store": str(tmp_path / "store"), "runtime.device": "cpu"}
    words = [word for path, value in changes.items() for word in ("--set", f"{path}={_text(value)}")]
    assert cli.main(["condense", "digits/ipc1", *words]) == 0
    said = capsys.readouterr().out
    assert "evaluate   1/1 units" in said and "random_real" in said and "whole data" in said


def _text(value: object) -> str:
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)


def test_shards_of_photographs_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exp = override(Experiment(), CHANGES | {"squeeze.observers": ["convnet_w16_d2"]})
    how, made = Runtime(device="cpu", threads=2), []
    monkeypatch.setattr(data, "SHARD_BYTES", 50 * 3 * 224**2)
    for limit in (data.IN_MEMORY_BYTES, 0):
        monkeypatch.setattr(data, "IN_MEMORY_BYTES", limit)
        graph.looked.cache_clear()
        store = Store(str(tmp_path / str(limit)))
        first, *rest = ensure(exp, store, how, in_process(store, how), upto="statistics")
        rest += ensure(exp, store, how, in_process(store, how), upto="init")[1:]
        assert first.shards == ((0, 0) if limit else (2, 2))
        made.append([store.artifact(task.stage, task.key).read("all")[0] for task in rest])
    graph.looked.cache_clear()
    assert len(made[0]) == 3
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=0)
