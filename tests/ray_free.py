"""Runs every test that needs no Ray, once: `python tests/ray_free.py [pytest options]`.

The tests of the method run where Ray and Optuna cannot be imported, those of core also without pydantic
(conftest.py refuses what EDC_REFUSE names): that is how the method runs on a bare GPU machine.

A group is one process, as each start costs seconds; the groups run side by side.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
REFUSED = {  # what cannot be imported -> the modules that are tested so
    "ray optuna pydantic": [
        "conformance", "data", "init", "matching", "models", "recover", "relabel", "schedules", "stats",
        "train", "views",
    ],
    "ray optuna": ["alone", "artifacts", "config", "golden", "pipeline"],
}  # fmt: skip
MEMORY = Path("/dev/shm")  # the tests sync thousands of small files, 100 MB in all


def main(options: list[str]) -> int:
    """The sum of the groups' exit codes; a failing group does not keep the others from running."""
    groups = {refused: [f"test_{name}.py" for name in names] for refused, names in REFUSED.items()}
    named = {file for files in groups.values() for file in files}
    rest = sorted(path.name for path in HERE.glob("test_*.py") if path.name not in named)
    work = [("", rest), *groups.items()]  # the longest first
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**30
    with (
        tempfile.TemporaryDirectory(prefix="edc-", dir=MEMORY if roomy else None) as folder,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        runs = [pool.submit(_run, *group, folder, options) for group in work]
        return sum(run.result() for run in runs)


def _run(refused: str, files: list[str], folder: str, options: list[str]) -> int:
    """One group in a process; prints at its end, so that groups do not mix."""
    name = "-".join(["without", *refused.split()]) if refused else "whole"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not ray and not slow and not gpu", *options]
    command += [str(HERE / file) for file in files]
    # With --cov each process has a file of its own, which the next one that appends to .coverage takes in.
    cov = str(Path(f".coverage.{name}").absolute())
    more = {"EDC_REFUSE": refused, "PYTEST_DEBUG_TEMPROOT": folder, "COVERAGE_FILE": cov}
    done = subprocess.run(
        command, env=os.environ | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(f"{name}: {len(files)} files\n{done.stdout}", end="", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
