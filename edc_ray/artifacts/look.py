"""A store as a whole: which artifacts it has, how much room there is, whether it can be written."""

import os
import re
import uuid

from pyarrow import fs

from edc_ray.artifacts.store import Artifact, Store

_FOLDER = re.compile(r"([a-z0-9_]+)-([0-9a-f]{12})")


def every_artifact(store: Store) -> list[Artifact]:
    """All that have a folder, committed or not, by name. Raises StoreError."""
    with store._access(""):
        found = store._fs.get_file_info(fs.FileSelector(store._base, allow_not_found=True))
    names = sorted(info.base_name for info in found if info.type == fs.FileType.Directory)
    return [store.artifact(m[1], m[2]) for name in names if (m := _FOLDER.fullmatch(name))]


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
