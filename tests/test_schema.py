"""The JSON Schemas: our files pass, and what `load` refuses for its type or its range does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from edc_ray import cli, config, presets
from edc_ray.config import ConfigError, Experiment, Ladder, Sweep
from edc_ray.presets import protocols
from edc_ray.specs import load_file, load_ladder

FILES = sorted(Path("sweeps").glob("*.yaml"))
SCHEMAS: dict[type, dict[str, Any]] = {
    cls: config.schema(cls, sorted(presets.PRESETS), list(protocols.PROTOCOLS))
    for cls in (Sweep, Ladder, Experiment)
}


def errors(cls: type, data: Any) -> list[str]:
    """Paths of what the schema has against it."""
    found = jsonschema.Draft202012Validator(SCHEMAS[cls]).iter_errors(json.loads(json.dumps(data)))
    return [".".join(map(str, error.absolute_path)) for error in found]


@pytest.mark.parametrize("cls", SCHEMAS, ids=lambda cls: cls.__name__)
def test_the_schema_is_one_and_says_what_fields_mean(cls: type) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[cls])
    text = json.dumps(SCHEMAS[cls])
    assert "r, beside the cross-entropy" in text and "passes over the condensed images [epochs]" in text
    whole = config.dump(Experiment())
    rows: dict[str, Any] = {"rows": {"a": {}}} if cls is Ladder else {}
    assert not errors(cls, whole if cls is Experiment else {"experiment": whole} | rows)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_committed_files_are_legal(file: Path) -> None:
    data = config.read_yaml(file)
    assert errors(Ladder if "rows" in data else Sweep, data) == []


def test_every_field_of_an_experiment_has_a_meaning_and_its_range() -> None:
    section = SCHEMAS[Experiment]
    for path, f in config.paths(Experiment).items():
        node: Any = section
        for name in path.split("."):
            node = node["properties"][name]
            node = section["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        assert node["description"].startswith(f.metadata["doc"]), path
        if f.type in (int, float):
            assert (node.get("minimum"), node.get("maximum")) == (f.metadata["low"], f.metadata["high"]), path
        if path == "recover.betas":
            assert [item["maximum"] for item in node["prefixItems"]] == [0.9999] * 2


BAD: list[tuple[dict[str, Any], str]] = [
    ({"budget": {"trials": 0}}, "budget.trials"),
    ({"budget": {"trils": 4}}, "budget"),
    ({"sampler": "cmaes"}, "sampler"),
    ({"objectives": ["accuracy", "watts"]}, "objectives.1"),
    ({"search": {"recover.lr": {"lo": 1}}}, "search.recover.lr"),
    ({"search": {"recover.lrr": {}}}, "search"),
    ({"search": {"inner": 0}}, "search.inner"),
    ({"inner": 2}, ""),
    ({"experiment": {"recover.matching.weight": -1}}, "experiment.recover.matching.weight"),
    ({"experiment": {"recover": {"matching.weight": "1"}}}, "experiment.recover.matching.weight"),
    (
        {"experiment": {"recover": {"matching": {"class_weight": 2}}}},
        "experiment.recover.matching.class_weight",
    ),
    ({"preset": "edc/cifar11/ipc10"}, "preset"),
    ({"experiment": {"protocol": "edd"}}, "experiment.protocol"),
]


@pytest.mark.parametrize(("data", "path"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_refused_when_it_runs_is_refused_by_the_schema(data: Any, path: str, tmp_path: Path) -> None:
    assert errors(Sweep, data) == [path]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"search": {"recover.lr": {}}} | data))
    if "recover.lrr" not in str(data):  # that one takes a look at the space
        with pytest.raises(ConfigError):
            load_file(str(file))


@pytest.mark.parametrize("load", [load_file, load_ladder], ids=["sweep", "ladder"])
def test_sections_and_dotted_paths_are_the_same_experiment(load: Callable[..., Any], tmp_path: Path) -> None:
    cls, file = (Sweep if load is load_file else Ladder), tmp_path / "file.yaml"
    rest: dict[str, Any] = {} if load is load_file else {"rows": {"a": {"set": {"recover.iterations": 3}}}}
    made = []
    for written in (
        {"recover.matching.weight": 0.5}, {"recover": {"matching.weight": 0.5}},
        {"recover.matching": {"weight": 0.5}}, {"recover": {"matching": {"weight": 0.5}}},
    ):  # fmt: skip
        assert errors(cls, {"experiment": written} | rest) == []
        file.write_text(yaml.safe_dump({"experiment": written} | rest))
        made.append(load(str(file))[1])
    assert all(one == made[0] for one in made) and made[0].recover.matching.weight == 0.5


def test_a_file_may_name_a_protocol_but_no_row_of_a_ladder() -> None:
    for cls, rest in ((Sweep, {}), (Ladder, {"rows": {"a": {}}})):
        assert errors(cls, {"experiment": {"protocol": "rd3", "evaluate.epochs": 9}} | rest) == []
    assert errors(Ladder, {"rows": {"a": {"set": {"protocol": "rd3"}}}}) == ["rows.a.set"]
    assert errors(Experiment, {"protocol": "rd3"}) == [""]  # which has relabel and evaluate instead


@pytest.mark.parametrize("kind", ["sweep", "ladder", "experiment"])
def test_the_command_prints_it(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", kind]) == 0
    cls = {"sweep": Sweep, "ladder": Ladder, "experiment": Experiment}[kind]
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SCHEMAS[cls]))
