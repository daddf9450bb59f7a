"""The list of mutants still fits the code; `make mutants` runs them."""

import ast
from pathlib import Path

import pytest

from tests.mutant_list import MUTANTS, Mutant
from tests.mutants import ROOT, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_fits_its_file_and_names_tests_that_there_are(mutant: Mutant) -> None:
    """Its text occurs once, it changes the program, and the result is one."""
    whole = (ROOT / mutant.file).read_text()
    assert ast.dump(ast.parse(mutated(mutant))) != ast.dump(ast.parse(whole))
    for test in mutant.tests.split():
        file, _, name = test.partition("::")
        found = ast.parse((ROOT / file).read_text()).body
        names = [each.name for each in found if isinstance(each, ast.FunctionDef)]
        assert any(each.startswith("test_") for each in names)
        assert not name or name in names, f"{file} has no {name}"


def test_mutants_are_many_and_different() -> None:
    assert len(MUTANTS) >= 24
    assert len({mutant.what for mutant in MUTANTS}) == len({(m.file, m.new) for m in MUTANTS}) == len(MUTANTS)


def test_a_mutant_that_no_longer_fits_is_no_mutant(tmp_path: Path) -> None:
    for text, count in (("a = 1", 0), ("b = 1; b = 1", 2)):
        (tmp_path / "x.py").write_text(text)
        with pytest.raises(LookupError, match=rf"its text occurs {count} times in x\.py"):
            mutated(Mutant("what", "x.py", "b = 1", "b = 2", "tests/test_mutants.py"), tmp_path)
