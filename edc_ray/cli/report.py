"""Leaderboard, final table, report.html with its pictures, best.yaml; of two sweeps, a comparison."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="FOLDER|URI")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="a second sweep to compare it with")


def run(args: argparse.Namespace) -> None:
    from edc_ray import report

    claim = report.open_claim(args.target)
    if args.other is not None:
        report.compare(claim, report.open_claim(args.other), print)
        return
    print("\n".join(report.leaderboard(claim)))
    if not claim.missing():
        report.write(claim, None, print)
    else:
        print("the confirmation is not finished; the same sweep command goes on with it")
        report.write_unfinished(claim, print)
