"""What each stage computes for one small experiment, in a few numbers: tests/golden/stages.json.

`python -m tests.golden_update` writes the file anew: after the version of a stage was raised that computes
something else now. tests/test_golden.py compares.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edc_ray.artifacts import Store
from edc_ray.config import Experiment, Runtime, override
from edc_ray.pipeline import STAGES, Task, ensure, in_process
from edc_ray.pipeline.pages import read_page

FILE = Path(__file__).parent / "golden" / "stages.json"
CHANGES = {
    "dataset.limit": 200, "dataset.size_px": 8, "split.val": 0.3,
    "squeeze.observers": ["convnet_w16_d2", "vgg5_w16"], "squeeze.epochs": 2, "statistics.shard_images": 64,
    "init.ipc": 2, "recover.iterations": 4, "recover.classes_per_group": 4, "recover.flatness.kind": "logits",
    "relabel.batch_size": 8, "relabel.page_images": 32,
    "evaluate.student": "convnet_w16_d2", "evaluate.epochs": 4, "evaluate.reports": 1,
}  # fmt: skip
WAVES = 8


def summary(tensor: Tensor) -> list[float]:
    """Mean, standard deviation, and mean products with fixed cosines, which see every place."""
    flat = tensor.double().flatten()
    at = torch.arange(len(flat), dtype=torch.float64)
    waves = [float((flat * torch.cos(k * at)).mean()) for k in range(1, WAVES + 1)]
    return [float(flat.mean()), float(flat.std(correction=0)), *waves]


def main_tensors(task: Task, store: Store) -> dict[str, Tensor]:
    artifact = store.artifact(task.stage, task.key)
    match task.stage:
        case "squeeze":
            found = {name: artifact.read(name)[0]["logits"] for name in task.experiment.squeeze.observers}
            return found | {"all": artifact.read("all")[0]["logits"]}
        case "relabel":
            page = read_page(artifact.read_table("page-00001")[0])
            names = ("ids", "box", "flip", "partner", "mix_box")
            views = {name: torch.cat([getattr(view, name) for view in page.views]) for name in names}
            return views | {"logits": torch.cat(page.logits)}
        case "statistics":
            sums = artifact.read("all")[0]
            ordered = sorted(sums)
            return {name: sums[name] for name in (*ordered[:3], *ordered[-3:])}
        case "evaluate":
            return artifact.read("student")[0]
        case _:
            return artifact.read("all")[0]


def stages() -> dict[str, dict[str, Any]]:
    """Stage -> its version and the summaries of its main tensors."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store, runtime = Store(folder), Runtime(labels="stream", device="cpu")
        found = ensure(override(Experiment(), CHANGES), store, runtime, in_process(store, runtime))
        values = {t.stage: {k: summary(v) for k, v in main_tensors(t, store).items()} for t in found}
    return {stage: {"version": STAGES[stage].version, "values": values[stage]} for stage in STAGES}


def write() -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(stages(), indent=1) + "\n")


if __name__ == "__main__":
    write()
