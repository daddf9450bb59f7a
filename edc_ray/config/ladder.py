"""Ladder: named configurations that are compared with each other, seed by seed; nothing is searched."""

import dataclasses
from typing import Any

from edc_ray.config.fields import ConfigError, config, knob
from edc_ray.config.sweep import Runtime, check_name


@config
class Row:
    """One configuration: the changes to the row that it starts from."""

    base: str | None = knob(None, "an earlier row that `set` changes; null = the file's experiment")
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    against: tuple[str, ...] = knob((), "earlier rows that it is compared with")
    fresh: bool = knob(False, "draws, views and students of its own, shared with no other row")
    paper: float | None = knob(None, "published accuracy of what it stands for, elsewhere", 0, 1)
    note: str = knob("", "what it stands for")


@config
class Ladder:
    """One ladder file. The i-th repetitions of all rows share observers, draws, views and student seeds."""

    name: str = knob("ladder", "folder of the results under the store")
    preset: str | None = knob(None, "row of presets.PRESETS that `experiment` changes")
    experiment: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)
    seeds: int = knob(12, "repetitions of every row", low=2)
    runtime: Runtime = dataclasses.field(default_factory=Runtime)

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.rows:
            raise ConfigError("rows", self.rows, "needs at least one row")
        earlier: list[str] = []
        for name, row in self.rows.items():
            named = {"base": [row.base] if row.base else [], "against": list(row.against)}
            for field, others in named.items():
                for other in others:
                    if other not in earlier:
                        legal = f"must be an earlier row ({', '.join(earlier) or 'there is none'})"
                        raise ConfigError(f"rows.{name}.{field}", other, legal)
            earlier.append(name)
