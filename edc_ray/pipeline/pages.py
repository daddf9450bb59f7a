"""A page of soft labels as an Arrow table: one row is one student batch (ray.md 3.4)."""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from edc_ray.config import Relabel
from edc_ray.core.relabel import Page
from edc_ray.core.views import View

STORED = {  # columns of a view: type on disk, type in memory
    "ids": (np.int32, torch.int64),
    "ops": (np.int8, torch.int64),
    "magnitudes": (np.int8, torch.int64),
    "box": (np.int16, torch.int64),
    "flip": (np.bool_, torch.bool),
    "partner": (np.int32, torch.int64),
    "mix_box": (np.int16, torch.int64),
    "lam": (np.float32, torch.float32),
}
FLAT = ("ids", "flip", "partner", "lam")  # one value an image


def view_bytes(cfg: Relabel) -> int:
    """Of one image in a stored view, beside its logits."""
    widths = {"ops": cfg.randaugment_ops, "magnitudes": cfg.randaugment_ops, "box": 4, "mix_box": 4}
    return sum(np.dtype(dtype).itemsize * widths.get(name, 1) for name, (dtype, _) in STORED.items())


def table_of(page: Page) -> pa.Table:
    """step int32; the view's columns and the fp16 logits as bytes."""
    columns: dict[str, list[object]] = {
        "step": list(range(page.first_step, page.first_step + len(page.views)))
    }
    for name, (dtype, _) in STORED.items():
        columns[name] = [getattr(view, name).numpy().astype(dtype).tobytes() for view in page.views]
    columns["logits"] = [logits.numpy().tobytes() for logits in page.logits]
    schema = pa.schema([("step", pa.int32()), *((name, pa.large_binary()) for name in (*STORED, "logits"))])
    return pa.table(columns, schema=schema)


def read_page(table: pa.Table) -> Page:
    """The page that `table_of` stored."""
    rows = table.to_pylist()
    views = tuple(_view(row) for row in rows)
    logits = tuple(
        torch.from_numpy(np.frombuffer(row["logits"], np.float16).copy()).unflatten(0, (len(view.ids), -1))
        for row, view in zip(rows, views, strict=True)
    )
    return Page(rows[0]["step"], views, logits)


def _view(row: dict[str, bytes]) -> View:
    flat: dict[str, Tensor] = {
        name: torch.from_numpy(np.frombuffer(row[name], stored).copy()).to(restored)
        for name, (stored, restored) in STORED.items()
    }
    n = len(flat["ids"])
    return View(**{name: x if name in FLAT else x.reshape(n, len(x) // n) for name, x in flat.items()})
