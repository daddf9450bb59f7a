"""Leaderboard, final table, results.parquet, best.yaml, pictures."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="FOLDER|URI")


def run(args: argparse.Namespace) -> None:
    from edc_ray import report

    claim = report.open_claim(args.target)
    print("\n".join(report.leaderboard(claim)))
    if not claim.missing():
        report.write(claim, None, print)
    else:
        print("the confirmation is not finished; the same sweep command goes on with it")
