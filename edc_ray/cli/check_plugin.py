"""Check a network or a matching loss of your own, before it runs for hours."""

import argparse

from edc_ray.config import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="as in a sweep file")
    parser.add_argument("--kind", choices=["model", "matcher"], help="default: found out by calling it")
    parser.add_argument("--size-px", type=int, default=32, metavar="N", help="of a network's images (32)")


def run(args: argparse.Namespace) -> None:
    """A line a check. Raises RuntimeError where one fails."""
    from edc_ray import testing
    from edc_ray.core.models import plugins

    if not plugins.is_reference(args.function):
        raise ConfigError("MODULE:FUNCTION", args.function, "must be a module, a colon and a function in it")
    if not 8 <= args.size_px <= 1024:
        raise ConfigError("--size-px", args.size_px, "must be in [8, 1024]")
    function = plugins.resolve("MODULE:FUNCTION", args.function)
    kind = args.kind or testing.kind_of(function, args.size_px)
    if kind is None:
        legal = (
            "neither gives a torch.nn.Module for (classes, size_px) nor a tensor for (difference, width); "
            "with --kind the checks say why"
        )
        raise ConfigError("MODULE:FUNCTION", args.function, legal)
    about = (function, args.size_px) if kind == "model" else (function,)
    found = list(testing.outcomes(testing.CHECKS[kind], *about))
    print(f"{args.function} as a {kind}, source {(plugins.fingerprint([args.function]) or '')[:12]}")
    for each in found:
        print(
            f"{'ok    ' if each.holds else 'FAILED'}  {each.promise}"
            + (f": {each.told}" if each.told else "")
        )
    if failed := sum(not each.holds for each in found):
        raise RuntimeError(f"{failed} of {len(found)} checks failed")
