"""The list of mutants still fits the code; `make mutants` runs them."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.mutant_list import MUTANTS, Mutant
from tests.mutants import ROOT, mutated


@cache
def program(file: str) -> str:
    return ast.dump(ast.parse((ROOT / file).read_text()))


@cache
def functions(file: str) -> list[str]:
    tree = ast.parse((ROOT / file).read_text())
    return [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_fits_its_file_and_names_tests_that_there_are(mutant: Mutant) -> None:
    """Its text occurs once, it changes the program, and the result is one."""
    assert ast.dump(ast.parse(mutated(mutant))) != program(mutant.file)
    for test in mutant.tests.split():
        file, _, name = test.partition("::")
        assert any(each.startswith("test_") for each in functions(file))
        assert not name or name in functions(file), f"{file} has no {name}"


def test_mutants_are_many_and_different() -> None:
    assert len(MUTANTS) >= 24
    assert len({mutant.what for mutant in MUTANTS}) == len({(m.file, m.new) for m in MUTANTS}) == len(MUTANTS)


def test_a_mutant_that_no_longer_fits_is_no_mutant(tmp_path: Path) -> None:
    for text, count in (("a = 1", 0), ("b = 1; b = 1", 2)):
        (tmp_path / "x.py").write_text(text)
        with pytest.raises(LookupError, match=rf"its text occurs {count} times in x\.py"):
            mutated(Mutant("what", "x.py", "b = 1", "b = 2", "tests/test_mutants.py"), tmp_path)
