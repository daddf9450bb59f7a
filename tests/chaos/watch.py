"""What is seen of a running sweep from outside: its processes' titles, and the files in its store."""

import contextlib
import itertools
import re
import threading
import time
from collections import defaultdict
from pathlib import Path

from edc_ray.artifacts.files import read_meta
from tests import tiny

LOOK_SECONDS = 0.2
UNIT = re.compile(r"([\w=-]+)\.[0-9a-f]{12}\.(?:safetensors|parquet)")
CHECKPOINT = re.compile(r"([\w=-]+)\.([0-9]+)\.[0-9a-f]{12}\.safetensors")
BUSY = re.compile(r"ray::([a-z]+):([\w=-]+)[\0 ]*$")  # a worker at a unit: stage, unit
Unit = tuple[str, str]  # (artifact's folder, unit)


class Watch(threading.Thread):
    """Looks several times a second, until it is stopped."""

    def __init__(self, store: Path) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._since: dict[int, tuple[str, float]] = {}
        self.finished: dict[Unit, float] = {}  # when
        self.files: dict[str, tuple[int, int]] = {}  # units and manifests: inode, and time of the last write
        self.replaced: set[str] = set()  # files of finished units that were written again, or removed
        self.saved: dict[Unit, dict[int, tuple[float, float]]] = defaultdict(dict)
        # checkpoints by number: (when it was written, seconds of work in it)

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        with self._lock:
            now, titles = time.time(), tiny.titles()
            self._since = {
                pid: before if (before := self._since.get(pid)) and before[0] == title else (title, now)
                for pid, title in titles.items()
            }
            self._look_at_files()

    def _look_at_files(self) -> None:
        there: dict[str, tuple[int, int]] = {}
        for path in self._store.glob("*-*/**/*.*"):
            folder = path.relative_to(self._store).parts[0]
            with contextlib.suppress(FileNotFoundError):  # a checkpoint goes when the next one is there
                if path.parent.name == "checkpoints":
                    self._look_at_checkpoint(folder, path)
                elif path.name == "manifest.json" or (match := UNIT.fullmatch(path.name)):
                    stat = path.stat()
                    there[str(path)] = stat.st_ino, stat.st_mtime_ns
                    if path.suffix != ".json" and match:
                        self.finished.setdefault((folder, match[1]), stat.st_mtime)
        self.replaced |= {path for path, mark in self.files.items() if there.get(path) != mark}
        self.files |= there

    def _look_at_checkpoint(self, folder: str, path: Path) -> None:
        if not (match := CHECKPOINT.fullmatch(path.name)):
            return
        history = self.saved[folder, match[1]]
        if int(match[2]) not in history:
            written = path.stat().st_mtime
            history[int(match[2])] = written, read_meta(path.read_bytes())["seconds"]

    # --- what it says ---

    def unsaved(self, pids: set[int]) -> float:
        """Seconds of work that the workers among these processes have not saved: the most of one of them.

        Which artifact a worker is at cannot be seen, only stage and unit. So each worker with this title is
        given one of the latest moments at which a run of such a unit began, ended or was saved.
        """
        self.look()
        with self._lock:
            now, ages = time.time(), [0.0]
            for stage, unit in {match.groups() for pid in pids if (match := self._busy(pid))}:
                runs = [
                    self._since[pid][1]
                    for pid in self._since
                    if (match := self._busy(pid)) and match.groups() == (stage, unit)
                ]
                saved = [
                    max(history.values())[0]
                    for (folder, name), history in self.saved.items()
                    if name == unit and folder.startswith(f"{stage}-") and (folder, name) not in self.finished
                ]
                ended = [
                    when
                    for (folder, name), when in self.finished.items()
                    if name == unit and folder.startswith(f"{stage}-")
                ]
                ages.append(now - sorted([*runs, *saved, *ended])[-len(runs)])
        return max(ages)

    def _busy(self, pid: int) -> re.Match[str] | None:
        return BUSY.match(self._since[pid][0]) if pid in self._since else None

    def restarted(self, seconds: dict[Unit, float], interval: float) -> list[str]:
        """Units that did not go on from their checkpoint: the next one has hardly more seconds of work in it.

        seconds: of work in each finished unit, by its manifest.
        """
        found, least = [], 0.25 * interval  # a whole one is usual, less the time that packing took
        for unit, history in self.saved.items():
            work = [history[number][1] for number in sorted(history)]
            short = any(b - a < least for a, b in itertools.pairwise(work))
            if short or seconds.get(unit, work[-1]) < work[-1]:
                found.append(f"{'/'.join(unit)} was begun again in spite of its checkpoints: {work}")
        return found
