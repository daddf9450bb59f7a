"""Disturb sweeps until so many injections are made: a table, and a JSONL of them all.

    python -m tests.chaos --injections 60 --out tests/chaos/injections.jsonl    (make chaos N=60)
    python -m tests.chaos --seed 3 --kinds node,driver                          one run again

Exit code 1: a run lost something. Its folder, with the driver's output, is kept.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from scipy import stats

from tests.chaos.inject import KINDS, Reference, Result, plan, run, undisturbed
from tests.chaos.nodes import ROOT, adopt_orphans

PER_RUN = 4
HEADER = """| seed | kind@finished units | seconds | most seconds unsaved | verdict | again |
|---|---|---|---|---|---|"""


def deal(seed: int) -> Iterator[list[str]]:
    """Kinds for one run after the other: each comes once before any comes again."""
    random, deck = Random(seed), list[str]()
    while True:
        while len(deck) < PER_RUN:
            deck += random.sample(KINDS, len(KINDS))
        yield deck[:PER_RUN]
        del deck[:PER_RUN]


def one(seed: int, kinds: Sequence[str], reference: Reference, folder: Path) -> Result:
    place = folder / f"run-{seed}"
    place.mkdir()
    result = run(seed, plan(seed, kinds, reference), kinds, place, reference.store)
    if not result.faults:
        shutil.rmtree(place)
    return result


def row(result: Result) -> str:
    """Of the table: what struck after how many finished units; what was lost."""
    hits = ", ".join(f"{hit.kind}@{hit.units}" for hit in result.hits)
    unsaved = max((hit.unsaved for hit in result.hits), default=0.0)
    verdict = "; ".join(result.faults) or "nothing lost"
    return (
        f"| {result.seed} | {hits} | {result.seconds:.0f} | {unsaved:.1f} | {verdict} | `{result.replay}` |"
    )


def lines(result: Result, commit: str) -> Iterator[str]:
    """Of the JSONL: one an injection."""
    run = {
        "seed": result.seed,
        "replay": result.replay,
        "commit": commit,
        "run_seconds": round(result.seconds, 1),
    }
    for hit in result.hits:
        facts = {name: round(v, 2) if isinstance(v, float) else v for name, v in asdict(hit).items()}
        yield json.dumps(facts | run | {"faults": result.faults})


def bound(lost: int, injections: int) -> float:
    """Upper end of the one-sided 95 % interval of the share of injections that lose something
    (Clopper-Pearson; without a loss about 3 / injections).
    """
    return float(stats.beta.ppf(0.95, lost + 1, injections - lost)) if lost < injections else 1.0


def summary(results: Sequence[Result]) -> str:
    """By kind, and the bound; a run that lost something counts as a loss of each of its injections."""
    text = ["| kind | injections | in runs that lost something | most seconds unsaved |", "|---|---|---|---|"]
    hits = [(hit, bool(result.faults)) for result in results for hit in result.hits]
    for kind in KINDS:
        of = [(hit, lost) for hit, lost in hits if hit.kind == kind]
        unsaved = max((hit.unsaved for hit, _ in of), default=0.0)
        text.append(f"| {kind} | {len(of)} | {sum(lost for _, lost in of)} | {unsaved:.1f} |")
    lost = sum(lost for _, lost in hits)
    if hits:
        text.append(
            f"\n{len(hits)} injections in {len(results)} runs, {lost} of them in runs that lost something:"
        )
        text.append(
            f"with 95 % confidence less than {100 * bound(lost, len(hits)):.1f} % of such injections do."
        )
    return "\n".join(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Kill parts of running sweeps."
    )
    parser.add_argument("--injections", type=int, default=1, metavar="N", help="run until so many are made")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next one has one more")
    parser.add_argument(
        "--kinds", metavar="A,B", help=f"of one run, instead of random ones: {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--reference", type=Path, help="folder of the undisturbed run; made there if it is new"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="a line an injection is added")
    args = parser.parse_args(argv)
    kinds = args.kinds.split(",") if args.kinds else []
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds: {', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    reference = undisturbed(args.reference or folder / "undisturbed")
    print(f"undisturbed: {len(reference.timeline)} units, {reference.seconds:.0f} s; folder {folder}\n")
    print(HEADER)
    results = list[Result]()
    for seed, dealt in enumerate(deal(args.seed), args.seed):
        results.append(one(seed, kinds or dealt, reference, folder))
        print(row(results[-1]), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.writelines(f"{line}\n" for line in lines(results[-1], _commit()))
        if kinds or sum(len(result.hits) for result in results) >= args.injections:
            break
    print(f"\n{summary(results)}")
    failed = any(result.faults for result in results)
    if not failed:
        shutil.rmtree(folder)
    return int(failed)


def _commit() -> str:
    told = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(told, cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
