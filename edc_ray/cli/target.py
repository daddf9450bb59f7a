"""What a command works on: a preset, or the YAML file of a sweep, with changes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from edc_ray import specs
from edc_ray.config import ConfigError, Experiment, Sweep

EPILOG = "a YAML file, or a preset: `edc-ray presets` lists them"


def add(parser: argparse.ArgumentParser, metavar: str = "FILE|PRESET", nargs: str | None = None) -> None:
    """The two arguments: the target and `--set`."""
    parser.add_argument("target", metavar=metavar, nargs=nargs)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change one field")
    parser.epilog = EPILOG if "PRESET" in metavar else None


def load(target: str, changes: Sequence[str]) -> tuple[Sweep, Experiment]:
    """A preset or a file (a sweep, or a best.yaml), with changes.

    Raises:
        ConfigError: names the path, the value and what is legal.
    """
    if is_ladder(target):
        raise ConfigError("file", target, "is a ladder: `edc-ray sweep` runs it, `edc-ray plan` looks at it")
    if section(target):
        return specs.load_file(target, changes)
    return specs.with_changes(Sweep(preset=target), changes)


def is_ladder(target: str) -> bool:
    """Whether the target is the file of a ladder."""
    return bool(section(target)) and specs.is_ladder(target)


def section(target: str) -> str:
    """Where the fields of the experiment are: a file has them in a section of their own."""
    return "experiment" if Path(target).suffix in (".yaml", ".yml") else ""
