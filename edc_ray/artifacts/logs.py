"""A unit's log: a short text beside it, a line for each attempt, with the traceback of one that failed.

    <root>/<stage>-<key>/logs/<unit>.log

It is for people: nothing is computed from it. Of two workers that end one unit at once, one may lose its
line.
"""

import re
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime

from edc_ray.artifacts.store import Artifact

_LINE = re.compile(r"(\S+) attempt (\d+) (done|failed|lost) after ([\d.]+) s on (.*?)(?:: (.*))?")


@dataclass(frozen=True, slots=True)
class Attempt:
    """outcome: done, failed or lost, with its worker. at: when it ended, UTC. why: in one line."""

    outcome: str
    seconds: float
    where: str
    why: str = ""
    at: str = ""
    number: int = 0


def log_path(artifact: Artifact, unit: str) -> str:
    """Where the log is, or would be."""
    return artifact.store.path(_relative(artifact, unit))


def add_attempt(artifact: Artifact, unit: str, new: Attempt, details: str = "") -> str:
    """Append an attempt, with the time and its number; returns `log_path`. details: the traceback.

    Raises:
        StoreError: as for all that touches the store.
    """
    path, before = _relative(artifact, unit), _read(artifact, unit)
    text = before or f"{artifact.folder}, unit {unit}\n"
    at, number = datetime.now(UTC).isoformat(timespec="seconds"), len(_parse(before)) + 1
    why = f": {' '.join(new.why.split())}" if new.why else ""
    text += f"{at} attempt {number} {new.outcome} after {new.seconds:.1f} s on {new.where}{why}\n"
    text += textwrap.indent(details.rstrip("\n") + "\n", "    ") if details else ""
    artifact.store.put(path, text.encode())
    return artifact.store.path(path)


def attempts(artifact: Artifact, unit: str) -> list[Attempt]:
    """In order; [] without a log."""
    return _parse(_read(artifact, unit))


def logged(artifact: Artifact) -> list[str]:
    """The units that have a log."""
    found = artifact.store.listed(f"{artifact.folder}/logs")
    return sorted(info.base_name.removesuffix(".log") for info in found if info.base_name.endswith(".log"))


def _relative(artifact: Artifact, unit: str) -> str:
    return f"{artifact.folder}/logs/{unit}.log"


def _read(artifact: Artifact, unit: str) -> str:
    return (artifact.store.get(_relative(artifact, unit)) or b"").decode(errors="replace")


def _parse(text: str) -> list[Attempt]:
    found = [match for line in text.splitlines() if (match := _LINE.fullmatch(line))]
    return [Attempt(m[3], float(m[4]), m[5], m[6] or "", m[1], int(m[2])) for m in found]
