"""The seeded bugs of tests/mutants.py: one row each, with the tests that must catch it."""

from dataclasses import dataclass

CORE, PIPELINE = "edc_ray/core/", "edc_ray/pipeline/"


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` occurs once in `file`. tests: files or nodes, as pytest takes them, separated by spaces."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS: list[Mutant] = [
    # --- initial images ---
    Mutant(
        "RDED keeps the hardest crops", CORE + "init.py",
        "order = torch.cat(losses).argsort(stable=True)[: needed(cfg)]",
        "order = torch.cat(losses).argsort(stable=True, descending=True)[: needed(cfg)]",
        "tests/test_init.py",
    ),
    Mutant(
        "RDED tiles the crops of one image side by side", CORE + "init.py",
        "crops.unflatten(0, (factor, factor, -1))",
        "crops.unflatten(0, (-1, factor, factor)).permute(1, 2, 0, 3, 4, 5)",
        "tests/test_init.py",
    ),
    Mutant(
        "RDED keeps the first crop of an image", CORE + "init.py",
        "easiest = loss.argmin(1)", "easiest = loss.argmin(1) * 0", "tests/test_init.py",
    ),
    Mutant(
        "small crops are scored in a corner", CORE + "init.py",
        "sides = (less // 2, less - less // 2)", "sides = (0, less)", "tests/test_init.py",
    ),
    Mutant(
        "images are drawn with replacement when they should not be", CORE + "init.py",
        "if cfg.replacement:", "if not cfg.replacement:", "tests/test_init.py",
    ),
]  # fmt: skip
