"""A condensed set as files for others: images without loss, a data card, checksums."""

import argparse

from edc_ray import export, given
from edc_ray.artifacts import Store
from edc_ray.cli import evaluate


def add(parser: argparse.ArgumentParser) -> None:
    evaluate.add_set(parser)
    formats = ", ".join(export.FORMATS)
    parser.add_argument("--format", default="image_folder", help=f"{formats}; default: image_folder")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")


def run(args: argparse.Namespace) -> None:
    found = given.open_set(args.target, args.dataset, args.set)
    store = Store(found.runtime.store)
    store.check()
    about = export.write(export.opened(found), args.format, args.out, store)
    print(f"{about['images']} images, {about['files']} files, {about['file_bytes']:,} bytes: {args.out}")
    print(f"protocol {about['protocol']}; {given.CARD} and README.md say how the set was made")
