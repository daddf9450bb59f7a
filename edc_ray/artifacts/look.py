"""A store as a whole: which artifacts it has, how large, how much room there is, whether one may write."""

import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass

from pyarrow import fs

from edc_ray.artifacts.store import Artifact, Store

_FOLDER = re.compile(r"([a-z0-9_]+)-([0-9a-f]{12})")


def every_artifact(store: Store) -> list[Artifact]:
    """All that have a folder, committed or not, by name. Raises StoreError."""
    names = sorted(info.base_name for info in store.listed("") if info.type == fs.FileType.Directory)
    return [store.artifact(m[1], m[2]) for name in names if (m := _FOLDER.fullmatch(name))]


@dataclass(frozen=True, slots=True)
class Holding:
    """An artifact as it lies there. bytes: with checkpoints and logs. at: the last write, in s since 1970."""

    artifact: Artifact
    units: int
    bytes: int
    committed: bool
    at: float


def holding(artifact: Artifact) -> Holding:
    """By a look at its folder; nothing is read. Raises StoreError."""
    files = [info for info in artifact.store.listed(artifact.folder, deep=True) if info.is_file]
    units = len({file.name for file in artifact._files("")})
    committed = any(info.base_name == "manifest.json" for info in files)
    at = max((info.mtime_ns / 1e9 for info in files), default=0.0)
    return Holding(artifact, units, sum(info.size for info in files), committed, at)


def remove(artifact: Artifact) -> None:
    """All of it, and first its manifest, without which it does not exist. Raises StoreError."""
    store = artifact.store
    store.drop(f"{artifact.folder}/manifest.json")

    def drop() -> None:
        with suppress(FileNotFoundError):
            store._fs.delete_dir(store._at(artifact.folder))

    store._try(artifact.folder, drop)


def move_folder(store: Store, old: str, new: str) -> None:
    """Of a sweep or the like, with all that is in it; in an object store file by file, `old` last to go.

    Raises StoreError.
    """
    if store.local:
        store._try(new, lambda: os.rename(store._at(old), store._at(new)))
        return
    files = [info for info in store.listed(old, deep=True) if info.is_file]
    names = [info.path[len(store._at(old)) + 1 :] for info in files]
    for name in names:
        if (data := store.get(f"{old}/{name}")) is not None:
            store.put(f"{new}/{name}", data)
    store.drop(*(f"{old}/{name}" for name in names))


def free_bytes(store: Store) -> int | None:
    """On the disk where a local store lies, or will; None of an object store."""
    if not store.local:
        return None
    room = os.statvfs(store.standing)
    return room.f_bavail * room.f_frsize


def try_writing(store: Store) -> bool:
    """Write a file, read it back and remove it, where there is a store already; whether there is one.

    Raises:
        ConfigError: as `Store.check`. StoreError: it cannot be written.
    """
    store.check()
    if not store.exists("store.json"):
        return False
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    store.put(name, b"written")
    try:
        assert store.get(name) == b"written"
    finally:
        store.drop(name)
    return True
