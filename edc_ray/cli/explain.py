"""A field of a file: meaning, unit, default, range, source, and the stages that it makes anew."""

import argparse
import dataclasses
import json
import types
import typing
from collections import Counter
from operator import attrgetter
from typing import Any, Literal, cast

from edc_ray import config, pipeline, presets
from edc_ray.config import Experiment, Sweep
from edc_ray.presets.why import WHY

Field = dataclasses.Field[Any]
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", default="", help="such as recover.matching.weight, or a section")
    parser.add_argument("--markdown", action="store_true", help="docs/design_space.md, on standard output")


def run(args: argparse.Namespace) -> None:
    if args.markdown and args.path:
        raise config.ConfigError("--markdown", args.path, "takes no path: the document has all fields")
    print(markdown() if args.markdown else "\n".join(lines(args.path)))


def lines(path: str) -> list[str]:
    """Of a field or a section of a sweep file, or, for short, of the experiment in it; "" = of the file.

    Raises:
        ConfigError: there is no such path (with near matches).
    """
    inside = _known(Experiment, "")
    short = {name: f"experiment.{name}" for name in inside}
    known = _known(Sweep, "") | {short[name]: found for name, found in inside.items()}
    known["search.inner"] = known.pop("inner")  # as the file has it
    bare = path.removeprefix("search.") if path != "search.inner" else path
    name = path if path in known or not path else short.get(bare, path)
    if not name:
        return _section("", Sweep)
    if name not in known:
        raise config.unknown("path", path, [*known, *short])
    found = known[name]
    if isinstance(found, type):
        return _section(name, found)
    if name.startswith("experiment."):
        return [*_field(name, found), *_in_experiment(name.removeprefix("experiment."), found)]
    return _field(name, found)


def _known(cls: Any, prefix: str) -> dict[str, type | Field]:
    """Path -> the field, or the class of the section that is there."""
    found: dict[str, type | Field] = {}
    for f in dataclasses.fields(cls):
        path, inside = config.join(prefix, f.name), _class_of(f)
        found[path] = inside or f
        if inside and inside is not config.Knob:
            found |= _known(inside, path)
    return found


def _class_of(f: Field) -> type | None:
    """The class of a section; of the experiment and the knobs of a sweep, which are free mappings, too."""
    if f.name == "experiment":
        return Experiment
    kinds = [f.type, *typing.get_args(f.type)]
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _section(name: str, cls: type) -> list[str]:
    told = [f"{name or 'a sweep file'}: {' '.join((cls.__doc__ or '').split())}"]
    for f in dataclasses.fields(cast(Any, cls)):
        if inside := _class_of(f):
            told.append(f"  {f.name:<22} {'section: ' + (inside.__doc__ or '').strip().splitlines()[0]}")
        else:
            told.append(f"  {f.name + ' = ' + _value(f):<22} {_meaning(f)}")
    return told


def _meaning(f: Field) -> str:
    unit = f.metadata.get("unit")
    return f.metadata.get("doc", "") + (f" [{unit}]" if unit else "")


def _value(f: Field) -> str:
    return json.dumps(f.default if f.default_factory is dataclasses.MISSING else f.default_factory())


def _field(name: str, f: Field) -> list[str]:
    bounded = f.metadata.get("low") is not None or f.metadata.get("high") is not None
    legal = f", {config.legal_range(f)}" if bounded else ""
    return [f"{name}: {_meaning(f)}", _row("type", _words(f.type) + legal), _row("default", _value(f))]


def _row(name: str, text: str) -> str:
    return f"  {name:<12} {text}"


def _words(kind: Any) -> str:
    """A type for a person."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(one) for one in inside)
    if origin is tuple:
        return f"list, each: {_words(inside[0])}"
    return WORDS.get(kind, "mapping" if origin is dict else "anything")


# --- of an experiment's field -------------------------------------------------------------------------------


def _in_experiment(path: str, f: Field) -> list[str]:
    section = path.rpartition(".")[0]
    told = []
    if when := f.metadata["when"]:
        needed = [f"{config.join(section, name)} = {_any(value)}" for name, value in when.items()]
        told.append(_row("only where", "; ".join(needed)))
    if wanted := f.metadata["search"]:
        told.append(_row("searched", f"{json.dumps(wanted)}, that is {{}} in `search`"))
    told.append(_row("makes anew", _stages(path, f)))
    told.append(_row("section", f"{section or 'experiment'}: {_of_section(section)}"))
    if section in pipeline.ENDS:  # the presets have our defaults, not the paper's values
        return told
    return [*told, *(_row(f"EDC {version}", _source(path, version)) for version in ("paper", "official"))]


def _of_section(section: str) -> str:
    """The first line of its text; "" = of the experiment."""
    parent = attrgetter(section)(Experiment()) if section else Experiment()
    return (type(parent).__doc__ or "").splitlines()[0]


def markdown() -> str:
    """docs/design_space.md: every field that a search may have, by section."""
    from edc_ray import space  # Optuna

    fields = {path: f for path, f in config.paths(Experiment).items() if space.searchable(path)}
    sections = dict.fromkeys(path.rpartition(".")[0] for path in fields)
    parts = [_HEAD]
    for section in sections:
        inside = {path: f for path, f in fields.items() if path.rpartition(".")[0] == section}
        table = [*_COLUMNS, *(_markdown_row(path, f) for path, f in inside.items())]
        parts += [f"## {section or 'experiment'}", _of_section(section), "\n".join(table)]
    return "\n\n".join(parts)


_COLUMNS = "| field | meaning | default | `{}` searches | makes anew |", "| --- | --- | --- | --- | --- |"
_HEAD = """# The design space

Written by `edc-ray explain --markdown`; do not edit. Every field that may stand under `search:` of a
[sweep file](sweep_file.md): what it means, its default, the range of `{}`, and the stages that a new value
makes anew; all others are shared. A field without a range needs `low` and `high`, or `choices`. Presets have
other values than the defaults; `edc-ray explain recover.lr` also says which, and what is legal. `dataset`,
`split` and the seeds cannot be searched: that would change what is compared. `method.md 2.6` is a section of
[the method](method.md)."""


def _markdown_row(path: str, f: Field) -> str:
    needed = "; ".join(f"{name} = {_any(value)}" for name, value in f.metadata["when"].items())
    meaning = _meaning(f) + (f" (only where {needed})" if needed else "")
    cells = (f"`{path.rpartition('.')[2]}`", meaning, _code(_value(f)), _range(f), _stages(path, f))
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _code(text: str) -> str:
    return f"`{text}`"


def _range(f: Field) -> str:
    wanted = f.metadata["search"]
    if wanted is None:
        return ""
    if "choices" in wanted:
        return ", ".join(_code(json.dumps(choice)) for choice in wanted["choices"])
    return f"{wanted['low']:g} to {wanted['high']:g}" + (", log" if wanted.get("log") else "")


def _any(value: Any) -> str:
    return " or ".join(map(json.dumps, value if isinstance(value, tuple) else [value]))


def _stages(path: str, f: Field) -> str:
    """The stages whose names the field is part of, where it has an effect."""
    from edc_ray import reuse  # Optuna

    if not f.metadata["hashed"]:
        return "nothing by itself: it says where, and names hold the content of what is there"
    section = path.rpartition(".")[0]
    if section in pipeline.ENDS:  # its own stage, and `sparse`, which makes the network that slimming cuts
        return ", ".join(stage for stage, row in pipeline.ENDS.items() if path in row.reads(Experiment()))
    when = {name: v[0] if isinstance(v, tuple) else v for name, v in f.metadata["when"].items()}
    base = config.override(Experiment(), {config.join(section, name): value for name, value in when.items()})
    same = config.Knob(choices=(attrgetter(path)(base),))
    touched = reuse.touching({path: same}, base)
    return ", ".join(stage for stage in pipeline.STAGES if touched[stage])


def _source(path: str, version: str) -> str:
    """Its value in the presets of the paper, or of the official scripts, and why it differs from `fixed`."""
    names = [name for name in presets.PRESETS if name.startswith("edc/") and name.endswith(f"/{version}")]
    values = Counter(json.dumps(attrgetter(path)(presets.experiment(name))) for name in names)
    told = ", ".join(f"{value} ({n} of {len(names)} presets)" for value, n in values.most_common(4))
    why = WHY.get(version, {}).get(path)
    return told + (f"; {why}" if why else "")
