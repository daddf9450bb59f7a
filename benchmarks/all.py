"""Runs every benchmark that needs no data, and writes what they print to benchmarks/RESULTS.md.

    python benchmarks/all.py [NAME ...] [--device cpu]     only these anew; the others' pages stay as they are

Exit code 1: one of them missed a goal by more than the spread, or failed.
"""

import argparse
import datetime
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
NOT_HERE = {
    "all",
    "common",
    "local_ray",
    "plain",
    "simulated",
    "search",
    "search_table",
    "ddranking_scores",
    "cifar10_reproduction",
}  # those after `simulated`: minutes, another package, CIFAR-10 and a GPU


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stems = sorted({path.stem for path in HERE.glob("*.py")} - NOT_HERE)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(stems)}; default: all")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    if unknown := set(args.names) - set(stems):
        parser.error(f"no benchmark: {', '.join(sorted(unknown))}")
    _, *earlier = re.split(r"^(?=## `)", RESULTS.read_text(), flags=re.M) if args.names else [""]
    pages, missed = {re.split(r"[/.]", page)[1]: page.rstrip() + "\n" for page in earlier}, []
    for path in (HERE / f"{name}.py" for name in args.names or stems):
        began, command = time.perf_counter(), f"python benchmarks/{path.name} --device {args.device}"
        print(f"## {command}", flush=True)
        done = subprocess.run(
            [sys.executable, path, "--device", args.device], stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - began
        print(done.stdout, f"{seconds:.0f} s, exit code {done.returncode}\n", sep="\n", flush=True)
        told = f"{datetime.date.today()}, {seconds:.0f} s, exit code {done.returncode}."
        pages[path.stem] = f"## `{command}`\n\n{done.stdout}\n{told}\n"
        missed += [path.name] * (done.returncode != 0)
    head = "# Results of `make bench`\n\nWritten by `benchmarks/all.py`.\n\n"
    RESULTS.write_text(head + "\n".join(pages[name] for name in stems if name in pages))
    print(f"missed or failed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
