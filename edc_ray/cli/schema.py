"""JSON Schema of a sweep file, a ladder file or an experiment, for editors."""

import argparse
import json

from edc_ray import config, presets
from edc_ray.presets import protocols

KINDS = {"sweep": config.Sweep, "ladder": config.Ladder, "experiment": config.Experiment}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", default="sweep", choices=list(KINDS), help="default: sweep")
    parser.epilog = "first line of a file that uses it: # yaml-language-server: $schema=FILE"


def run(args: argparse.Namespace) -> None:
    legal = sorted(presets.PRESETS), list(protocols.PROTOCOLS)
    print(json.dumps(config.schema(KINDS[args.kind], *legal), indent=1))
