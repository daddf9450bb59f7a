"""Is this machine ready: GPUs, memory, store, data, weights, versions; exit code 1 if not."""

import argparse
import os

from edc_ray import specs
from edc_ray.cli import target
from edc_ray.config import Sweep


def add(parser: argparse.ArgumentParser) -> None:
    target.add(parser, "FILE|PRESET", "?")


def run(args: argparse.Namespace) -> None:
    from edc_ray import doctor

    if args.target:
        settings, experiment = target.load(args.target, args.set)
    else:
        settings, experiment = specs.with_changes(Sweep(), args.set)
    problems = 0
    for finding in doctor.examine(settings, specs.anchored(experiment), "RAY_ADDRESS" in os.environ):
        print(finding, flush=True)
        problems += not finding.ok
    if problems:
        raise RuntimeError(f"{problems} problem{'s' * (problems > 1)}")
