"""One condensed set under several protocols and students, beside random real images."""

import argparse

from edc_ray import evaluation, given, pipeline, session
from edc_ray.artifacts import Store
from edc_ray.cli.condense import Teller
from edc_ray.presets import protocols

SETS = "a sweep's folder (its winner), best.yaml, a preset, an artifact recover-KEY, or images: an exported "
SETS += "folder or, with --dataset, a folder CLASS/FILE, a .pt or .npz file with images and labels"


def add(parser: argparse.ArgumentParser) -> None:
    add_set(parser)
    rows = ", ".join(protocols.PROTOCOLS)
    parser.add_argument(
        "--protocol", default=protocols.OWN, help=f"some of {rows}, or all; default: the set's own recipe"
    )
    parser.add_argument("--students", default="", help="networks, with commas; default: the set's own")
    parser.add_argument("--final", action="store_true", help="read test instead of val, which is logged")
    parser.add_argument(
        "--scores", action="store_true", help="and DD-Ranking's label- and augmentation-robust scores"
    )
    parser.add_argument("--ray", action="store_true", help="on Ray actors instead of in this process")


def add_set(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a condensed set."""
    parser.add_argument("target", metavar="SET")
    parser.add_argument("--dataset", help="of somebody else's images, such as cifar10")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change one field")
    parser.epilog = f"SET: {SETS}"


def run(args: argparse.Namespace) -> None:
    """Every cell of the table is an experiment: what is there already is not made again."""
    names = (protocols.OWN,) if args.protocol == protocols.OWN else protocols.named(args.protocol)
    students = [name.strip() for name in args.students.split(",") if name.strip()]
    found = given.open_set(args.target, args.dataset, args.set, args.final)
    cells = evaluation.cells(found, names, students, args.final)
    store = Store(found.runtime.store)
    store.check()
    if args.final:
        print(f"reading test of {found.experiment.dataset.name}: logged in {store.path(pipeline.READS)}")
    with session.mapper(args.ray, store, found.runtime) as made_by:
        for i, cell in enumerate(cells):
            print(f"{cell.protocol}, {cell.student} ({i + 1} of {len(cells)}):", flush=True)
            tell = Teller(found.runtime).new
            wanted = [(experiment, "evaluate") for _, experiment in cell.experiments()]
            for name, experiments in (evaluation.score_arms(cell) if args.scores else {}).items():
                upto = "squeeze" if name == "full_hard" else "evaluate"
                wanted += [(experiment, upto) for experiment in experiments]
            for experiment, upto in wanted:
                pipeline.ensure(experiment, store, found.runtime, made_by, tell, upto)
    told = evaluation.facts(found, cells, store)
    for row, cell in zip(told["rows"], cells, strict=True) if args.scores else ():
        row["scores"] = evaluation.scored(row, cell, store)
    print("\n".join(["", *evaluation.table(told)]))
    print(f"written to {evaluation.write(told, store)}")
