"""Runs every test that needs no Ray, once: `python tests/ray_free.py [pytest options]`.

The tests of the method run where Ray and Optuna cannot be imported, those of core also without pydantic
(conftest.py refuses what EDC_REFUSE names): that is how the method runs on a bare GPU machine.

A group is one process; they run side by side, as forks of one that has imported what takes seconds. That is
also core, with the checks of its shapes, where nothing that any group refuses can be imported.
"""

import gc
import os
import shutil
import sys
import tempfile
import tomllib
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from jaxtyping import install_import_hook

HERE = Path(__file__).parent
REFUSED = {  # what cannot be imported -> the modules that are tested so
    "ray optuna pydantic": [
        "conformance", "data", "init", "matching", "models", "recover", "relabel", "schedules", "stats",
        "train", "views",
    ],
    "ray optuna": [
        "alone", "artifacts", "condense", "config", "evict", "golden", "memory", "observers", "pipeline",
        "shards", "weights",
    ],
}  # fmt: skip
# Of threads, these start only the one of pyarrow's jemalloc, which starts it again in a fork.
WARM = ("torchvision", "scipy.stats", "pytest", "timm", "sklearn.datasets", "hypothesis")
# Of pytest's own plugins among them, whose asserts nobody needs to read.
EARLY = "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning"
MEMORY = Path("/dev/shm")  # the tests sync thousands of small files, 100 MB in all


def main(options: list[str]) -> int:
    """The sum of the groups' exit codes; a failing group does not keep the others from running."""
    groups = {refused: [f"test_{name}.py" for name in names] for refused, names in REFUSED.items()}
    named = {file for files in groups.values() for file in files}
    paths = (path for path in HERE.glob("test_*.py") if path.name not in named)
    # By size, as a guess of how long they take.
    rest = [name for _, name in sorted((path.stat().st_size, path.name) for path in paths)]
    os.environ |= {"OMP_NUM_THREADS": "1"}  # a process of many threads is no good parent
    for name in WARM:
        import_module(name)
    if not any(option.startswith("--cov") for option in options):  # which counts no line of before the fork
        options = [*options, _import_core()]
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**30
    with tempfile.TemporaryDirectory(prefix="edc-", dir=MEMORY if roomy else None) as folder:
        # All at once, as some tests wait. What nothing is refused to in two parts, so that no core is idle.
        return _side_by_side([*groups.items(), ("", rest[::2]), ("", rest[1::2])], Path(folder), options)


def _import_core() -> str:
    """Returns the option with which pytest does not do it once more."""
    root = HERE.parent
    given = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    option, checks = next(each.split("=", 1) for each in given if each.startswith("--jaxtyping-packages="))
    package, checker = checks.split(",", 1)
    refused = {name for names in REFUSED for name in names.split()}
    sys.modules |= dict.fromkeys(refused)  # type: ignore[arg-type]  # None: see conftest.py
    sys.path.insert(0, str(root))
    with install_import_hook(package, checker):
        for path in sorted((root / package.replace(".", "/")).rglob("*.py")):
            import_module(".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
    for name in refused:
        del sys.modules[name]
    return f"{option}="


def _side_by_side(groups: list[tuple[str, list[str]]], folder: Path, options: list[str]) -> int:
    running, failed = dict[str, BaseProcess](), 0
    for refused, files in groups:
        name = "-".join(["without", *refused.split()]) if refused else f"from-{files[0]}"
        running[name] = get_context("fork").Process(target=_run, args=(name, refused, files, folder, options))
        running[name].start()
    while running:
        wait([process.sentinel for process in running.values()])
        for name in [name for name, process in running.items() if process.exitcode is not None]:
            print(f"{name}:\n{(folder / name).read_text()}", end="", flush=True)
            failed += abs(running.pop(name).exitcode or 0)
    return failed


def _run(name: str, refused: str, files: list[str], folder: Path, options: list[str]) -> None:
    """In the fork: one group, whose output goes to a file, so that groups do not mix."""
    gc.freeze()  # as conftest.py does, but before the tests are collected
    log = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    cov = str(Path(f".coverage.{name}").absolute())  # the next --cov-append takes them in
    os.environ |= {"EDC_REFUSE": refused, "PYTEST_DEBUG_TEMPROOT": str(folder), "COVERAGE_FILE": cov}
    marks = "not ray and not slow and not gpu"
    options = ["-q", "-W", EARLY, "-m", marks, *options]
    code = import_module("pytest").main([*options, *(str(HERE / file) for file in files)])
    sys.exit(int(code))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
