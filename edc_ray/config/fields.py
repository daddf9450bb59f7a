"""Fields with a meaning, a unit and a range; the one error for what a user wrote wrongly."""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar, cast, dataclass_transform
from urllib.parse import parse_qsl

T = TypeVar("T")


class ConfigError(ValueError):
    """A value a user wrote is not legal. `str()` is one line: path, value, what is legal."""

    def __init__(self, path: str, value: object, legal: str) -> None:
        super().__init__(path, value, legal)
        self.path, self.value, self.legal = path, value, legal

    def __str__(self) -> str:
        return f"{self.path or '(top level)'} = {_short(self.value)}: {self.legal}"

    def under(self, prefix: str) -> "ConfigError":
        """The same error seen from one level up."""
        return type(self)(join(prefix, self.path), self.value, self.legal)


class NotThere(ConfigError):
    """The value is legal, but what it names is not there yet: `plan` says so and goes on."""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_SECRET = re.compile(r"key|secret|token|pass|credential|signature|^sig$|^sas$", re.I)


def check_uri(path: str, uri: str) -> None:
    """Refuse a URI with credentials in it: it is kept in manifests, logs and command lines.

    A user without a password is none, but in s3://, where it is an access key.

    Raises:
        ConfigError: does not show the credentials.
    """
    scheme, mark, rest = uri.partition("://")
    place, _, query = rest.partition("?")
    user, at, where = place.rpartition("@")  # a secret key may have a slash in it
    given = parse_qsl(query, keep_blank_values=True)
    secret = [name for name, value in given if _SECRET.search(name) or "@" in value]
    if mark and (secret or ":" in user or (at and scheme == "s3" and "/" not in user)):
        shown = f"{scheme}://{'***@' if at else ''}{where}" + "".join(f"?{name}=***" for name in secret)
        legal = (
            "must have no credentials in it: they come from the environment, as AWS_SECRET_ACCESS_KEY does"
        )
        raise ConfigError(path, shown, legal)


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def unknown(
    path: str, value: object, known: Iterable[str], name: str | None = None, more: str = ""
) -> ConfigError:
    """The error for a name (by default the value) that a table lacks: near matches, or the whole list.

    more: what else is legal.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(value if name is None else name), names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    every = f"legal: {', '.join(names)}" if not near or len(names) <= 12 else ""
    return ConfigError(path, value, "; ".join(["unknown", *filter(None, [hint, every, more])]))


def knob(
    default: Any,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    hashed: bool = True,
    when: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    later: bool = False,
) -> Any:
    """A field with its meaning, closed range and unit.

    hashed: False = says where or how, never what.
    when: the field has an effect only where this sibling has this value, or one of a tuple of them.
    search: the range worth searching, as the fields of `config.Knob`.
    later: it came when there were artifacts already, whose names stay: its default enters no name.
    """
    metadata = {"doc": doc, "low": low, "high": high, "unit": unit, "hashed": hashed, "later": later}
    return dataclasses.field(default=default, metadata=metadata | {"when": when or {}, "search": search})


def active(section: Any, f: "dataclasses.Field[Any]") -> bool:
    """Whether the field has an effect, given its siblings."""
    return all(
        getattr(section, name) in (wanted if isinstance(wanted, tuple) else (wanted,))
        for name, wanted in f.metadata.get("when", {}).items()
    )


def named(section: Any, f: "dataclasses.Field[Any]") -> bool:
    """Whether the field's value enters the names of artifacts."""
    silent = f.metadata.get("later", False) and getattr(section, f.name) == f.default
    return f.metadata.get("hashed", True) and active(section, f) and not silent


@functools.cache  # a sweep makes configs by the thousand
def _bounded(cls: Any) -> list[tuple["dataclasses.Field[Any]", float | None, float | None]]:
    rows = [(f, f.metadata.get("low"), f.metadata.get("high")) for f in dataclasses.fields(cls)]
    return [row for row in rows if row[1:] != (None, None)]


def _check_bounds(self: Any) -> None:
    for f, low, high in _bounded(cast(Hashable, type(self))):
        value = getattr(self, f.name)
        if value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            below, above = low is not None and not number >= low, high is not None and not number <= high
            if below or above or not math.isfinite(number):
                finite = "" if math.isfinite(number) else "finite and "
                raise ConfigError(f.name, value, f"must be {finite}{legal_range(f)}")


def legal_range(f: "dataclasses.Field[Any]") -> str:
    low, high, unit = f.metadata.get("low"), f.metadata.get("high"), f.metadata.get("unit", "")
    text = f"in [{low:g}, {high:g}]" if high is not None else f">= {low:g}"
    return f"{text} {unit}".strip()


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def config(cls: type[T]) -> type[T]:
    """A frozen, keyword-only, slotted dataclass that checks its bounds; pydantic refuses unknown keys."""
    own = cls.__dict__.get("__post_init__")

    def check(self: Any) -> None:
        _check_bounds(self)
        if own:
            own(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    cls.__pydantic_config__ = {"extra": "forbid", "strict": True}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)
