"""The table that a diagnosis leaves."""

import json
from typing import Any

import pyarrow as pa
import torch

from edc_ray.pipeline.types import Output, Tensors

# quantity: what the value is, in the words of a figure's axis. series: of what. x, y: where. error: standard
# error inside the unit, where the value is a mean over draws.
COLUMNS = {
    "quantity": pa.string(), "series": pa.string(),
    "x": pa.float64(), "y": pa.float64(), "value": pa.float64(), "error": pa.float64(),
}  # fmt: skip
NORM, LOSS, RELATIVE = "Hessian norm", "loss", "Hessian norm over the loss"


def points(total: int, count: int) -> list[int]:
    """`count` of 1 ... total, evenly spaced; the last is total."""
    return sorted({max(1, round(total * (i + 1) / count)) for i in range(count)})


class Rows:
    """What was found so far; part of every checkpoint."""

    def __init__(self, saved: Tensors | None) -> None:
        kept = json.loads(bytes(saved["rows"].tolist())) if saved else []
        self.found: list[tuple[str | float, ...]] = [tuple(row) for row in kept]

    def add(
        self, quantity: str, series: str, value: Any, error: float = 0.0, x: float = 0.0, y: float = 0.0
    ) -> None:
        self.found.append((quantity, series, float(x), float(y), float(value), float(error)))

    def pack(self) -> Tensors:
        return {"rows": torch.tensor(list(json.dumps(self.found).encode()), dtype=torch.uint8)}

    def output(self) -> Output:
        columns = zip(*self.found, strict=True)
        arrays = [pa.array(values, kind) for values, kind in zip(columns, COLUMNS.values(), strict=True)]
        return Output(table=pa.table(arrays, names=list(COLUMNS)))
