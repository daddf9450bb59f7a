"""Published results and baselines: what is done, published and measured accuracy."""

import argparse

from edc_ray import presets
from edc_ray.config import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", help="a part of the name, or a shell pattern; default: all")
    parser.add_argument("--markdown", action="store_true", help="docs/presets.md, on standard output")


def run(args: argparse.Namespace) -> None:
    from edc_ray.presets import text

    if args.markdown and args.pattern is not None:
        raise ConfigError("--markdown", args.pattern, "takes no pattern: the document has all presets")
    print(text.markdown() if args.markdown else "\n".join(text.lines(presets.find(args.pattern))))
