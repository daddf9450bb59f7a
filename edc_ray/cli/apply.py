"""What a condensed set is good for: robustness of its students, and other applications, beside baselines."""

import argparse

from edc_ray import applications, given, pipeline, session
from edc_ray.artifacts import Store
from edc_ray.cli.condense import Teller
from edc_ray.cli.evaluate import add_set


def add(parser: argparse.ArgumentParser) -> None:
    rows = ", ".join(pipeline.APPLICATIONS)
    parser.add_argument("name", metavar="NAME", help=f"one of {rows}; its fields are apply.*")
    add_set(parser)
    parser.add_argument("--final", action="store_true", help="read test instead of val, which is logged")
    parser.add_argument("--ray", action="store_true", help="on Ray actors instead of in this process")


def run(args: argparse.Namespace) -> None:
    """Every arm is an experiment: what is there already is not made again."""
    from edc_ray.report.applications import files, table

    found = given.open_set(args.target, args.dataset, args.set, args.final)
    study = applications.study(args.name, found, args.final)
    store = Store(found.runtime.store)
    store.check()
    if args.final:
        print(f"reading test of {found.experiment.dataset.name}: logged in {store.path(pipeline.READS)}")
    with session.mapper(args.ray, store, found.runtime) as mapper:
        for arm, experiments in study.arms.items():
            print(f"{arm.replace('_', ' ')}:", flush=True)
            tell = Teller(found.runtime).new
            for experiment in experiments:
                pipeline.ensure(experiment, store, found.runtime, mapper, tell, "apply")
    told = applications.facts(study, store)
    print("\n".join(["", *table(told)]))
    print(f"written to {', '.join(applications.write(study, told, files(told), store))}")
