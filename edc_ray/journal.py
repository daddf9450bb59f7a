"""A sweep's folder in an object store, and the Optuna journal there, where no file can be appended to."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from edc_ray.artifacts import Store, StoreError

SEGMENT_BYTES = 2**18  # about 15 trials


@dataclass(frozen=True, slots=True)
class Remote:
    """A sweep's folder in an object store. On a disk it is a plain Path."""

    store: Store
    name: str

    def __str__(self) -> str:
        return self.store.path(self.name)

    def exists(self) -> bool:
        """Whether it has a study."""
        return self.store.exists(self.segment(0))

    def segment(self, number: int) -> str:
        """Where a part of the study is."""
        return f"{self.name}/study/{number:05d}.jsonl"


Folder = Path | Remote


def folder_of(store: Store, name: str) -> Folder:
    """Something under the root: a Path where the store is on a disk."""
    return Path(store.path(name)) if store.local else Remote(store, name)


def opened(place: str) -> tuple[Store, str]:
    """The store of a sweep's folder or URI, `<root>/sweeps/<name>`, and `sweeps/<name>`."""
    base, mark, query = place.partition("?") if "://" in place else (str(Path(place).resolve()), "", "")
    *root, parent, name = base.rstrip("/").split("/")
    return Store(("/".join(root) or "/") + mark + query), f"{parent}/{name}"


class FileJournal(JournalFileBackend):
    """Optuna's file, whose errors say where it is."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Raises StoreError; a line that is half there is cut by the next driver (Store.mend_lines)."""
        try:
            super().append_logs(logs)
        except OSError as error:
            raise StoreError.at("study.journal", self._file_path, error) from error


class StoreJournal(BaseJournalBackend):
    """The lines of Optuna's JournalFileBackend, cut into objects `<folder>/study/00000.jsonl`, 00001 ...

    Each append puts the last object anew, as a whole, until it is large. So what was appended is in the store
    when the call returns, and nothing on this machine is needed again. One process writes at a time
    (`Store.alone`), through one journal; others read what was there when they began.
    """

    def __init__(self, folder: Remote) -> None:
        self._folder = folder
        self._lines: list[bytes] = []
        self._last, self._tail = 0, b""  # the object that grows
        for number in itertools.count():
            if (data := folder.store.get(folder.segment(number))) is None:
                break
            self._lines += data.splitlines()
            self._last, self._tail = number, data

    def __reduce__(self) -> tuple[type, tuple[Remote]]:
        return StoreJournal, (self._folder,)  # Tune saves its searcher often, and the lines are in the store

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for line in self._lines[log_number_from:]:
            yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Raises StoreError; then nothing was appended."""
        new = [json.dumps(log, separators=(",", ":")).encode() for log in logs]
        full = len(self._tail) >= SEGMENT_BYTES
        last, tail = self._last + full, b"" if full else self._tail
        tail += b"".join(line + b"\n" for line in new)
        self._folder.store.put(self._folder.segment(last), tail)
        self._last, self._tail = last, tail
        self._lines += new
