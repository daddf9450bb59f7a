"""Files as bytes: their formats and headers, atomic writes, and what can be wrong with one."""

import contextlib
import errno
import functools
import io
import json
import os
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from pyarrow import fs

Tensors = dict[str, torch.Tensor]
Meta = dict[str, Any]

_META = "edc_ray"  # where a file's header keeps the meta JSON
_PARQUET: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
GROUP_ROWS = 16  # of a table that are read together
_PARQUET |= {"row_group_size": GROUP_ROWS, "write_page_checksum": True}
_FULL = "make room there: `edc-ray store gc` removes what no sweep needs"
ADVICE = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL}
ADVICE |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable")
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
    """The store cannot be read or written: disk full, no permission, no network.

    hopeless: no other unit can do better before somebody has done something about it.
    """

    def __init__(self, stage: str, unit: str, path: str, code: int | None, why: str) -> None:
        super().__init__(code, why)
        self.args = (stage, unit, path, code, why)  # what pickle gives back to __init__
        self.stage, self.unit, self.path, self.why = stage, unit, path, why
        self.hopeless = code in ADVICE

    @classmethod
    def at(cls, relpath: str, path: str, error: OSError) -> "StoreError":
        """What went wrong with <stage>-<key>/<unit>..., or with another file of the store."""
        folder, _, file = relpath.rpartition("/")
        stage, unit = folder.split("/")[0].rpartition("-")[0], file.split(".")[0]
        return cls(stage, unit, path, error.errno, error.strerror or str(error))

    def __str__(self) -> str:
        advice = f"; {ADVICE[self.errno]}, then the same command goes on" if self.errno in ADVICE else ""
        return f"stage {self.stage or '-'}, unit {self.unit}: {self.why} ({self.path}){advice}"


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


def unpack(data: bytes) -> tuple[Tensors, Meta]:
    """What `pack` was given. Raises ValueError where the bytes are of no such file."""
    try:
        return safetensors.torch.load(data), read_meta(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"is no file of tensors: {error}") from error


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


def write_remote(system: fs.FileSystem, path: str, data: bytes, first: bool) -> None:
    """One put, which shows the whole file or none."""
    if first and system.get_file_info(path).type != fs.FileType.NotFound:
        return
    if system.type_name not in ("s3", "gcs", "abfs"):  # where folders are only names
        system.create_dir(os.path.dirname(path), recursive=True)
    with system.open_output_stream(path, compression=None) as stream:
        stream.write(data)


def read_file(system: fs.FileSystem, path: str) -> bytes | None:
    """None without the file."""
    with contextlib.suppress(FileNotFoundError), system.open_input_file(path) as file:
        return cast(bytes, file.read())
    return None


def delete_file(system: fs.FileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(path)


def append_local(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def pack_pt(content: object) -> bytes:
    """Tensors, numbers, text, and lists and dictionaries of them, for `torch.load(weights_only=True)`. Only
    for people: nothing here reads it again between stages.
    """
    sink = io.BytesIO()
    torch.save(content, sink)
    return sink.getvalue()


def save_file(path: str, data: bytes) -> None:
    """A file for people, anywhere on this machine: atomic, with the folders that it needs."""
    write_local(os.path.abspath(os.path.expanduser(path)), data, first=False)


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
