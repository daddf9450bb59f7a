"""The store: the only module that names, writes, checks and commits files.

    <root>/store.json                                         {"schema": 1}
    <root>/<stage>-<key>/<unit>.<12 hex>.safetensors|parquet  finished units, named by the hash of their bytes
    <root>/<stage>-<key>/checkpoints/<unit>.<n>.<12 hex>.safetensors
    <root>/<stage>-<key>/manifest.json                        last; without it the artifact does not exist

A file appears whole: written beside and moved, or one put to an object store; and every read compares it with
the hash in its name. No pickle, no rename of folders, no lock.
All that touches the store may raise StoreError, and ConfigError when what lies there has another schema. What
may pass by itself (patience.py) is waited for, once the store has been seen.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from pyarrow import fs

from edc_ray.artifacts.alone import alive, locked
from edc_ray.artifacts.files import (
    GROUP_ROWS,
    Damaged,
    Meta,
    Missing,
    Receipt,
    StoreError,
    Tensors,
    UnitFile,
    append_local,
    delete_file,
    pack,
    pack_table,
    read_file,
    read_meta,
    to_json,
    unpack_meta,
    unpack_table,
    write_local,
    write_remote,
)
from edc_ray.artifacts.patience import PATIENCE_SECONDS, patiently
from edc_ray.config import ConfigError, check_uri, digest

T = TypeVar("T")
SCHEMA = 1
_STAMP = b'{"schema": 1}'  # of store.json
_LEGAL = f"must have schema {SCHEMA}: use another store, or the version of edc-ray that wrote this one"
_NAME = r"[A-Za-z0-9_=-]+"
_FILE = re.compile(rf"({_NAME})(?:\.[0-9]+)?\.([0-9a-f]{{12}})\.(?:safetensors|parquet)")
_log = logging.getLogger(__name__)


class Store:
    """A folder or a URI of pyarrow.fs, not touched before the first use. Raises ConfigError for a bad URI.

    patience: seconds in which it may come back once it has been seen; a wrong name is told at once.
    """

    def __init__(self, root: str, patience: float = PATIENCE_SECONDS) -> None:
        check_uri("runtime.store", root)
        path = os.path.abspath(os.path.expanduser(root))
        try:
            self._fs, base = fs.FileSystem.from_uri(root) if "://" in root else (fs.LocalFileSystem(), path)
        except (ValueError, NotImplementedError, OSError) as error:
            raise ConfigError("runtime.store", root, f"must be a folder or a URI: {error}") from error
        self.local = isinstance(self._fs, fs.LocalFileSystem)
        self.root, self._base = base if self.local else root, base.rstrip("/")
        self._open = False  # it has been seen, and its schema is ours
        self._patience = patience

    def artifact(self, stage: str, key: str) -> "Artifact":
        return Artifact(self, stage, key)

    def path(self, *names: str) -> str:
        """The local path or the URI of something under the root."""
        base, mark, query = (self.root, "", "") if self.local else self.root.partition("?")
        return "/".join([base.rstrip("/"), *names]) + mark + query

    def folder(self, name: str) -> str:
        """`path(name)`, for the files of other programs; a local folder is made, others are only names."""
        make = functools.partial(os.makedirs, self._at(name), exist_ok=True) if self.local else lambda: None
        self._try(name, make, create=True)
        return self.path(name)

    @property
    def standing(self) -> str:
        """Of a local root the part of its path that is there; else the root."""
        place = self.root
        while self.local and not os.path.lexists(place):
            place = os.path.dirname(place)
        return place

    def check(self) -> None:
        """Raises ConfigError for an unusable root. Writes nothing, so a bucket's rights show later."""
        place = self.standing
        if self.local and not (os.path.isdir(place) and os.access(place, os.R_OK | os.W_OK | os.X_OK)):
            raise ConfigError("runtime.store", self.root, f"{place} is not a folder that one may write to")
        try:
            self._check_schema(create=False)
        except OSError as error:
            raise ConfigError("runtime.store", self.root, f"cannot be read: {error}") from error

    def exists(self, relpath: str) -> bool:
        info = self._try(relpath, lambda: self._fs.get_file_info(self._at(relpath)))
        return bool(info.type != fs.FileType.NotFound)

    def get(self, relpath: str) -> bytes | None:
        """None without the file."""
        return self._try(relpath, lambda: read_file(self._fs, self._at(relpath)))

    def put(self, relpath: str, data: bytes, first: bool = False) -> None:
        """Atomic. `first` keeps a file that exists: always on a local disk, nearly so on an object store."""
        remote = functools.partial(write_remote, self._fs)
        write: Callable[[str, bytes, bool], None] = write_local if self.local else remote
        self._try(relpath, lambda: write(self._at(relpath), data, first), create=True)

    @contextlib.contextmanager
    def alone(self, relpath: str) -> Iterator[None]:
        """Be the only process in this block. Raises BlockingIOError when another is in it (alone.py)."""
        self.folder(os.path.dirname(relpath))
        with locked(self._at(relpath)) if self.local else alive(self, relpath):
            yield

    def mend_lines(self, relpath: str) -> None:
        """Cut a last line that a killed writer left half, and drop the lock it held. Call it `alone`."""
        if not self.local:  # an object is written whole
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._at(relpath)}.lock")
        with contextlib.suppress(FileNotFoundError), open(self._at(relpath), "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    def append_line(self, relpath: str, line: Meta) -> None:
        """One line of JSON at the end. Only on a local disk no line of another process can be lost."""
        data = to_json(line).encode() + b"\n"
        if not self.local:
            return self.put(relpath, (self.get(relpath) or b"") + data)
        self._try(relpath, lambda: append_local(self._at(relpath), data), create=True)

    def read_lines(self, relpath: str) -> list[dict[str, Any]]:
        """[] without the file. A line that a crash has torn is skipped with a warning."""
        lines = []
        for line in (self.get(relpath) or b"").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                _log.warning("%s: skipped a torn line %r", self.path(relpath), line[:80])
        return lines

    def _at(self, relpath: str) -> str:
        return f"{self._base}/{relpath}"

    def _try(self, relpath: str, act: Callable[[], T], create: bool = False) -> T:
        """Around all that touches the store: the schema is checked before, what may pass is waited for, and
        errors get names.
        """
        assert not relpath.startswith("/") and ".." not in relpath.split("/"), relpath

        def once() -> T:
            if not self._open and relpath != "store.json":
                self._check_schema(create)
            self._check_there()
            try:
                return act()
            finally:
                self._check_there()

        try:
            return patiently(once, self._patience if self._open else 0.0)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError.at(relpath, self.path(relpath), error) from error

    def _check_there(self) -> None:
        """A disk or a share that has gone away is no empty store, and no place to write to."""
        if self.local and self._open and not os.path.exists(self._at("store.json")):
            raise OSError(errno.ESTALE, "the store is not there any more")

    def _check_schema(self, create: bool) -> None:
        if create:
            self.put("store.json", _STAMP, first=True)
        stamp = self.get("store.json")
        if stamp not in (None, _STAMP):
            raise ConfigError("runtime.store", f"{self.path('store.json')}: {stamp!r}", _LEGAL)
        self._open = stamp is not None

    def listed(self, folder: str, deep: bool = False) -> list[fs.FileInfo]:
        """What lies there; with deep also in its folders. [] without it."""
        select = functools.partial(fs.FileSelector, allow_not_found=True, recursive=deep)
        return self._try(folder, lambda: self._fs.get_file_info(select(self._at(folder).rstrip("/"))))

    def drop(self, *relpaths: str) -> None:
        """Delete files; those that are not there are no error."""
        for relpath in relpaths:
            self._try(relpath, functools.partial(delete_file, self._fs, self._at(relpath)))


class Artifact:
    """A handle of `<root>/<stage>-<key>/`. Nothing is cached: what it says is what lies there now."""

    def __init__(self, store: Store, stage: str, key: str) -> None:
        assert re.fullmatch(_NAME, stage) and re.fullmatch("[0-9a-f]{12}", key), (stage, key)
        self.store, self.stage, self.key, self.folder = store, stage, key, f"{stage}-{key}"

    def manifest(self) -> Meta | None:
        """None = not committed. Raises Damaged with the unit "manifest": `remove` that and commit again."""
        path = f"{self.folder}/manifest.json"
        if (data := self.store.get(path)) is None:
            return None
        try:
            manifest = cast(Meta, dict(json.loads(data)))
            whole = manifest.pop("digest", None) == digest(manifest)
        except (ValueError, TypeError):
            manifest, whole = {}, False
        if manifest.get("schema", SCHEMA) != SCHEMA:
            raise ConfigError("runtime.store", f"{self.store.path(path)}: {manifest['schema']}", _LEGAL)
        if not whole:
            raise self._damaged("manifest", path, "has other bytes than were written")
        return manifest

    def units(self) -> dict[str, UnitFile]:
        """Finished units, committed or not. Of two files the manifest's counts, else the first by name."""
        files = self._files("")
        paths = {file.path for file in files}
        committed = [file for file in self._committed(self.manifest()) if file.path in paths]
        best_last = sorted([*reversed(files), *committed], key=lambda file: file.name)
        return {file.name: file for file in best_last}

    def has(self, unit: str) -> bool:
        """Whether there is a finished file of the unit."""
        return bool(self._files("", unit))

    def write(self, unit: str, tensors: Tensors, meta: Meta) -> Receipt:
        """Tensors of any dtype and device, and finite JSON. A file of the unit with other bits stays too."""
        return self._write(unit, pack(tensors, meta), ".safetensors")

    def write_table(self, unit: str, table: pa.Table, meta: Meta) -> Receipt:
        """Like `write`, for rows; uncompressed, as the bulk of them is fp16 logits."""
        return self._write(unit, pack_table(table, meta), ".parquet")

    def read(self, unit: str) -> tuple[Tensors, Meta]:
        """As written, on the CPU. Reads raise Missing, or Damaged: `remove` the unit and build it anew."""
        return next(self.read_each([unit]))

    def read_each(self, units: Iterable[str]) -> Iterator[tuple[Tensors, Meta]]:
        """`read` of each, in order, after one look at the folder: there may be thousands."""
        files = self.units()
        for unit in units:
            data = self._load(self._of(unit, files))
            yield safetensors.torch.load(data), read_meta(data)

    def read_table(self, unit: str) -> tuple[pa.Table, Meta]:
        return next(self.read_tables([unit]))

    def read_tables(self, units: Iterable[str]) -> Iterator[tuple[pa.Table, Meta]]:
        """`read_table` of each, as `read_each`."""
        files = self.units()
        for unit in units:
            data = self._load(self._of(unit, files))
            yield unpack_table(data), read_meta(data)

    def read_rows(self, file: UnitFile, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Rows of a table, in order, without reading the others: checked by the checksums of their pages."""
        groups = sorted({row // GROUP_ROWS for row in rows})
        place = {group: GROUP_ROWS * i for i, group in enumerate(groups)}
        found = self._table(file, lambda table: table.read_row_groups(groups, columns=list(columns)))
        return found.take([place[row // GROUP_ROWS] + row % GROUP_ROWS for row in rows])

    def table_meta(self, file: UnitFile) -> Meta:
        """What `write_table` was told, without reading the rows."""
        return self._table(file, lambda table: unpack_meta(table.schema_arrow))

    def _table(self, file: UnitFile, read: Callable[[pq.ParquetFile], T]) -> T:
        def opened() -> T:
            with self.store._fs.open_input_file(self.store._at(file.path)) as raw:
                return read(pq.ParquetFile(raw, page_checksum_verification=True))

        try:
            return self.store._try(file.path, opened)
        except (pa.ArrowException, StoreError):
            self._load(file)  # says what is damaged
            raise

    def receipt(self, unit: str) -> Receipt:
        """What `write` returned, made again from the verified file."""
        return self.receipts([unit])[unit]

    def receipts(self, units: Iterable[str]) -> dict[str, Receipt]:
        """`receipt` of each, after one look at the folder."""
        files, found = self.units(), {}
        for unit in units:
            file = self._of(unit, files)
            data, name = self._load(file), file.path.rpartition("/")[2]
            found[unit] = Receipt(unit, name, hashlib.sha256(data).hexdigest(), len(data), read_meta(data))
        return found

    def remove(self, unit: str) -> None:
        """Drop a damaged unit, and first the manifest: the artifact does not exist any more."""
        self.store.drop(f"{self.folder}/manifest.json", *(file.path for file in self._files("", unit)))

    def commit(self, manifest: Meta) -> Meta:
        """Write manifest.json, which makes the artifact exist; returns the manifest in force.

        It has `units`: {unit: {"file", "sha256", "bytes", ...}}, as in Receipt. The first manifest stays
        (losing that race is success) and later ones only add units: what is committed keeps its bits.
        """
        old, paths = self.manifest(), {file.path for file in self._files("")}
        new = cast(Meta, json.loads(to_json({**manifest, "schema": SCHEMA})))
        kept = [file.name for file in self._committed(old) if file.path in paths]
        new["units"] |= {unit: old["units"][unit] for unit in kept if old}
        for file in self._committed(new):
            if file.path not in paths:
                raise Missing(self.stage, self.key, file.name, self.store.path(file.path))
        if old and old["units"] == new["units"]:
            return old
        data = to_json({**new, "digest": digest(new)}, indent=1).encode()
        self.store.put(f"{self.folder}/manifest.json", data, first=not old)
        return new if old or self.manifest() == new else self.commit(manifest)  # lost: add to the winner's

    def verify(self) -> list[Damaged]:
        """Compare every committed file with the manifest."""
        found = []
        for file in self._committed(self.manifest()):
            try:
                self._load(file)
            except Damaged as damaged:
                found.append(damaged)
        return found

    def save_checkpoint(self, unit: str, tensors: Tensors, meta: Meta) -> None:
        """State inside a unit; the last two are kept."""
        before = self._files("/checkpoints", unit)
        number = int(before[-1].path.split(".")[-3]) + 1 if before else 0
        self._write(unit, pack(tensors, meta), ".safetensors", f"checkpoints/{unit}.{number:08d}")
        self.store.drop(*(file.path for file in before[:-1]))

    def load_checkpoint(self, unit: str) -> tuple[Tensors, Meta] | None:
        """The newest that is whole; a damaged one is skipped with a warning."""
        for file in reversed(self._files("/checkpoints", unit)):
            try:
                data = self._load(file)
                return safetensors.torch.load(data), read_meta(data)
            except Damaged as damaged:
                _log.warning("checkpoint skipped: %s", damaged)
        return None

    def drop_checkpoints(self, unit: str) -> None:
        self.store.drop(*(file.path for file in self._files("/checkpoints", unit)))

    def _files(self, subfolder: str, unit: str | None = None) -> list[UnitFile]:
        """By name, that is checkpoints oldest first; all units, or one."""
        folder = self.folder + subfolder
        start = unit + "." if unit else ""
        listed = (info for info in self.store.listed(folder) if info.base_name.startswith(start))
        sizes = {info.base_name: info.size for info in listed}
        found = [match for name in sorted(sizes) if (match := _FILE.fullmatch(name))]
        return [UnitFile(m[1], f"{folder}/{m[0]}", m[2], sizes[m[0]]) for m in found if unit in (None, m[1])]

    def _committed(self, manifest: Meta | None) -> list[UnitFile]:
        units = manifest["units"].items() if manifest else ()
        return [UnitFile(unit, f"{self.folder}/{e['file']}", e["sha256"], e["bytes"]) for unit, e in units]

    def _of(self, unit: str, files: dict[str, UnitFile]) -> UnitFile:
        file = files.get(unit)
        if file is None:
            raise Missing(self.stage, self.key, unit, self.store.path(self.folder))
        return file

    def _write(self, unit: str, data: bytes, suffix: str, stem: str | None = None) -> Receipt:
        assert re.fullmatch(_NAME, unit), unit
        sha = hashlib.sha256(data).hexdigest()
        file = f"{stem or unit}.{sha[:12]}{suffix}"
        self.store.put(f"{self.folder}/{file}", data)
        return Receipt(unit, file, sha, len(data), read_meta(data))

    def _load(self, file: UnitFile) -> bytes:
        data = self.store.get(file.path)
        if data is None:
            raise self._damaged(file.name, file.path, "is missing")
        if len(data) != file.bytes:
            raise self._damaged(file.name, file.path, f"has {len(data)} bytes instead of {file.bytes}")
        if not hashlib.sha256(data).hexdigest().startswith(file.sha):
            raise self._damaged(file.name, file.path, "has another checksum")
        return data

    def _damaged(self, unit: str, path: str, why: str) -> Damaged:
        return Damaged(self.stage, self.key, unit, self.store.path(path), why)
