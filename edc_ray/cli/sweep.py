"""As python -m edc_ray.sweep."""

import argparse

from edc_ray import sweep
from edc_ray.cli import target


def add(parser: argparse.ArgumentParser) -> None:
    target.add(parser, "FILE")


def run(args: argparse.Namespace) -> None:
    sweep.start(args.target, args.set)
