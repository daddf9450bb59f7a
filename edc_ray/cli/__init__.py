"""`edc-ray`: one module a command. Its docstring is the help, `add` its arguments, `run` what it does."""

import argparse
from collections.abc import Sequence

from edc_ray.cli import (
    apply,
    check_plugin,
    condense,
    diagnose,
    doctor,
    evaluate,
    explain,
    export,
    extend,
    plan,
    presets,
    report,
    schema,
    status,
    store,
    sweep,
    teachers,
)
from edc_ray.cli.target import load
from edc_ray.sweep import guarded

__all__ = ["load", "main"]

COMMANDS = (
    condense, plan, sweep, extend, report, evaluate, apply, diagnose, export, doctor, status, store, presets,
    explain, schema, teachers, check_plugin,
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edc-ray", description="Condense datasets, and find the best way.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        text = (module.__doc__ or "").strip().rstrip(".")
        name = module.__name__.rsplit(".", 1)[-1].replace("_", "-")
        command = commands.add_parser(name, help=text, description=text)
        module.add(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 = done; 1 = failed; 2 = the input is wrong."""
    args = _parser().parse_args(argv)
    return guarded(lambda: args.run(args))
