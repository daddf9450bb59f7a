"""Functions of the user's own, which a config names as `module:function`: networks and matching losses.

The module must be importable wherever a worker runs: from the working directory, or installed.
"""

import ast
import functools
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from edc_ray.config import ConfigError

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")
_INSTALLED = ("site-packages", "dist-packages")


def is_reference(name: str) -> bool:
    """Whether it has the form module:function."""
    return _REFERENCE.fullmatch(name) is not None


def resolve(path: str, name: str) -> Callable[..., Any]:
    """The function that `module:function`, the value of the config field `path`, stands for.

    Raises:
        ConfigError: the module cannot be imported, lacks that name, or it is no function.
    """
    module, _, inner = name.partition(":")
    found: Any = _imported(path, name, module)
    for part in inner.split("."):
        if not hasattr(found, part):
            raise ConfigError(path, name, f"the module {module} has no {inner}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(path, name, f"must be a function; it is of type {type(found).__name__}")
    return found


def _imported(path: str, name: str, module: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:  # a command's own folder is there instead; the last place, so nothing is hidden
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except Exception as error:  # what a module of the user's own raises is in no list
        why = f"{type(error).__name__}: {(str(error) or 'no reason').splitlines()[0]}"
        legal = f"cannot be imported ({why}); must be in the working directory {here}, or installed"
        raise ConfigError(path, name, legal) from error


# --- names of artifacts -------------------------------------------------------------------------------------


def fingerprint(names: Iterable[str]) -> str | None:
    """Hash of the source of those that are `module:function`; None where there is no such name."""
    sources = [f"{name} {_source(name)}\n" for name in names if is_reference(name)]
    return hashlib.sha256("".join(sources).encode()).hexdigest() if sources else None


@functools.cache  # the disk is asked once a process, as the module is imported once
def _source(name: str) -> str:
    module = name.partition(":")[0]
    digest = hashlib.sha256()
    for file in sorted(_files(_imported("plug-in", name, module), name)):
        digest.update(f"{file.name}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _files(module: ModuleType, name: str) -> set[Path]:
    """Of a module in a package all of that package; else its file and what it imports that lies beside it."""
    top = sys.modules[module.__name__.partition(".")[0]]
    if hasattr(top, "__path__"):
        return {file for folder in top.__path__ for file in Path(folder).rglob("*.py")}
    if module.__file__ is None or not module.__file__.endswith(".py"):
        raise ConfigError(
            "plug-in", name, "has no source file, so that its artifacts could not be told apart"
        )
    found, todo = set[Path](), [Path(module.__file__)]
    while todo:
        file = todo.pop()
        if file not in found and file.is_file():
            found.add(file)
            todo += _beside(file) if file.parent.name not in _INSTALLED else ()
    return found


def _beside(file: Path) -> Iterator[Path]:
    """Modules and packages in the same folder that the file imports."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or alias.name for alias in node.names]
        for name in {name.partition(".")[0] for name in names}:
            yield file.with_name(f"{name}.py")
            yield from (file.parent / name).rglob("*.py")
