"""More trials for a sweep that was started; then it confirms again, which is another read of test."""

import argparse

from edc_ray import sweep


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER|URI")
    parser.add_argument("--trials", type=int, required=True, metavar="N", help="how many more")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="such as budget.hours=2"
    )


def run(args: argparse.Namespace) -> None:
    sweep.extend(args.folder, args.trials, args.set)
