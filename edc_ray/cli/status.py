"""How a sweep stands: stages, trials, best, time left, last errors."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", metavar="FOLDER|URI", help="of the sweep; needs no cluster")
    parser.add_argument("--address", nargs="?", const="auto", help="of a Ray cluster; default: the one here")


def run(args: argparse.Namespace) -> None:
    from edc_ray import status  # Optuna, as for a report

    print("\n".join(status.lines(args.folder, args.address)))
