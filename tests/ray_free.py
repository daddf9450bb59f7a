"""Runs every test that needs no Ray, once: `python tests/ray_free.py [pytest options]`.

The tests of the method run where Ray and Optuna cannot be imported, those of core also without pydantic
(conftest.py refuses what EDC_REFUSE names): that is how the method runs on a bare GPU machine.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
REFUSED = {  # what cannot be imported -> the modules that are tested so
    "ray optuna pydantic": [
        "conformance", "data", "init", "losses", "matching", "models", "recover", "relabel", "schedules",
        "squeeze", "stats", "train", "views",
    ],
    "ray optuna": ["artifacts", "config", "golden", "pipeline"],
}  # fmt: skip


def main(options: list[str]) -> int:
    """The sum of the groups' exit codes; a failing group does not keep the others from running."""
    left, failed = {path.name for path in HERE.glob("test_*.py")}, 0
    groups = {refused: [f"test_{name}.py" for name in names] for refused, names in REFUSED.items()}
    for refused, files in [*groups.items(), ("", [])]:
        chosen = sorted(left & set(files)) if refused else sorted(left)
        left -= set(chosen)
        print(f"without {refused.replace(' ', ', ') or 'nothing'}: {len(chosen)} files", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "not ray and not slow and not gpu"]
        paths = [str(HERE / name) for name in chosen]
        done = subprocess.run([*command, *options, *paths], env=os.environ | {"EDC_REFUSE": refused})
        failed += done.returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
