"""JSON Schemas of the files and of an experiment, for editors: types, meanings, units and ranges."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from edc_ray.config.experiment import Experiment
from edc_ray.config.fields import join
from edc_ray.config.ladder import Ladder
from edc_ray.config.sweep import Knob, Sweep
from edc_ray.config.text import paths

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(cls: type, presets: Sequence[str] = (), protocols: Sequence[str] = ()) -> Schema:
    """Of a file of Sweep or Ladder, or of an Experiment, as JSON Schema 2020-12.

    Experiments may be written with sections inside sections or with dotted paths, as in the files.
    presets, protocols: the legal values of `preset` and of `experiment.protocol`; none = any text.
    """
    found = _plain(cls)
    defs: Schema = found.pop("$defs", {})
    if cls is not Experiment:
        experiment = _plain(Experiment)
        defs |= experiment.pop("$defs")
        defs["Experiment"] = experiment
        named: Schema = {"enum": [None, *protocols]} if protocols else {"type": ["string", "null"]}
        named["description"] = "the recipe of relabel and evaluate, under the fields that are given"
        experiment["properties"]["protocol"] = named
        found["properties"]["experiment"] = {
            "$ref": "#/$defs/Experiment",
            "description": "changes to the preset",
        }
        if presets:
            found["properties"]["preset"] |= {"enum": [None, *presets]}
    top = found if cls is Experiment else defs["Experiment"]
    for section in _sections(Experiment):
        place = top if section is Experiment else defs[section.__name__]
        place["properties"] |= _dotted(section)
    if cls is Sweep:
        _search(found)
    if cls is Ladder:
        changes = {"$ref": "#/$defs/Experiment", "description": "changes to `base`"}
        defs["Row"]["properties"]["set"] = changes | {"not": {"required": ["protocol"]}}
    return {"$schema": DIALECT, "title": f"edc-ray {cls.__name__.lower()}", **found, "$defs": defs}


def _plain(cls: type) -> Schema:
    """pydantic's schema, with what the fields say of themselves."""
    from pydantic import TypeAdapter

    found: Schema = TypeAdapter(cls).json_schema()
    for section in _sections(cls):
        _annotate(found if section is cls else found["$defs"][section.__name__], section)
    return found


def _sections(cls: type) -> Iterator[type]:
    """The class and those of its fields, each once."""
    stack, seen = [cls], list[type]()
    while stack:
        section = stack.pop()
        if section not in seen:
            seen.append(section)
            inside = [f.type for f in dataclasses.fields(cast(Any, section))]
            named = [kind for f in inside for kind in (f, *get_args(f))]
            stack += [kind for kind in named if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    yield from seen


def _annotate(node: Schema, section: type) -> None:
    node.pop("title", None)
    node["description"] = " ".join((section.__doc__ or "").split())
    for f in dataclasses.fields(cast(Any, section)):
        place = node["properties"][f.name]
        place.pop("title", None)
        if doc := f.metadata.get("doc"):
            unit = f.metadata["unit"]
            place["description"] = f"{doc} [{unit}]" if unit else doc
        for number in _numbers(place):
            for bound, key in (("low", "minimum"), ("high", "maximum")):
                if f.metadata.get(bound) is not None:
                    number[key] = f.metadata[bound]


def _numbers(node: Any) -> Iterator[Schema]:
    """The parts of a field's schema that are a number: itself, a choice of it, or its items."""
    if not isinstance(node, Mapping):
        return
    if node.get("type") in ("integer", "number"):
        yield cast(Schema, node)
    for inside in (*node.get("anyOf", ()), node.get("items"), *node.get("prefixItems", ())):
        yield from _numbers(inside)


def _dotted(section: type) -> Schema:
    """`matching.weight` in recover, `recover.matching.weight` and `recover.matching` in the experiment."""
    found: Schema = {}
    for f in dataclasses.fields(cast(Any, section)):
        if not (isinstance(f.type, type) and dataclasses.is_dataclass(f.type)):
            continue
        for below in dataclasses.fields(f.type):
            found[join(f.name, below.name)] = {"$ref": f"#/$defs/{f.type.__name__}/properties/{below.name}"}
        for path, ref in _dotted(f.type).items():
            found[join(f.name, path)] = ref
    return found


def _search(found: Schema) -> None:
    """One property a field that can be searched, and `inner`, which the file has there."""
    knobs = {
        path: {"$ref": f"#/$defs/{Knob.__name__}", "description": f.metadata["doc"]}
        for path, f in paths(Experiment).items()
    }
    found["properties"]["search"] = {
        "type": "object",
        "description": "path of a field -> its knob; {} = the range that the field suggests",
        "properties": {"inner": found["properties"].pop("inner")} | knobs,
        "additionalProperties": False,
    }
