"""A page of soft labels as an Arrow table: one row is one student batch (ray.md 3.4)."""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from edc_ray.core.relabel import Page
from edc_ray.core.views import View

STORED = {"ids": np.int32, "box": np.int16, "flip": np.bool_, "partner": np.int32, "mix_box": np.int16}
RESTORED = {
    "ids": torch.int64,
    "box": torch.int64,
    "flip": torch.bool,
    "partner": torch.int64,
    "mix_box": torch.int64,
}


def table_of(page: Page) -> pa.Table:
    """step int32; the view's columns and the fp16 logits as bytes (25 bytes an image beside the logits)."""
    columns: dict[str, list[object]] = {
        "step": list(range(page.first_step, page.first_step + len(page.views)))
    }
    for name, dtype in STORED.items():
        columns[name] = [getattr(view, name).numpy().astype(dtype).tobytes() for view in page.views]
    columns["logits"] = [logits.numpy().tobytes() for logits in page.logits]
    schema = pa.schema([("step", pa.int32()), *((name, pa.large_binary()) for name in (*STORED, "logits"))])
    return pa.table(columns, schema=schema)


def read_page(table: pa.Table) -> Page:
    """The page that `table_of` stored."""
    rows = table.to_pylist()
    views = tuple(View(**{name: _tensor(row[name], name) for name in STORED}) for row in rows)
    logits = tuple(
        torch.from_numpy(np.frombuffer(row["logits"], np.float16).copy()).unflatten(0, (len(view.ids), -1))
        for row, view in zip(rows, views, strict=True)
    )
    return Page(rows[0]["step"], views, logits)


def _tensor(raw: bytes, name: str) -> Tensor:
    flat = torch.from_numpy(np.frombuffer(raw, STORED[name]).copy()).to(RESTORED[name])
    return flat.unflatten(0, (-1, 4)) if name.endswith("box") else flat
