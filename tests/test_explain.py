"""`edc-ray explain`: every field is explained, and what it says of stages is what their names do."""

import json
import re
from operator import attrgetter
from pathlib import Path

import pytest

from edc_ray import cli, config, pipeline, space
from edc_ray.cli import explain
from edc_ray.config import ConfigError, Experiment, Sweep


def rows(path: str) -> dict[str, str]:
    """What is said of a field, by the name of the row."""
    head, *rest = explain.lines(path)
    return {"meaning": head, **{line[2:14].strip(): line[15:] for line in rest}}


@pytest.mark.parametrize("path", config.paths(Experiment))
def test_every_field_of_an_experiment_is_explained(path: str) -> None:
    said, f = rows(f"experiment.{path}"), config.paths(Experiment)[path]
    assert said["meaning"].startswith(f"experiment.{path}: {f.metadata['doc']}")
    assert said["makes anew"] and ("EDC paper" in said) == (path.partition(".")[0] not in pipeline.ENDS)
    assert ("searched" in said) == (f.metadata["search"] is not None)
    assert ("only where" in said) == bool(f.metadata["when"])


def test_one_field() -> None:
    said = rows("recover.matching.weight")
    assert said == rows("experiment.recover.matching.weight") == rows("search.recover.matching.weight")
    assert said["meaning"] == "experiment.recover.matching.weight: r, beside the cross-entropy"
    assert said["type"] == "number, >= 0" and said["default"] == "0.01"
    assert '"high": 1.0, "log": true' in said["searched"]
    assert said["makes anew"] == "recover, relabel, evaluate"
    assert "(method.md 2.6)" in said["section"] and said["EDC paper"].startswith("0.01 (12 of 15 presets)")
    assert "P5: no script has it on" in rows("recover.flatness.kind")["EDC official"]
    assert rows("evaluate.temperature")["only where"] == 'evaluate.loss = "kl" or "dist"'
    assert rows("dataset.size_px")["type"] == "whole number, in [8, 1024] px"
    assert rows("dataset.path")["makes anew"].startswith("nothing by itself")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("split.seed", 1), ("squeeze.epochs", 3), ("statistics.patch", 2), ("init.seed", 5),
        ("recover.lr", 0.1),
        ("recover.matching.weight", 0.5), ("relabel.batch_size", 7), ("evaluate.lr", 0.1), ("seed", 3),
    ],
)  # fmt: skip
def test_the_stages_it_makes_anew_are_those_whose_names_change(path: str, value: object) -> None:
    base = Experiment()
    changed = config.override(base, {path: value})
    before, after = ({task.stage: task.key for task in pipeline.tasks(e)} for e in (base, changed))
    told = rows(f"experiment.{path}")["makes anew"].split(", ")
    assert told == [stage for stage in before if before[stage] != after[stage]]


def test_what_the_sparse_network_reads_makes_it_anew_too() -> None:
    """As the names of both do, of an experiment that has both."""
    base, seen = config.override(Experiment(), {"apply.name": "slimming"}), set()
    for path, value in {"network": "convnet_w16_d2", "l1": 0.5, "epochs": 7, "kept": [0.3]}.items():
        changed = config.override(base, {f"apply.{path}": value})
        before, after = ({t.stage: t.key for t in pipeline.tasks(e, "apply")} for e in (base, changed))
        told = rows(f"experiment.apply.{path}")["makes anew"]
        assert told.split(", ") == [stage for stage in before if before[stage] != after[stage]]
        seen.add(told)
    assert seen == {"sparse, apply", "apply"}
    assert rows("diagnose.what")["makes anew"] == "diagnose"


def test_fields_of_the_file_and_sections() -> None:
    assert rows("seed")["meaning"] == "seed: of the sampler"  # as `--set seed=1` takes it
    assert rows("budget.core_hours")["type"] == "number or null, >= 0 h"
    assert rows("search.inner")["default"] == "1"
    lines = explain.lines("recover.matching")
    assert lines[0].startswith("experiment.recover.matching: The statistical loss")
    assert any(
        line.split() == ["weight", "=", "0.01", "r,", "beside", "the", "cross-entropy"] for line in lines
    )
    top = "\n".join(explain.lines(""))
    assert all(re.search(rf"^  {name}\b", top, re.M) for name in config.dump(Sweep()))


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("recover.matchng.weight", "did you mean recover.matching.weight"),
        ("budget.trails", "did you mean budget.trials"),
        ("nothing.at.all", "unknown"),
    ],
)
def test_an_unknown_path_is_told_with_near_matches(
    path: str, hint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=hint):
        explain.lines(path)
    assert cli.main(["explain", path]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: path = '{path}'") and err.count("\n") == 1


def test_every_default_is_the_one_that_counts() -> None:
    for path in config.paths(Experiment):
        value = attrgetter(path)(Experiment())
        plain = list(value) if isinstance(value, tuple) else value
        assert rows(f"experiment.{path}")["default"] == json.dumps(plain)


# --- the document -------------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[1] / "docs" / "design_space.md"


def test_the_document_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--markdown"]) == 0
    out = capsys.readouterr().out
    assert out == DOCUMENT.read_text(), "edc-ray explain --markdown > docs/design_space.md"


def test_the_document_has_what_a_search_may_have() -> None:
    """A row for each field, by section, with the stages that `explain` tells; none that a search refuses."""
    text = DOCUMENT.read_text()
    parts = {part.splitlines()[0]: part for part in text.split("\n## ")[1:]}
    told = {
        f"{section}.{row.split('`')[1]}".removeprefix("experiment."): row.split(" | ")
        for section, part in parts.items()
        for row in re.findall(r"^\| `.*$", part, re.M)
    }
    refused = set()
    for path in config.paths(Experiment):
        try:
            space.check({path: config.Knob(choices=(None,))}, Experiment())
        except ConfigError as error:
            if "cannot be searched" in error.legal:
                refused.add(path)
    assert told.keys() == config.paths(Experiment).keys() - refused and len(refused) > 5
    assert told["recover.matching.weight"][3:] == ["0.001 to 1, log", "recover, relabel, evaluate |"]
    for path, row in told.items():
        assert row[4] == rows(f"experiment.{path}")["makes anew"] + " |"


def test_the_document_takes_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--markdown", "recover.lr"]) == 2
    assert "takes no path" in capsys.readouterr().err
