"""Runs the tests of the method where Ray and Optuna cannot be imported, those of core also without pydantic.

`python tests/without_ray.py` runs both groups, each in a process of its own; `... core` runs one.
"""

import subprocess
import sys
from pathlib import Path

import pytest

CORE = ["data", "models", "views", "stats", "matching", "recover", "relabel", "train", "init"]
GROUPS: dict[str, tuple[list[str], list[str]]] = {
    # group: (modules that are refused, modules that are tested)
    "core": (["ray", "optuna", "pydantic"], CORE),
    "pipeline": (["ray", "optuna"], ["config", "artifacts", "pipeline"]),
}


def run(group: str) -> int:
    refused, tested = GROUPS[group]
    for name in refused:
        sys.modules[name] = None  # type: ignore[assignment]  # documented: its import raises ModuleNotFoundError
    print(f"tests of {group} without {', '.join(refused)}", flush=True)
    files = [str(Path(__file__).parent / f"test_{name}.py") for name in tested]
    return pytest.main(["-q", "-m", "not ray and not slow and not gpu", *files])


def main() -> int:
    if len(sys.argv) > 1:
        return run(sys.argv[1])
    running = [
        subprocess.Popen([sys.executable, __file__, group], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for group in GROUPS
    ]
    for process in running:  # side by side; each one's output as a whole
        sys.stdout.buffer.write(process.communicate()[0])
        sys.stdout.flush()
    return int(any(process.returncode for process in running))


if __name__ == "__main__":
    sys.exit(main())
