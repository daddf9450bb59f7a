"""Runs every benchmark that needs no data, and writes what they print to benchmarks/RESULTS.md.

    python benchmarks/all.py [--device cpu]

Exit code 1: one of them missed a goal by more than the spread, or failed.
"""

import argparse
import datetime
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
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
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    pages, missed = [], []
    for path in sorted(HERE.glob("*.py")):
        if path.stem in NOT_HERE:
            continue
        began, command = time.perf_counter(), f"python benchmarks/{path.name} --device {args.device}"
        print(f"## {command}", flush=True)
        done = subprocess.run(
            [sys.executable, path, "--device", args.device], stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - began
        print(done.stdout, f"{seconds:.0f} s, exit code {done.returncode}\n", sep="\n", flush=True)
        pages.append(f"## `{command}`\n\n{done.stdout}\n{seconds:.0f} s, exit code {done.returncode}.\n")
        missed += [path.name] * (done.returncode != 0)
    head = f"# Results of `make bench`, {datetime.date.today()}\n\nWritten by `benchmarks/all.py`.\n\n"
    (HERE / "RESULTS.md").write_text(head + "\n".join(pages))
    print(f"missed or failed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
