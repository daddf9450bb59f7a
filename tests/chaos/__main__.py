"""Kill parts of running sweeps until so many injections are made: a table, and a JSONL of them all.

    python -m tests.chaos --injections 60 --out tests/chaos/injections.jsonl    (make chaos N=60)
    python -m tests.chaos --seed 3 --kinds node,driver                          one run again

The same command goes on where the JSONL ends. Exit code 1: a run lost something; its folder is kept.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from scipy import stats

from tests.chaos.inject import KINDS, Reference, Result, plan, run, undisturbed
from tests.chaos.nodes import ROOT, adopt_orphans

PER_RUN = 4
Record = dict[str, Any]  # a line of the JSONL: an injection, and the run it is of


def deal(first: int) -> Iterator[tuple[int, list[str]]]:
    """(seed, kinds) of one run after the other: each kind comes once before any comes again."""
    random, deck = Random(first), list[str]()
    for seed in itertools.count(first):
        while len(deck) < PER_RUN:
            deck += random.sample(KINDS, len(KINDS))
        yield seed, deck[:PER_RUN]
        del deck[:PER_RUN]


def disturb(seed: int, kinds: Sequence[str], reference: Reference, folder: Path) -> Result:
    """One run, in a folder that is kept if something was lost."""
    place = folder / f"run-{seed}"
    place.mkdir()
    result = run(seed, plan(seed, kinds, reference), kinds, place, reference.store)
    if not result.faults:
        shutil.rmtree(place)
    return result


def records(result: Result) -> list[Record]:
    replay = f"python -m tests.chaos --seed {result.seed} --kinds {','.join(result.kinds)}"
    of = {"seed": result.seed, "run_seconds": round(result.seconds, 1), "faults": result.faults}
    hits = [
        {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(h).items()} for h in result.hits
    ]
    return [hit | of | {"replay": replay, "commit": _commit()} for hit in hits]


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


# --- what it says -------------------------------------------------------------------------------------------


def table(found: Sequence[Record]) -> str:
    """A row a run: what struck after how many finished units, and what was lost."""
    rows = ["| seed | kind@finished units | seconds | most seconds unsaved | verdict | again |"]
    rows.append("|---|---|---|---|---|---|")
    for seed, of in itertools.groupby(found, key=lambda record: record["seed"]):
        hits = list(of)
        struck = ", ".join(f"{hit['kind']}@{hit['units']}" for hit in hits)
        unsaved, verdict = max(hit["unsaved"] for hit in hits), "; ".join(hits[0]["faults"]) or "nothing lost"
        seconds, replay = hits[0]["run_seconds"], hits[0]["replay"]
        rows.append(f"| {seed} | {struck} | {seconds:.0f} | {unsaved:.1f} | {verdict} | `{replay}` |")
    return "\n".join(rows)


def summary(found: Sequence[Record]) -> str:
    """By kind, and the bound. A run that lost something counts as a loss of each of its injections."""
    rows = ["| kind | injections | in runs that lost something | most seconds unsaved |", "|---|---|---|---|"]
    for kind in KINDS:
        of = [record for record in found if record["kind"] == kind]
        unsaved = max((record["unsaved"] for record in of), default=0.0)
        rows.append(f"| {kind} | {len(of)} | {sum(bool(r['faults']) for r in of)} | {unsaved:.1f} |")
    lost, runs = sum(bool(record["faults"]) for record in found), {record["seed"] for record in found}
    share = f"{100 * bound(lost, len(found)):.1f} %"
    rows += ["", f"{len(found)} injections in {len(runs)} runs, {lost} of them in runs that lost something:"]
    return "\n".join([*rows, f"with 95 % confidence fewer than {share} of such injections do."])


def bound(lost: int, injections: int) -> float:
    """Upper end of the one-sided 95 % interval of the share of injections that lose something: the rule of
    three where none did, else Clopper and Pearson's.
    """
    if lost == 0:
        return min(1.0, 3 / injections) if injections else 1.0
    return float(stats.beta.ppf(0.95, lost + 1, injections - lost)) if lost < injections else 1.0


# --- the command --------------------------------------------------------------------------------------------


def campaign(args: argparse.Namespace, folder: Path) -> list[Record]:
    """All records: those that the JSONL has already, and those of the runs that were left to do."""
    kinds = args.kinds.split(",") if args.kinds else []
    found = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = max((record["seed"] for record in found), default=args.seed - 1)
    runs = iter([(args.seed, kinds)]) if kinds else (deal for deal in deal(args.seed) if deal[0] > done)
    reference: Reference | None = None
    for seed, dealt in runs:
        if not kinds and len(found) >= args.injections:
            break
        if reference is None:
            reference = undisturbed(args.reference or folder / "undisturbed")
            print(f"undisturbed: {len(reference.timeline)} units, {reference.seconds:.0f} s; in {folder}\n")
        result = disturb(seed, dealt, reference, folder)
        if result.faults and not result.hits:
            raise RuntimeError("\n".join(["a sweep failed before anything was killed", *result.faults]))
        new = records(result)
        with args.out.open("a") as file:
            file.writelines(f"{json.dumps(record)}\n" for record in new)
        found += new
        print("\n".join(table(new).splitlines()[2:]), flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Kill parts of running sweeps."
    )
    parser.add_argument("--injections", type=int, default=1, metavar="N", help="run until so many are made")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next one has one more")
    parser.add_argument("--kinds", metavar="A,B", help=f"one run with these only: {', '.join(KINDS)}")
    parser.add_argument(
        "--reference", type=Path, help="folder of the undisturbed run; made there if it is new"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="a line an injection")
    args = parser.parse_args(argv)
    if unknown := set(args.kinds.split(",") if args.kinds else []) - set(KINDS):
        parser.error(f"--kinds: {', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    args.out = args.out or folder / "injections.jsonl"
    found = campaign(args, folder)
    print(f"\n{table(found)}\n\n{summary(found)}")
    if any(record["faults"] for record in found):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
