"""Files as bytes: their formats and headers, the atomic local write, and what can be wrong with one."""

import contextlib
import functools
import json
import os
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

Tensors = dict[str, torch.Tensor]
Meta = dict[str, Any]

_META = "edc_ray"  # where a file's header keeps the meta JSON
_PARQUET: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
GROUP_ROWS = 16  # of a table that are read together
_PARQUET |= {"row_group_size": GROUP_ROWS, "write_page_checksum": True}
to_json = functools.partial(json.dumps, sort_keys=True, allow_nan=False)


class Missing(KeyError):
    """There is no finished file of this unit."""

    def __init__(self, stage: str, key: str, unit: str, path: str) -> None:
        super().__init__(stage, key, unit, path)
        self.stage, self.key, self.unit, self.path = stage, key, unit, path

    def __str__(self) -> str:
        return f"{self.stage}-{self.key}, unit {self.unit}: no such file in {self.path}"


class Damaged(Exception):
    """A file has other bytes than were written. Unit "manifest" is manifest.json."""

    def __init__(self, stage: str, key: str, unit: str, path: str, why: str) -> None:
        super().__init__(stage, key, unit, path, why)
        self.stage, self.key, self.unit, self.path, self.why = stage, key, unit, path, why

    def __str__(self) -> str:
        return f"{self.stage}-{self.key}, unit {self.unit}: {self.path} {self.why}"


class StoreError(OSError):
    """The store cannot be read or written: disk full, no permission, no network."""

    def __init__(self, stage: str, unit: str, path: str, code: int | None, why: str) -> None:
        super().__init__(code, why)
        self.args = (stage, unit, path, code, why)  # what pickle gives back to __init__
        self.stage, self.unit, self.path, self.why = stage, unit, path, why

    def __str__(self) -> str:
        return f"stage {self.stage or '-'}, unit {self.unit}: {self.why} ({self.path})"


class UnitFile(NamedTuple):
    """A finished file; `path` is relative to the root, `sha` is 12 digits, or all 64 once it is committed."""

    name: str
    path: str
    sha: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of a finished unit, plain and small; `file` is relative to the artifact's folder.

    work: what its worker has counted and not told yet, for metrics; not in the file.
    """

    unit: str
    file: str
    sha256: str
    bytes: int
    meta: Meta
    work: dict[str, int] = field(default_factory=dict, compare=False)


def pack(tensors: Tensors, meta: Meta) -> bytes:
    copies = {k: t.detach().cpu().clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
    return safetensors.torch.save(copies, {_META: to_json(meta)})  # without copies it refuses shared memory


def read_meta(data: bytes) -> Meta:
    """From the header of either format; safetensors: length in 8 bytes, little-endian, then JSON."""
    if data[:4] == b"PAR1":
        return unpack_meta(pq.read_schema(pa.BufferReader(data)))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return cast(Meta, json.loads(header["__metadata__"][_META]))


def unpack_meta(schema: pa.Schema) -> Meta:
    """Of a table."""
    return cast(Meta, json.loads(schema.metadata[_META.encode()]))


def write_local(path: str, data: bytes, first: bool) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            (os.link if first else os.replace)(temporary, path)
        except OSError as error:
            if not isinstance(error, FileExistsError):  # no hard links here: replace what is not there
                os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def pack_table(table: pa.Table, meta: Meta) -> bytes:
    """Parquet with page checksums; uncompressed, as the bulk of our rows is fp16 logits."""
    tagged = table.replace_schema_metadata({**(table.schema.metadata or {}), _META: to_json(meta)})
    sink = pa.BufferOutputStream()
    pq.write_table(tagged, sink, **_PARQUET)
    return cast(bytes, sink.getvalue().to_pybytes())


def unpack_table(data: bytes) -> pa.Table:
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    rest = {key: value for key, value in table.schema.metadata.items() if key != _META.encode()}
    return table.replace_schema_metadata(rest)
