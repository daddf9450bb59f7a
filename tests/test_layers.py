"""What a module may touch, read off the syntax trees of edc_ray; and that imports point down only."""

import ast
import builtins
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edc_ray"


def module_name(path: Path) -> str:
    """core/data.py -> core.data; core/__init__.py -> core."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str, str]]:
    """(line, the local name, what it stands for) of every import; relative ones start with a dot."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for item in node.names:
                root = item.name.partition(".")[0]
                yield node.lineno, item.asname or root, item.name if item.asname else root
                yield node.lineno, "", item.name
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield node.lineno, "", origin
            for item in node.names:
                yield node.lineno, item.asname or item.name, f"{origin}.{item.name}"


@cache  # most rules ask for the same
def names(tree: ast.AST) -> frozenset[tuple[int, str]]:
    """(line, name) of all used: `np.load` is numpy.load, `path.open` is .open, print builtins.print."""
    return frozenset(_names(list(ast.walk(tree))))


def _names(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    known = {local: full for _, local, full in imports(nodes) if local}
    yield from ((line, full) for line, _, full in imports(nodes))
    for node in nodes:
        if isinstance(node, ast.Name):
            yield node.lineno, known.get(node.id, f"builtins.{node.id}" if hasattr(builtins, node.id) else "")
        elif isinstance(node, ast.Attribute):
            chain, value = [node.attr], node.value
            while isinstance(value, ast.Attribute):
                chain.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id in known:
                chain.append(known[value.id])
                yield node.lineno, ".".join(reversed(chain))
            else:
                yield node.lineno, "." + node.attr


def at_import(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """As `names`, without the bodies of functions."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child)

    return _names(list(walk(tree)))


def unseeded(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls that draw from torch's global generator."""
    draws = r"^torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial|poisson)(_like)?$"
    methods = (
        r"^\.(uniform|normal|bernoulli|exponential|random|geometric|cauchy|log_normal)_$|^\.multinomial$"
    )
    known = {local: full for _, local, full in imports(ast.walk(tree)) if local}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value = node.func.value
            origin = known.get(value.id, "") if isinstance(value, ast.Name) else ""
            name = f"{origin}.{node.func.attr}"
            seeded = any(keyword.arg == "generator" for keyword in node.keywords)
            if re.search(f"{draws}|{methods}", name) and not seeded:
                yield node.lineno, name


@dataclass(frozen=True)
class Rule:
    why: str
    pattern: str  # of dotted names, as `names` spells them
    allowed: str = ""  # modules where it is legal; a package stands for all in it
    only: str = ""  # the rule is only about these; default: every module
    bad: str = ""  # a line that breaks it
    find: Callable[[ast.Module], Iterable[tuple[int, str]]] = names

    def applies(self, module: str) -> bool:
        return (not self.only or _inside(module, self.only)) and not _inside(module, self.allowed)

    def broken(self, tree: ast.Module) -> list[tuple[int, str]]:
        return sorted({(line, name) for line, name in self.find(tree) if re.search(self.pattern, name)})


def _inside(module: str, places: str) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places.split())


GLOBAL_RNG = (
    r"^torch\.(cuda\.|random\.)?(manual_seed|manual_seed_all|seed|seed_all|initial_seed|default_generator"
    r"|[gs]et_rng_state(_all)?|fork_rng)$"
)
WRITES = (
    r"^(shutil|tempfile|pickle|cloudpickle|dill|joblib|h5py|sqlite3|pyarrow\.fs)(\.|$)"
    r"|^\.(write_text|write_bytes|mkdir|rmdir|unlink|touch|hardlink_to|symlink_to)$"
    r"|^os\.(replace|renames?|remove|unlink|mkdir|makedirs|rmdir|open|write|fsync|link|symlink|truncate)$"
    r"|^torch\.save$|^numpy\.(save|savez|savez_compressed|savetxt)$"
    r"|^safetensors\.(torch|numpy)\.save(_file)?$|^pyarrow\.(parquet\.(write_\w+|ParquetWriter)|OSFile)$"
)
READS = (
    r"^(builtins|io)\.open$|^\.(open|read_text|read_bytes|iterdir|r?glob)$|^os\.(listdir|scandir|walk)$"
    r"|^glob(\.|$)|^torch\.load$|^numpy\.(load|loadtxt|fromfile|memmap)$"
    r"|^safetensors\.((torch|numpy)\.load(_file)?|safe_open)$"
    r"|^pyarrow\.(memory_map|parquet\.(read_\w+|ParquetFile|ParquetDataset))$"
)
RIM = r"^os\.(environ|getenv|putenv)|^sys\.argv$|^argparse(\.|$)"
CLOCK = r"^(time|datetime|socket|platform)(\.|$)"
TERMINAL = r"^builtins\.(print|input)$|^sys\.(stdout|stderr)(\.|$)"

RULES = {
    "ray": Rule(
        "Ray stays at the rim",
        r"^ray(\.|$)",
        "distributed tuning live session sweep monitor cli",
        bad="import ray",
    ),
    "optuna": Rule(
        "Optuna is the search's",
        r"^optuna(\.|$)",
        "journal space spend reuse tuning warm claim sweep report status",
        bad="import optuna",
    ),
    "pydantic": Rule("the method runs without pydantic", r"^pydantic", "config", bad="import pydantic"),
    "pydantic at import": Rule(
        "import it inside the function",
        r"^pydantic",
        bad="import pydantic",
        find=at_import,
    ),
    "matplotlib": Rule("pictures are the report's", r"^matplotlib", "report", bad="import matplotlib.pyplot"),
    "torch": Rule(
        "plain data only", r"^torch(\.|$)", only="config presets space", bad="from torch import nn"
    ),
    "print": Rule("use logging", TERMINAL, "cli sweep session report", bad="print(1)"),
    "write": Rule("only artifacts writes, and no pickles", WRITES, "artifacts", bad="path.write_text('')"),
    "read": Rule(
        "read through the Store", READS, "artifacts config core.data core.models tuning", bad="open('x')"
    ),
    "clock, host": Rule(
        "results know no time or place", CLOCK, only="core config presets space", bad="import time"
    ),
    "environment": Rule(
        "arguments come from the rim", RIM, "sweep live session cli report", bad="import os; os.environ['A']"
    ),
    "global generator": Rule(
        "randomness is an argument", GLOBAL_RNG, "core.random", bad="import torch; torch.manual_seed(0)"
    ),
    "random, numpy.random": Rule(
        "use torch.Generator", r"^(random|numpy\.random)(\.|$)", bad="import numpy as np; np.random.rand()"
    ),
    "unseeded draw": Rule(
        "pass generator=", "", "core.random core.models", bad="import torch; torch.rand(2)", find=unseeded
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_module_touches_only_what_it_may(name: str) -> None:
    rule = RULES[name]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for module, path in MODULES.items()
        if rule.applies(module)
        for line, what in rule.broken(parse(path))
    ]
    assert not found, f"{rule.why} (legal only in: {rule.allowed or 'no module'})\n" + "\n".join(found)


@pytest.mark.parametrize("name", RULES)
def test_the_rule_would_be_noticed(name: str) -> None:
    assert RULES[name].broken(ast.parse(RULES[name].bad))


def test_modules_have_at_most_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES.values()}
    assert not {path: length for path, length in lengths.items() if length > 400}


def test_functions_have_at_most_60_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines"
        for path in MODULES.values()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long, "\n".join(long)


def test_code_is_ascii() -> None:
    folders = [PACKAGE, ROOT / "tests", ROOT / "benchmarks"]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert not [str(path.relative_to(ROOT)) for path in files if not path.read_bytes().isascii()]


def test_every_module_has_a_layer_and_every_package_is_installed() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    layers = " ".join(tool["importlinter"]["contracts"][0]["layers"]).replace("edc_ray.", "").split()
    free = {"", "core", "testing"}  # the packages themselves, and the batteries that plug-ins run
    assert not [name for name in MODULES if name not in free and not _inside(name, " ".join(layers))]
    packages = {".".join(path.relative_to(ROOT).parts[:-1]) for path in PACKAGE.rglob("__init__.py")}
    assert packages <= set(tool["setuptools"]["packages"])


def test_imports_point_down_only() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
