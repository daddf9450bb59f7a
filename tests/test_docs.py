"""The documents: links lead somewhere, commands parse, names of files and presets exist."""

import dataclasses
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from edc_ray import cli, config, presets, reuse, space, specs
from edc_ray.config import Ladder, Sweep
from edc_ray.presets.protocols import PROTOCOLS
from edc_ray.sweep import first_rung

ROOT = Path(__file__).parents[1]
FOLDERS = ("cluster", "docs", "tests")
DOCUMENTS = sorted(path for folder in (ROOT, *map(ROOT.joinpath, FOLDERS)) for path in folder.glob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:edc-ray|python -m edc_ray\.sweep|make)\b")


def anchors(text: str) -> set[str]:
    """GitHub's: lower case, without punctuation, blanks as hyphens."""
    titles = re.findall(r"^#+ +(.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target.read_text()), f"{link}: no such heading"


# --- commands -----------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """Command lines of the code blocks and of the inline code, without prompt, comment and `> FILE`."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.M | re.S)
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in (*(line for block in blocks for line in block.replace("\\\n", " ").splitlines()), *spans):
        words = re.sub(r"^\$ |\s+#.*$|\s+>.*$", "", line.strip()).removeprefix("ray job submit -- ").strip()
        words = words.removeprefix(".venv/bin/")
        if COMMAND.match(words) and " " in words:
            yield words


COMMANDS = sorted({(path.name, line) for path in DOCUMENTS for line in commands(path.read_text())})
PARSER = cli._parser()


def test_the_readme_shows_the_commands() -> None:
    shown = {line.split(" --set")[0] for name, line in COMMANDS if name == "README.md"}
    assert {"make sweep", "make test", "python -m edc_ray.sweep sweeps/quickstart.yaml"} <= shown
    commands = {module.__name__.rsplit(".", 1)[-1].replace("_", "-") for module in cli.COMMANDS}
    assert {line.split()[1] for line in shown if line.startswith("edc-ray")} == commands - {"schema"}


@pytest.mark.parametrize("line", sorted({line for _, line in COMMANDS}))
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Arguments are read as they would be; nothing runs. What they name must exist, or be made by a sweep."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    if words[0] == "make":
        done = subprocess.run(
            ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return
    argv = ["sweep", *words[3:]] if words[0] == "python" else words[1:]
    args = PARSER.parse_args(argv)
    if args.command == "presets":
        assert args.markdown or presets.find(args.pattern)
        return
    target = getattr(args, "target", None) or "store/"
    if args.command not in ("condense", "plan", "sweep", "doctor") or target.startswith("store/"):
        return  # of a sweep that has run
    if "dataset.path=FOLDER" in args.set:
        args.set.remove("dataset.path=FOLDER")
    if args.target.endswith(".yaml") and specs.is_ladder(args.target):
        specs.load_ladder(args.target, args.set)
    else:
        cli.load(args.target, args.set)


def test_make_targets_of_the_documents_have_a_text() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    named = {line.split()[1] for _, line in COMMANDS if line.startswith("make ")}
    assert named <= {line.split()[0] for line in listed.splitlines()}


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    named = re.findall(
        r"`((?:edc_ray|sweeps|tests|benchmarks)/[\w./]+\.(?:py|yaml|md))`", document.read_text()
    )
    assert not [path for path in named if not (ROOT / path).is_file()]


def test_the_readmes_tree_has_every_module() -> None:
    """Modules at the top of the package by file, packages by folder."""
    tree = re.findall(r"^```\n(edc_ray/.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(tree) == 1
    modules = {path.name for path in (ROOT / "edc_ray").glob("*.py")} - {"__init__.py"}
    packages = {path.parent.name + "/" for path in (ROOT / "edc_ray").glob("*/__init__.py")}
    assert not [name for name in modules | packages if not re.search(rf"(^|\s){re.escape(name)}\s", tree[0])]
    shown = set(re.findall(r"\b(\w+\.py)\b", tree[0]))
    files = {path.name for folder in ("edc_ray", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    assert not shown - files


def test_tables_and_presets_that_are_named_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    for table, path in re.findall(r"`([A-Z]{4,})`, `(edc_ray/[\w/]+\.py)`", readme):
        assert re.search(rf"^{table}\b", (ROOT / path).read_text(), re.M), f"{table} in {path}"
    assert set(re.findall(r"\b(?:digits|edc/\w+)/ipc\d+", readme)) <= presets.PRESETS.keys()


def test_the_command_is_installed_under_the_name_that_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"edc-ray": "edc_ray.cli:main"}


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").rglob("*.yaml")), ids=lambda path: path.stem)
def test_sweep_files_say_how_to_run_them(file: Path) -> None:
    assert f"python -m edc_ray.sweep {file.relative_to(ROOT)}" in file.read_text()
    if specs.is_ladder(str(file)):
        assert specs.load_ladder(str(file))[0].rows
    else:
        assert specs.load_file(str(file))[0].search


# --- YAML ---------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.M | re.S)
YAML = [
    pytest.param(block, id=f"{path.name}:{i}")
    for path in DOCUMENTS
    if path.parent.name != "cluster"  # test_cluster_files.py
    for i, block in enumerate(BLOCK.findall(path.read_text()))
]


@pytest.mark.parametrize("block", YAML)
def test_yaml_of_the_documents_is_a_file_that_would_run(block: str, tmp_path: Path) -> None:
    """What needs no data, package or earlier sweep is checked as before a run; an editor marks nothing."""
    file = tmp_path / "file.yaml"
    file.write_text(block)
    data, cls = config.read_yaml(file), Ladder if specs.is_ladder(str(file)) else Sweep
    legal = config.schema(cls, sorted(presets.PRESETS), list(PROTOCOLS))
    found = jsonschema.Draft202012Validator(legal).iter_errors(data)
    assert [error.message for error in found] == []
    if specs.is_ladder(str(file)):
        compared, base = specs.load_ladder(str(file))
        for row in compared.rows.values():
            config.override(base, dict(specs.flatten(row.set)))
        return
    sweep, base = specs.load_file(str(file))
    if sweep.search:
        space.check(sweep.search, base)
        reuse.check(sweep, base)
    if sweep.sampler == "grid":
        space.check_grid(sweep)
    if sweep.scheduler.kind == "asha":
        first_rung(sweep, base)


def test_the_page_of_the_sweep_file_has_every_section() -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "sweep_file.md").read_text())
    shown = {name for block in blocks for name in re.findall(r"^(\w+):", block, re.M)}
    assert {f.name for f in dataclasses.fields(Sweep)} - {"inner"} <= shown | {"seed"}


# --- the method ---------------------------------------------------------------------------------------------


def test_sections_of_the_method_that_are_named_exist() -> None:
    """`method.md 2.6`, as the texts of fields and docstrings say, is a heading of docs/method.md."""
    headings = set(re.findall(r"^#+ (\d+(?:\.\d+)?)\b", (ROOT / "docs" / "method.md").read_text(), re.M))
    sources = [path for name in ("edc_ray", "tests", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    named = {
        number
        for path in (*sources, *DOCUMENTS, *(ROOT / "sweeps").glob("*.yaml"))
        for number in re.findall(r"method\.md (\d+(?:\.\d+)?)", path.read_text())
    }
    assert len(named) > 20 and not named - headings
