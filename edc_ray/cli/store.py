"""What a store holds; its checksums; what no sweep needs."""

import argparse

from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Runtime


def add(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(dest="act", required=True)

    def add_act(name: str, text: str) -> argparse.ArgumentParser:
        act = acts.add_parser(name, help=text, description=text)
        act.add_argument(
            "store", nargs="?", default=Runtime().store, metavar="FOLDER|URI", help="default: store"
        )
        return act

    add_act("ls", "artifacts, units and bytes by stage")
    add_act("verify", "read every finished artifact; exit code 1 and a list where one is damaged")
    removing = add_act("gc", "remove the artifacts that no kept sweep, and none that runs, needs")
    removing.add_argument(
        "--keep", nargs="+", required=True, metavar="FOLDER|URI|FILE", help="of a sweep or ladder"
    )
    removing.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")


def run(args: argparse.Namespace) -> None:
    from edc_ray import stock  # Optuna, as for a report

    store = Store(args.store)
    store.check()
    if not store.exists("store.json"):
        raise ConfigError("store", args.store, "is no store: it has no store.json")
    if args.act == "ls":
        print("\n".join(stock.ls(store)))
    elif args.act == "gc":
        stock.gc(store, args.keep, args.yes, print)
    elif stock.verify(store, print):
        raise RuntimeError("the store is damaged; a command that reads these files makes them again")
