"""parquet: a folder of Parquet files with encoded images. No file is ever in memory as a whole.

A test.parquet without rows says that there are no test images: then nothing can be read on test.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from torch import Tensor

from edc_ray.config import Dataset
from edc_ray.core.data.source import Item, Listing, Part, bad, disagreement, hash_files, root_of

EXPECTED = "a folder with train*.parquet and test*.parquet, columns image (encoded bytes) and label (0, 1...)"
BATCH = 256  # images that are read together


def listing(cfg: Dataset) -> Listing:
    train, test = _files(cfg)
    names = _same_names(train + test)
    labels = {file: _labels(file) for file in train + test}
    if not sum(len(labels[file]) for file in train):
        raise bad(train[0], "has no rows")
    of_train = torch.cat([labels[file] for file in train])
    classes = len(names) or int(of_train.max()) + 1
    for file, values in labels.items():
        wrong = values[(values < 0) | (values >= classes)].tolist()
        if wrong:
            why = "as its metadata names the classes" if names else "as in train"
            raise bad(file, f"has the label {wrong[0]}; must be 0 to {classes - 1}, {why}")
    for files, what in ((train, "training"), (test, "test")):
        seen = torch.cat([labels[file] for file in files]).unique().tolist()
        if len(seen) < classes and (seen or files is train):
            gap = next(label for label, found in enumerate([*seen, None]) if label != found)
            raise bad(train[0].parent, f"has no {what} image with the label {gap} of 0 to {classes - 1}")
    one, other = (_part({file: labels[file] for file in files}) for files in (train, test))
    return Listing(names or tuple(map(str, range(classes))), one, other, named=bool(names))


def fingerprint(cfg: Dataset) -> str:
    train, test = _files(cfg)
    return hash_files(train[0].parent, [file.name for file in train + test])


def _files(cfg: Dataset) -> tuple[list[Path], list[Path]]:
    root = root_of(cfg, EXPECTED)
    train, test = sorted(root.glob("train*.parquet")), sorted(root.glob("test*.parquet"))
    if not train or not test:
        raise bad(root, f"has no {'test' if train else 'train'}*.parquet; must be {EXPECTED}")
    return train, test


def _schema(file: Path) -> pa.Schema:
    try:
        schema = pq.read_schema(file)
    except pa.ArrowInvalid:
        raise bad(file, "is not a Parquet file") from None
    types = {field.name: field.type for field in schema}
    image, label = types.get("image", pa.null()), types.get("label", pa.null())
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)) or not pa.types.is_integer(label):
        found = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise bad(file, f"has the columns {found}; needs image (binary: encoded) and label (integer)")
    return schema


def _same_names(files: Sequence[Path]) -> tuple[str, ...]:
    """The class names of the first training file; a file that names them too must have the same order."""
    first, *others = [(file, _names(file)) for file in files]
    for file, names in others:
        if names and names != first[1]:
            odd, mine, its = disagreement(names, first[1])
            why = f"names other classes than {first[0].name}: from label {odd} on {mine}, not {its}"
            raise bad(file, why)
    return first[1]


def _names(file: Path) -> tuple[str, ...]:
    """The classes that the schema metadata name; none where it does not."""
    text = (_schema(file).metadata or {}).get(b"classes", b"[]")
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise bad(file, "needs a JSON list of names as its metadata `classes`")
    return tuple(names)


def _labels(file: Path) -> Int[Tensor, " n"]:
    column = pq.read_table(file, columns=["label"])["label"]
    if column.null_count:
        raise bad(file, f"has {column.null_count} rows without a label")
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def _part(labels: dict[Path, Tensor]) -> Part:
    every = torch.cat(list(labels.values()))
    sizes = {file: len(values) for file, values in labels.items()}
    return Part(every, torch.arange(len(every)), partial(_images, sizes))


def _images(sizes: dict[Path, int], rows: Sequence[int]) -> Iterator[Item]:
    """rows: ascending, counted over all the files."""
    left, first = deque(rows), 0
    for file, size in sizes.items():
        mine = deque[int]()
        while left and left[0] < first + size:
            mine.append(left.popleft() - first)
        if mine:
            yield from _of_file(file, mine)
        first += size


def _of_file(file: Path, left: deque[int]) -> Iterator[Item]:
    """Reads only the row groups that hold one of the rows, a few rows at a time."""
    with pq.ParquetFile(file) as parquet:
        end = 0
        for group in range(parquet.num_row_groups):
            first, end = end, end + parquet.metadata.row_group(group).num_rows
            if not left or left[0] >= end:
                continue
            for batch in parquet.iter_batches(BATCH, row_groups=[group], columns=["image"]):
                while left and left[0] < first + len(batch):
                    row = left.popleft()
                    yield f"{file.name}, row {row}", batch.column(0)[row - first].as_py() or b""
                first += len(batch)
