"""Sweep and ladder files with the changes of the command line; the folders that sweeps leave."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edc_ray import config, presets
from edc_ray.artifacts import Store
from edc_ray.config import LIBRARIES, ConfigError, Experiment, Ladder, Sweep
from edc_ray.presets import protocols

if TYPE_CHECKING:
    from edc_ray.journal import Folder

S = TypeVar("S", Sweep, Ladder)


def is_ladder(file: str) -> bool:
    """Whether the file compares `rows`, rather than searching. Raises as `config.read_yaml`."""
    data = config.read_yaml(Path(file))
    return isinstance(data, Mapping) and "rows" in data


def load_file(file: str, changes: Sequence[str] = ()) -> tuple[Sweep, Experiment]:
    """A sweep file with `--set path=value` applied and empty knobs filled in, and its experiment.

    A path of `--set` is one of the file (budget.trials) or, for short, one of the experiment (recover.lr).

    Raises:
        ConfigError: names the path, the value and what is legal.
    """
    from edc_ray import space  # Optuna, which only a search needs

    data = _lifted(config.read_yaml(Path(file)) or {})
    with _inner_in_search():
        sweep = config.load(Sweep, data)
    sweep, base = with_changes(sweep, changes)
    return dataclasses.replace(sweep, search=space.suggested(sweep.search)), base


def load_ladder(file: str, changes: Sequence[str] = ()) -> tuple[Ladder, Experiment]:
    """As `load_file`, of a ladder file."""
    return with_changes(config.load(Ladder, config.read_yaml(Path(file))), changes)


def read_folder(folder: str) -> tuple[Sweep, Experiment, Store, "Folder"]:
    """Of a sweep that was started, by its folder or URI: what it is, its experiment, its store, its folder.

    Raises:
        ConfigError: the folder is not of a sweep.
    """
    from edc_ray.journal import folder_of, opened  # Optuna, as above

    store, name = opened(folder)
    if (found := store.get(f"{name}/sweep.json")) is None:
        raise ConfigError("folder", folder, "is not of a sweep: it has no sweep.json")
    try:
        facts = json.loads(found)
        parts = facts["sweep"], facts["base"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError("folder", folder, "its sweep.json is not of a sweep") from None
    sweep = dataclasses.replace(config.load(Sweep, parts[0]), name=name.rpartition("/")[2])  # it may be moved
    return sweep, config.load(Experiment, parts[1]), store, folder_of(store, name)


def further(sweep: Sweep, changes: Sequence[str]) -> Sweep:
    """A sweep that was started, with `--set` of what may change when it goes on. Raises as `load_file`."""
    pairs = _lifted(dict(pair(change) for change in changes))
    for path in pairs:
        if path.split(".")[0] in ("name", "preset", "experiment", "search"):
            raise ConfigError(path, pairs[path], "is what the sweep is; another one is a sweep of its own")
    with _inner_in_search():
        return config.override(sweep, pairs)


def with_changes(spec: S, changes: Sequence[str]) -> tuple[S, Experiment]:
    """The file's content and its experiment after `--set`. Raises as `load_file`."""
    pairs = dict(pair(change) for change in changes)
    pairs = _lifted(pairs) if isinstance(spec, Sweep) else pairs
    short = {path: path.removeprefix("experiment.") for path in pairs}
    own = {path for path in pairs if path == short[path] and path.split(".")[0] in config.dump(spec)}
    with _inner_in_search():
        spec = config.override(spec, {path: pairs[path] for path in own})
    of_file, of_line = dict(flatten(spec.experiment)), {short[p]: pairs[p] for p in pairs if p not in own}
    protocol = of_file.pop("protocol", None)
    protocol = of_line.pop("protocol", protocol)  # of relabel and evaluate, under the fields that are given

    def changed(base: Experiment) -> Experiment:
        with under("experiment"):
            base = config.override(base, of_file)
        try:
            return config.override(base, of_line)
        except ConfigError as error:
            raise error.under("experiment" if f"experiment.{error.path}" in pairs else "") from None

    base = changed(presets.experiment(spec.preset))
    return spec, base if protocol is None else changed(protocols.from_yaml(base, protocol))


def pair(change: str) -> tuple[str, Any]:
    """Path and value of one `--set`. Raises ConfigError."""
    path, equals, value = change.partition("=")
    if not equals:
        raise ConfigError("--set", change, "must be path=value, such as budget.trials=4")
    return path, config.parse_value(value)


def _lifted(given: Any) -> Any:
    """A file, or changes to it, with `search.inner`, which is no knob, as the field `inner` of the sweep."""
    if not isinstance(given, Mapping):
        return given
    if "inner" in given:
        raise config.unknown("inner", given["inner"], ["search.inner"])
    lifted = {"inner" if path == "search.inner" else path: value for path, value in given.items()}
    if isinstance(knobs := lifted.get("search"), Mapping) and "inner" in knobs:
        lifted["search"] = {path: knob for path, knob in knobs.items() if path != "inner"}
        lifted["inner"] = knobs["inner"]
    return lifted


@contextmanager
def _inner_in_search() -> Iterator[None]:
    """Errors of the block name the field as the file does."""
    try:
        yield
    except ConfigError as error:
        raise error.under("search" if error.path == "inner" else "") from None


def flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested YAML as dotted paths, which is how presets and overrides are written."""
    for name, value in section.items():
        path = config.join(prefix, str(name))
        if isinstance(value, Mapping):
            yield from flatten(value, path)
        else:
            yield path, value


def anchored(base: Experiment) -> Experiment:
    """With absolute paths of what the workers read, since they may stand in another folder."""
    paths = {"dataset.path": base.dataset.path}
    if base.squeeze.weights not in LIBRARIES:
        paths["squeeze.weights"] = base.squeeze.weights
    given = {path: os.path.abspath(os.path.expanduser(value)) for path, value in paths.items() if value}
    return config.override(base, given)


@contextmanager
def under(prefix: str) -> Iterator[None]:
    """Errors of the block are seen from a level up."""
    try:
        yield
    except ConfigError as error:
        raise error.under(prefix) from None
