"""Text to config and back. `load` and `override` refuse what is not legal, naming path, value and what is."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

from edc_ray.config.fields import ConfigError, join, named, unknown

T = TypeVar("T")


def load(cls: type[T], data: object) -> T:
    """A config from plain data (parsed YAML or JSON).

    Raises:
        ConfigError: unknown key, wrong type or value; names the path, the value and what is legal.
    """
    from pydantic import ValidationError

    if not isinstance(data, Mapping):
        raise ConfigError("", data, f"must be a mapping with the keys {', '.join(_names(cls))}")
    try:
        return cast(T, _adapter(cast(Any, cls)).validate_json(json.dumps(data)))
    except ValidationError as error:
        raise _explain(cls, error.errors()) from None
    except (TypeError, ValueError) as error:  # json's: a set, an alias inside itself
        raise ConfigError("", data, f"must be plain data: {error}") from None


@functools.cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter  # only here: core runs where pydantic is not

    return TypeAdapter(cls)


def _explain(cls: type, errors: Sequence[Mapping[str, Any]]) -> ConfigError:
    first = errors[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "unexpected_keyword_argument":
        return unknown(join(*path), first["input"], _names(_section(cls, path[:-1])), name=path[-1])
    if first["type"] == "missing":  # every field has a default, so this is an item of a tuple
        return ConfigError(join(*path[:-1]), first["input"], f"is too short: there is no item {path[-1]}")
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        return inner.under(join(*path))
    legal = str(first["msg"]).removeprefix("Input ").replace("an object", "a mapping")
    return ConfigError(join(*path), first["input"], legal)


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _section(cls: Any, path: Sequence[str]) -> Any:
    for name in path:
        if get_origin(cls) is dict:
            cls = get_args(cls)[1]
        else:
            cls = next(f.type for f in dataclasses.fields(cls) if f.name == name)
    return cls


def dump(value: Any) -> dict[str, Any]:
    """Plain data; `load(type(value), dump(value)) == value`."""
    return cast(dict[str, Any], json.loads(json.dumps(value, default=_fields)))


def _fields(section: Any) -> dict[str, Any]:
    return {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}


def hashed(value: Any) -> Any:
    """Plain data without the fields that say where or how, or have no effect (`when`, `later`).

    One for equal configs: 1.0 is 1, -0.0 is 0.
    """
    if dataclasses.is_dataclass(value):
        return {f.name: hashed(getattr(value, f.name)) for f in dataclasses.fields(value) if named(value, f)}
    if isinstance(value, tuple):
        return [hashed(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest(data: object) -> str:
    """12 hex digits that name plain data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def paths(cls: Any, prefix: str = "") -> dict[str, "dataclasses.Field[Any]"]:
    """Every leaf of a config tree: dotted path -> field. One mapping for all who ask, to be read only."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for f in dataclasses.fields(cls):
        path = join(prefix, f.name)
        found |= paths(cast(Hashable, f.type), path) if dataclasses.is_dataclass(f.type) else {path: f}
    return found


def override(value: T, changes: Mapping[str, Any]) -> T:
    """A copy with `{dotted path: new value}` applied, checked like `load`.

    Raises:
        ConfigError: a path that is no field (with near matches), or an illegal value.
    """
    data = dump(value)
    known = paths(cast(Hashable, type(value)))
    for path, new in changes.items():
        *parents, leaf = path.split(".")
        section: Any = data
        for name in parents:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or (leaf not in section and not _open(known, parents)):
            raise unknown(path, new, known, name=path)
        section[leaf] = new
    return load(type(value), data)


def _open(known: Mapping[str, "dataclasses.Field[Any]"], parents: Sequence[str]) -> bool:
    """True inside a free mapping such as Sweep.experiment."""
    return any(".".join(parents[: i + 1]) in known for i in range(len(parents)))


def read_yaml(path: Path) -> Any:
    """Parsed YAML. A sweeps/NAME.yaml that is not in the working directory is read from the package.

    Raises:
        ConfigError: no such file, or a syntax error with its line.
    """
    path = _locate(path)
    if not path.is_file():
        raise ConfigError("file", str(path), "no such file")
    return _parse(path.read_bytes(), str(path))


def _parse(text: str | bytes, where: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_yaml_loader())
    except yaml.YAMLError as error:
        mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise ConfigError(
            f"{where}, line {mark.line + 1}" if mark else where, str(why), "is not YAML"
        ) from None


def _locate(path: Path) -> Path:
    package = Path(__file__).parents[1]
    packaged = [folder / path.name for folder in (package / "sweeps", package.parent / "sweeps")]
    if path.exists() or path.is_absolute() or path.parent.name != "sweeps":
        return path
    return next((file for file in packaged if file.is_file()), path)


def parse_value(text: str) -> Any:
    """The value of `--set path=value`, read as YAML: 1e-3 is a number, [1, 2] a list, null is None.

    Raises:
        ConfigError: a syntax error.
    """
    return _parse(text, text)


def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader that reads 1e-3 as a number, as all but YAML 1.1 do, a date as text, and refuses a key
        given twice.
        """

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [row for row in rows if row[0] != "tag:yaml.org,2002:timestamp"]
            for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: list[Any] = []
            for key, _ in node.value:
                if key.value in seen:
                    why = f"key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, why, key.start_mark)
                seen.append(key.value)
            return cast(dict[Any, Any], super().construct_mapping(node, deep))

    number = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader
