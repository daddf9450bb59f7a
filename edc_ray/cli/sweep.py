"""As python -m edc_ray.sweep."""

import argparse

from edc_ray import sweep
from edc_ray.cli import plan


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="FILE")
    sweep.add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="what `edc-ray plan` prints, and nothing else")


def run(args: argparse.Namespace) -> None:
    if args.dry_run:
        plan.run(argparse.Namespace(target=args.target, set=args.set, cluster=None))
    else:
        sweep.start(args.target, args.set, args.fresh)
