"""Trained observers as one file: export and import, so that nobody trains them twice."""

import argparse

from edc_ray.artifacts import Store
from edc_ray.cli import target
from edc_ray.config import Runtime


def add(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(dest="act", required=True)
    text = "write the observers of an experiment that are in its store to one file"
    out = acts.add_parser("export", help=text, description=text)
    target.add(out)
    out.add_argument("out", metavar="OUT", help="the file to write")
    text = "put the observers of a file into a store, where their experiment finds them"
    into = acts.add_parser("import", help=text, description=text)
    into.add_argument("file", metavar="FILE", help="of `edc-ray teachers export`")
    into.add_argument("--store", default=Runtime().store, metavar="FOLDER|URI", help="default: store")
    into.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="such as dataset.path=FOLDER"
    )


def run(args: argparse.Namespace) -> None:
    from edc_ray import specs, teachers

    if args.act == "export":
        settings, experiment = target.load(args.target, args.set)
        store = Store(settings.runtime.store)
        store.check()
        print("\n".join(teachers.export(specs.anchored(experiment), store, args.out)))
        return
    store = Store(args.store)
    store.check()
    print("\n".join(teachers.bring(args.file, store, args.set)))
