"""Seeded bugs, each with the tests that must catch it. `make mutants`, or `python -m tests.mutants WORD ...`.

Every mutant is put into a copy of the package, one at a time, and only the named tests run on it. One that
survives, or whose text is no longer in its file, is a failure. tests/mutant_list.py has the list.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
SIDE_BY_SIDE = 2
SECONDS = 180.0  # a mutant that never ends is caught too
# Imported once; each run is a fork, as these take longer than the tests.
WARM = ("torch", "torchvision", "sklearn.datasets", "pydantic", "pyarrow.parquet", "PIL.Image", "fsspec",
        "safetensors.torch", "optuna", "scipy.stats")  # fmt: skip
PASSED, FAILED, ENDLESS = 100, 101, -9  # exit codes of a run, pytest's + 100; all others are no verdict


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """The text of the mutant's file with the bug in it.

    Raises:
        LookupError: the old text does not occur exactly once.
    """
    text = (root / mutant.file).read_text()
    if (count := text.count(mutant.old)) != 1:
        raise LookupError(f"its text occurs {count} times in {mutant.file}")
    return text.replace(mutant.old, mutant.new)


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """What tests read of the repository, without compiled files, which a mutant would not change."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "repo"
        unwanted = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "store", "build", "dist")
        shutil.copytree(root, copy, ignore=unwanted, symlinks=True)
        yield copy


@dataclass(slots=True)
class Run:
    """pytest at work in a copy, on one mutant or, to know that it is the mutant that fails, on none."""

    mutant: Mutant | None
    copy: Path
    began: float
    process: BaseProcess

    @property
    def log(self) -> Path:
        return self.copy.parent / "log"

    def verdict(self) -> tuple[bool, str]:
        """(as it should be, why)."""
        code, output = self.process.exitcode, self.log.read_text()
        if self.mutant is None:
            return code == PASSED, "" if code == PASSED else output[-2000:]
        if code == PASSED:
            return False, "SURVIVED"
        if code in (FAILED, ENDLESS):
            lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return True, lines[0].split()[1] if lines else "did not end"
        return False, f"no verdict, pytest ended with {code}:\n{output[-2000:]}"


def start(mutant: Mutant | None, copy: Path, tests: Sequence[str]) -> Run:
    """Raises LookupError as `mutated`."""
    if mutant is not None:
        (copy / mutant.file).write_text(mutated(mutant, copy))
    process = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(copy, list(tests)))
    process.start()
    return Run(mutant, copy, time.monotonic(), process)


def _run_pytest(copy: Path, tests: list[str]) -> None:
    """In the fork: this package and the tests are those of the copy."""
    log = os.open(copy.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "edc_ray")]:
        del sys.modules[name]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not ray and not slow and not gpu"]
    code = int(pytest.main([*options, *tests]))
    assert str(copy) in str(import_module("edc_ray").__file__)
    sys.stdout.flush()
    os._exit(100 + code)


def main(words: Sequence[str]) -> int:
    """0 = all are caught, and the tests pass without them."""
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    os.environ.setdefault("EDC_CONFORMANCE", str(ROOT.parent / "shared" / "conformance"))
    for name in WARM:
        with suppress(ImportError):
            import_module(name)
    chosen = [m for m in MUTANTS if not words or any(word in f"{m.file} {m.what}" for word in words)]
    began, good = time.monotonic(), list[bool]()
    todo: list[tuple[Mutant | None, list[str]]] = [(m, m.tests.split()) for m in chosen]
    todo.insert(0, (None, sorted({test for _, tests in todo for test in tests})))
    with copy_of(ROOT) as one, copy_of(ROOT) as two:
        free, running = [one, two][:SIDE_BY_SIDE], list[Run]()
        while todo or running:
            while todo and free:
                mutant, tests = todo.pop(0)
                copy = free.pop()
                try:
                    running.append(start(mutant, copy, tests))
                except LookupError as error:
                    good.append(_tell(mutant, False, str(error), 0.0))
                    free.append(copy)
            wait([run.process.sentinel for run in running], timeout=1.0)
            for run in list(running):
                if time.monotonic() - run.began > SECONDS * (1 if run.mutant else 10):
                    run.process.kill()
                    run.process.join()
                if run.process.exitcode is None:
                    continue
                good.append(_tell(run.mutant, *run.verdict(), time.monotonic() - run.began))
                if run.mutant is not None:
                    shutil.copy(ROOT / run.mutant.file, run.copy / run.mutant.file)
                running.remove(run)
                free.append(run.copy)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(chosen)} mutants in {minutes:.1f} minutes, {good.count(False)} failures")
    return 0 if chosen and all(good) else 1


def _tell(mutant: Mutant | None, good: bool, why: str, seconds: float) -> bool:
    what = f"{mutant.file}: {mutant.what}" if mutant else "without a mutant"
    print(f"{'ok  ' if good else 'FAIL'} {seconds:5.1f} s  {what}  [{why}]", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
