"""Why a condensed set works or not: sharpness, gradients, starts, slices, theorems; beside a baseline."""

import argparse

from edc_ray import diagnosis, given, pipeline, session
from edc_ray.artifacts import Store
from edc_ray.cli.condense import Teller
from edc_ray.cli.evaluate import add_set


def add(parser: argparse.ArgumentParser) -> None:
    add_set(parser)
    parser.add_argument("--what", required=True, help=f"one of {', '.join(diagnosis.LOOKS)}")
    parser.add_argument("--ray", action="store_true", help="on Ray actors instead of in this process")


def run(args: argparse.Namespace) -> None:
    """Each arm is an experiment up to the stage `diagnose`: what is there already is not made again."""
    found = given.open_set(args.target, args.dataset, args.set)
    looks = diagnosis.looks(found, args.what)
    store = Store(found.runtime.store)
    store.check()
    with session.mapper(args.ray, store, found.runtime) as made_by:
        for look in looks:
            for arm, experiment, upto in diagnosis.wanted(look):
                print(f"{look.title}, {arm}:", flush=True)
                tell = Teller(found.runtime).new
                pipeline.ensure(experiment, store, found.runtime, made_by, tell, upto)
    for look in looks:
        print("\n".join(["", *diagnosis.table(look, diagnosis.rows(look, store))]))
    print("\n".join(f"note: {note}" for note in found.notes), end="\n" if found.notes else "")
    for path in diagnosis.write(found, args.what, looks, store):
        print(f"written to {path}")
