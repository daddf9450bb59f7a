"""Runs every test that needs no Ray, once: `python tests/ray_free.py [pytest options]`.

The tests of the method run where Ray and Optuna cannot be imported, those of core also without pydantic
(conftest.py refuses what EDC_REFUSE names): that is how the method runs on a bare GPU machine.

A group is one process, and the groups run side by side: what they import costs more than what they share.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
REFUSED = {  # what cannot be imported -> the modules that are tested so
    "ray optuna pydantic": [
        "conformance", "data", "init", "matching", "models", "recover", "relabel", "schedules", "stats",
        "train", "views",
    ],
    "ray optuna": ["artifacts", "config", "golden", "pipeline"],
}  # fmt: skip


def main(options: list[str]) -> int:
    """The sum of the groups' exit codes; a failing group does not keep the others from running."""
    groups = {refused: [f"test_{name}.py" for name in names] for refused, names in REFUSED.items()}
    named = {file for files in groups.values() for file in files}
    rest = sorted(path.name for path in HERE.glob("test_*.py") if path.name not in named)
    work = [("", rest), *groups.items()]  # the longest first
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda group: _run(*group, options), work))


def _run(refused: str, files: list[str], options: list[str]) -> int:
    """One group in a process; tells at its end, so that groups do not mix."""
    name = "-".join(["without", *refused.split()]) if refused else "whole"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not ray and not slow and not gpu", *options]
    # With --cov each process has a file of its own; the next one that appends to .coverage takes them in.
    more = {"EDC_REFUSE": refused, "COVERAGE_FILE": f".coverage.{name}"}
    command += [str(HERE / file) for file in files]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=os.environ | more, **out)
    print(f"{name}: {len(files)} files\n{done.stdout}", end="", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
