"""Config: what is legal comes back unchanged, what is not is refused with path, value and what is legal."""

import copy
import dataclasses
import datetime
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edc_ray import config
from edc_ray.config import (
    ConfigError,
    Confirm,
    Evaluate,
    Experiment,
    Init,
    Knob,
    Recover,
    Relabel,
    Runtime,
    Split,
    Squeeze,
    Sweep,
    digest,
    dump,
    hashed,
    load,
    override,
    parse_value,
    paths,
    read_yaml,
)

EXPERIMENT = paths(Experiment)
LEAVES = EXPERIMENT | {f"runtime.{path}": f for path, f in paths(Runtime).items()}
MAPPINGS = {"experiment", "search"}  # of Sweep: free, checked elsewhere


def changed(path: str, value: object) -> dict[str, Any]:
    """{"a.b": 1} as plain nested data."""
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


# --- what is refused ----------------------------------------------------------------------------------------

BAD: list[tuple[type, object, str, object, str]] = [
    # (class, data, path, value, part of what is legal)
    (Experiment, {"recver": {}}, "recver", {}, "did you mean recover?"),
    (Experiment, {"recover": {"lrr": 1}}, "recover.lrr", 1, "did you mean lr?"),
    (Experiment, {"recover": {"matching": {"wieght": 1}}}, "recover.matching.wieght", 1, "mean weight?"),
    (Experiment, {"squeeze": {"augment": {"pad": 1}}}, "squeeze.augment.pad", 1, "did you mean pad_px?"),
    (Experiment, {"quirks": {"zzz": 1}}, "quirks.zzz", 1, "legal: alphabetical_init"),
    (Experiment, {1: 2}, "1", 2, "legal: apply, dataset"),
    (Experiment, {"evaluate": {"epochs": True}}, "evaluate.epochs", True, "integer"),
    (Experiment, {"evaluate": {"epochs": "10"}}, "evaluate.epochs", "10", "integer"),
    (Experiment, {"evaluate": {"epochs": 1.5}}, "evaluate.epochs", 1.5, "integer"),
    (Experiment, {"evaluate": {"lr": True}}, "evaluate.lr", True, "number"),
    (Experiment, {"evaluate": {"lr": "0.1"}}, "evaluate.lr", "0.1", "number"),
    (Experiment, {"evaluate": {"lr": None}}, "evaluate.lr", None, "number"),
    (Experiment, {"recover": {"flip": 1}}, "recover.flip", 1, "boolean"),
    (Experiment, {"dataset": {"path": 3}}, "dataset.path", 3, "string"),
    (Experiment, {"squeeze": {"observers": "resnet18"}}, "squeeze.observers", "resnet18", "array"),
    (Experiment, {"evaluate": {"seeds": ["a"]}}, "evaluate.seeds.0", "a", "integer"),
    (Experiment, {"recover": [1]}, "recover", [1], "mapping"),
    (Experiment, {"recover": {"betas": [0.5, 0.9, 0.9]}}, "recover.betas", [0.5, 0.9, 0.9], "2 items"),
    (Experiment, {"recover": {"betas": [0.5]}}, "recover.betas", [0.5], "is too short"),
    (Sweep, {"runtime": {"store": ""}}, "runtime.store", "", "must be a folder or a URI"),
    (Experiment, {"squeeze": {"momentum": 1}}, "squeeze.momentum", 1.0, "must be in [0, 0.999]"),
    (Experiment, {"squeeze": {"lr": -0.1}}, "squeeze.lr", -0.1, "must be >= 0"),
    (Experiment, {"dataset": {"size_px": 7}}, "dataset.size_px", 7, "must be in [8, 1024] px"),
    (Experiment, {"recover": {"betas": [0.5, 1.5]}}, "recover.betas", (0.5, 1.5), "must be in [0, 0.9999]"),
    (Experiment, {"evaluate": {"seeds": [0, -1]}}, "evaluate.seeds", (0, -1), "must be >= 0"),
    (Experiment, {"squeeze": {"lr": math.inf}}, "squeeze.lr", math.inf, "must be finite and >= 0"),
    (Experiment, {"squeeze": {"momentum": math.nan}}, "squeeze.momentum", math.nan, "must be finite and in"),
    (Experiment, {"recover": {"flatness": {"kind": "logit"}}}, "recover.flatness.kind", "logit", "'none', "),
    (Experiment, {"precision": "fp16"}, "precision", "fp16", "'fp32' or 'tf32'"),
    (Experiment, {"squeeze": {"observers": ["a", "a"]}}, "squeeze.observers", ("a", "a"), "each named once"),
    (Experiment, {"squeeze": {"observers": []}}, "squeeze.observers", (), "at least one"),
    (Experiment, {"relabel": {"observers": ["x"]}}, "relabel.observers", ("x",), "some of squeeze"),
    (Experiment, {"relabel": {"observers": []}}, "relabel.observers", (), "some of squeeze.observers"),
    (Experiment, {"recover": {"observers": ["vgg5_w16"] * 2}}, "recover.observers", ("vgg5_w16",) * 2, ""),
    (
        Experiment,
        {"recover": {"matching": {"class_form": "per_class", "reset": False}}},
        "recover.matching.reset",
        False,
        "must be true with class_form per_class",
    ),
    (Experiment, {"evaluate": {"seeds": []}}, "evaluate.seeds", (), "at least one seed"),
    (Experiment, {"evaluate": {"seeds": [1, 1]}}, "evaluate.seeds", (1, 1), "each once"),
    (Experiment, [1], "", [1], "must be a mapping with the keys dataset, split"),
    (Experiment, None, "", None, "must be a mapping"),
    (Experiment, "recover", "", "recover", "must be a mapping"),
    (Sweep, {"budgte": {}}, "budgte", {}, "did you mean budget?"),
    (Sweep, {"runtime": {"lables": "inline"}}, "runtime.lables", "inline", "did you mean labels?"),
    (Sweep, {"search": {"recover.lr": {"lowest": 1}}}, "search.recover.lr.lowest", 1, "did you mean low?"),
    (Sweep, {"search": {"recover.lr": {"low": "a"}}}, "search.recover.lr.low", "a", "number"),
    (Sweep, {"search": {"recover.lr": 3}}, "search.recover.lr", 3, "mapping"),
    (Sweep, {"scheduler": {"reduction": 1}}, "scheduler.reduction", 1.0, "must be >= 1.5"),
    (Sweep, {"sampler": "tpes"}, "sampler", "tpes", "'tpe', 'random', 'nsga2' or 'grid'"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "data", "path", "value", "legal"), BAD, ids=[row[2] or "top" for row in BAD])
def test_bad_input_names_path_value_and_what_is_legal(
    cls: type, data: object, path: str, value: object, legal: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(cls, data)
    error = caught.value
    assert (error.path, repr(error.value)) == (path, repr(value)) and legal in error.legal
    assert str(error).startswith(f"{path or '(top level)'} = ") and "\n" not in str(error)


def test_what_is_no_plain_data_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for odd in ({1, 2}, loop, datetime.date(2026, 1, 1)):
        with pytest.raises(ConfigError, match="must be plain data"):
            load(Experiment, {"seed": odd})


def test_a_field_is_checked_wherever_a_config_is_made() -> None:
    with pytest.raises(ConfigError, match=r"^val = 1.5: must be in \[0, 0.9\]$"):
        Split(val=1.5)
    with pytest.raises(ConfigError, match=r"^ipc = 0: must be >= 1$"):
        replace(Init(), ipc=0)
    with pytest.raises(ConfigError, match=r"^relabel.observers"):
        replace(Experiment(), relabel=Relabel(observers=("resnet18",)))


@pytest.mark.parametrize("path", [p for p, f in LEAVES.items() if f.metadata["low"] is not None])
def test_just_outside_the_range_is_refused_and_its_ends_are_legal(path: str) -> None:
    """At the door, as the path of the whole tree."""
    field, tree = LEAVES[path], Sweep() if path.startswith("runtime.") else Experiment()
    low, high = field.metadata["low"], field.metadata["high"]
    many = "tuple" in str(field.type)
    whole = "int" in str(field.type)
    if path == "squeeze.epochs":
        tree = override(tree, {"squeeze.weights": "timm"})  # else 0 is refused
    count = {"betas": 2, "observer_weights": 4}.get(path.rpartition(".")[2], 1)

    def put(number: float) -> Any:
        value = int(number) if whole else float(number)
        # All-zero weights are refused for another reason.
        values = [value] + [value or 0.5] * (count - 1)
        return override(tree, {path: values if many else value})

    for end in (low, high):
        if end is not None:
            put(end)
    step = 1 if whole else 1e-6
    for outside in [low - step, *([high + step] if high is not None else [])]:
        with pytest.raises(ConfigError) as caught:
            put(outside)
        assert caught.value.path == path and config.legal_range(field) in caught.value.legal


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Experiment, {"squeeze": {"observers": ["x" * 500, "x" * 500]}})
    assert len(str(caught.value)) < 200 and len(caught.value.value[0]) == 500  # type: ignore[index]


def test_an_error_survives_pickling() -> None:
    """It may come out of a Ray actor."""
    error = ConfigError("recover.lr", -1, "must be >= 0")
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == str(error) == "recover.lr = -1: must be >= 0"
    assert (copied.path, copied.value, copied.legal) == ("recover.lr", -1, "must be >= 0")


# --- the fields ---------------------------------------------------------------------------------------------


def sweep_leaves() -> dict[str, "dataclasses.Field[Any]"]:
    return {path: f for path, f in paths(Sweep).items() if path not in MAPPINGS}


@pytest.mark.parametrize("path", [*EXPERIMENT, *sweep_leaves()])
def test_every_field_has_a_meaning_and_every_number_a_range(path: str) -> None:
    field = (EXPERIMENT | sweep_leaves())[path]
    meta = field.metadata
    assert len(meta["doc"]) > 3 and meta["doc"].isascii()
    kinds = {field.type, *get_args(field.type)}
    if kinds & {int, float}:
        assert meta["low"] is not None
    if field.name.endswith("_px"):
        assert meta["unit"] == "px"
    if field.name.endswith("_seconds"):
        assert meta["unit"] == "s"


@pytest.mark.parametrize("cls", [Experiment, Runtime, Sweep])
def test_defaults_are_legal_and_come_back(cls: type) -> None:
    """That they are in range is checked when they are made."""
    assert load(cls, {}) == cls() == load(cls, dump(cls()))


def test_frozen_and_slotted() -> None:
    for value, name in ((Experiment(), "seed"), (Recover(), "lr"), (Runtime(), "workers"), (Knob(), "low")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)
        assert not hasattr(value, "__dict__")
        assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(TypeError, match="positional"):
        Split(0.5)  # type: ignore[call-arg]


def test_an_experiment_is_hashable() -> None:
    assert len({Experiment(), Experiment(), replace(Experiment(), seed=1)}) == 2


# --- what is legal comes back -------------------------------------------------------------------------------


def number(field: "dataclasses.Field[Any]", kind: type) -> st.SearchStrategy[Any]:
    low, high = field.metadata["low"], field.metadata["high"]
    if kind is int:
        return st.integers(low, high if high is not None else 2**40)
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


def legal(field: "dataclasses.Field[Any]") -> st.SearchStrategy[Any]:
    """Legal values of a field, as its type and range say."""
    kind, args = field.type, get_args(field.type)
    if type(None) in args:
        (kind,) = (each for each in args if each is not type(None))
        return st.none() | legal(copy_as(field, kind))
    if get_origin(kind) is tuple:
        if args[0] is str or get_origin(args[0]) is Literal:
            names = get_args(args[0]) or ("a", "b", "c")
            return st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)
        if args[-1] is ...:
            return st.lists(number(field, args[0]), min_size=1, max_size=4, unique=True).map(tuple)
        return st.tuples(*(number(field, arg) for arg in args))
    if args:
        return st.sampled_from(args)  # a Literal
    if kind is bool:
        return st.booleans()
    return st.text(max_size=8) if kind is str else number(field, kind)  # type: ignore[arg-type]


def copy_as(field: "dataclasses.Field[Any]", kind: Any) -> "dataclasses.Field[Any]":
    other = copy.copy(field)
    other.type = kind
    return other


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, tuple) else value


BOUND = {  # fields that other fields limit
    "relabel.observers", "recover.observers", "init.scorers", "recover.observer_weights",
    "relabel.observer_weights", "squeeze.epochs", "squeeze.checkpoint_epoch", "evaluate.milestones",
    "evaluate.report_epochs", "evaluate.select", "init.factor", "recover.matching.reset",
}  # fmt: skip


def changes() -> st.SearchStrategy[dict[str, Any]]:
    """Some leaves of Experiment with legal values, consistent with each other."""
    free = {path: legal(field) for path, field in EXPERIMENT.items() if path not in BOUND}
    some = st.fixed_dictionaries({}, optional=free)
    return some.map(lambda chosen: {path: plain(value) for path, value in chosen.items()})


@settings(max_examples=25)
@given(changes())
def test_load_is_the_inverse_of_dump(chosen: dict[str, Any]) -> None:
    experiment = override(Experiment(), chosen)
    assert load(Experiment, dump(experiment)) == experiment
    data = dump(experiment)
    for path, value in chosen.items():
        section: Any = data
        for name in path.split("."):
            section = section[name]
        assert section == value


@settings(max_examples=25)
@given(changes())
def test_equal_experiments_have_one_digest_and_others_another(chosen: dict[str, Any]) -> None:
    one, two = Experiment(), override(Experiment(), chosen)
    assert (digest(hashed(one)) == digest(hashed(two))) == (effective(one) == effective(two))


def effective(section: Any) -> Any:
    """The fields that count, as `config.knob` says: hashed, and with an effect."""
    if not dataclasses.is_dataclass(section):
        return section
    return [
        (field.name, effective(getattr(section, field.name)))
        for field in dataclasses.fields(section)
        if field.metadata.get("hashed", True)
        and not (field.metadata.get("later") and getattr(section, field.name) == field.default)
        and all(
            getattr(section, name) in (value if isinstance(value, tuple) else (value,))
            for name, value in field.metadata.get("when", {}).items()
        )
    ]


@pytest.mark.parametrize("path", [path for path in EXPERIMENT if path not in BOUND - {"relabel.observers"}])
def test_override_equals_replace(path: str) -> None:
    *parents, leaf = path.split(".")
    value = legal(EXPERIMENT[path]).map(plain)
    base = override(Experiment(), {"squeeze.observers": ["a", "b", "c"]})

    @settings(max_examples=2, database=None)
    @given(value)
    def holds(new: Any) -> None:
        if path == "squeeze.observers":
            new = [*new, "d"]
        section: Any = base
        for name in parents:
            section = getattr(section, name)
        made: Any = replace(section, **{leaf: tuple(new) if isinstance(new, list) else new})
        for i in reversed(range(len(parents))):
            above: Any = base
            for name in parents[:i]:
                above = getattr(above, name)
            made = replace(above, **{parents[i]: made})
        assert override(base, {path: new}) == made

    holds()


def test_override_leaves_the_original_and_applies_all_at_once() -> None:
    base = Experiment()
    changed_ = override(base, {"squeeze.observers": ["a"], "relabel.observers": ["a"], "recover.lr": 1})
    assert base == Experiment()
    assert (changed_.squeeze.observers, changed_.relabel.observers) == (("a",), ("a",))
    assert isinstance(changed_.recover.lr, float)
    assert override(base, {}) == base


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("recover.lrr", "did you mean recover.lr"),
        ("recover.matching.wieght", "did you mean recover.matching.weight"),
        ("recover.lr.x", "did you mean recover.lr"),
        ("sede", "did you mean seed"),
        ("", "dataset.classes, dataset.limit"),
    ],
)
def test_override_of_no_field_says_which_was_meant(path: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Experiment(), {path: 1})
    assert caught.value.path == path and near in caught.value.legal


def test_override_reaches_the_free_mappings_of_a_sweep() -> None:
    changed_ = override(Sweep(), {"experiment.seed": 3, "confirm.seeds": 2})
    assert changed_.experiment == {"seed": 3} and changed_.confirm == Confirm(seeds=2)


@pytest.mark.parametrize("path", [path for path, f in EXPERIMENT.items() if f.metadata["search"]])
def test_a_range_to_search_is_legal(path: str) -> None:
    field = EXPERIMENT[path]
    knob = Knob(**field.metadata["search"])
    for value in knob.choices or (knob.low, knob.high):
        assert value is not None
        assert not knob.choices or len(knob.choices) > 1
        if field.type is not str:  # names of tables are the business of pipeline.check
            needs = {
                f"{path.rpartition('.')[0]}.{name}": each for name, each in field.metadata["when"].items()
            }
            base = {name: each[0] if isinstance(each, tuple) else each for name, each in needs.items()}
            override(Experiment(), base | {path: int(value) if field.type is int else value})


@pytest.mark.parametrize("path", [path for path, f in EXPERIMENT.items() if f.metadata["when"]])
def test_what_makes_a_field_active_is_a_legal_value_of_a_sibling(path: str) -> None:
    section = path.rpartition(".")[0]
    for name, wanted in EXPERIMENT[path].metadata["when"].items():
        sibling = EXPERIMENT[f"{section}.{name}"]
        for value in wanted if isinstance(wanted, tuple) else (wanted,):
            override(Experiment(), {f"{section}.{name}": value})
        assert sibling.metadata["hashed"]


# --- names --------------------------------------------------------------------------------------------------


def name_of(value: Any) -> str:
    return digest(hashed(value))


def test_equal_numbers_have_one_name() -> None:
    for one, other in (
        (Squeeze(lr=1), Squeeze(lr=1.0)),
        (Squeeze(lr=0.0), Squeeze(lr=-0.0)),
        (Recover(betas=(0, 0.9)), Recover(betas=(0.0, 0.9))),
        (load(Experiment, changed("evaluate.lr", 1)), load(Experiment, changed("evaluate.lr", 1.0))),
    ):
        assert one == other and name_of(one) == name_of(other)
    assert name_of(Squeeze(lr=1.0)) != name_of(Squeeze(lr=1.0000000000000002))
    assert name_of(Evaluate(seeds=(2**53,))) != name_of(Evaluate(seeds=(2**53 + 1,)))


def test_where_the_data_lies_is_no_part_of_a_name() -> None:
    unhashed = [path for path, field in EXPERIMENT.items() if not field.metadata["hashed"]]
    assert unhashed == ["dataset.path", "squeeze.weights", "init.path"]
    for path in unhashed:
        assert name_of(override(Experiment(), {path: "elsewhere"})) == name_of(Experiment())


def test_a_digest_is_12_hex_digits_of_the_content_alone() -> None:
    assert digest({"a": 1, "b": [2, "x"]}) == digest({"b": [2, "x"], "a": 1}) == "454597f51f0e"
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": math.nan})


# --- YAML ---------------------------------------------------------------------------------------------------


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "sweep.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5e1", 5.0), ("1_000", 1000),
        ("12", 12), ("0.1", 0.1), ("true", True), ("null", None), ("", None), ("[1, 2]", [1, 2]),
        ("1e", "1e"), ("e3", "e3"), ("cos", "cos"), ("2026-01-01", "2026-01-01"), ("'1e-3'", "1e-3"),
        ("{a: 1e-3}", {"a": 0.001}),
    ],
)  # fmt: skip
def test_yaml_values_are_what_people_mean(text: str, value: Any) -> None:
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_read_yaml_gives_plain_data(tmp_path: Path) -> None:
    file = write(tmp_path, "base: &base {lr: 1e-3}\nrecover:\n  <<: *base\n  lr: 2.0  # \u00e9\n")
    assert read_yaml(file) == {"base": {"lr": 0.001}, "recover": {"lr": 2.0}}


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("name: a\nsearch: [1\nbudget: 2\n", 3, "expected ',' or ']'"),
        ("name: a\n\tsearch: 1\n", 2, "cannot start any token"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5, "key 'c' is given twice"),
        ("? [1, 2]\n: 3\n", 1, "unhashable key"),
        ("a: !!python/object:os.system 1\n", 1, "could not determine a constructor"),
    ],
)
def test_a_syntax_error_is_named_with_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert caught.value.path == f"{file}, line {line}"
    assert what in str(caught.value.value) and caught.value.legal == "is not YAML"


@pytest.mark.parametrize("raw", [b"name: \xff\n", b"name: \x01\n"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(write(tmp_path, raw))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing.yaml", tmp_path, Path("sweeps/nothing_of_that_name.yaml")):
        with pytest.raises(ConfigError, match="no such file") as caught:
            read_yaml(missing)
        assert caught.value.value == str(missing)


def test_a_value_on_the_command_line_may_be_broken_too() -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        parse_value("[1, 2")


def test_the_packages_sweeps_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a file of that name in the working directory goes first."""
    packaged = Path(__file__).parents[1] / "sweeps"
    if not (packaged / "quickstart.yaml").is_file():
        pytest.skip("no sweeps yet")
    monkeypatch.chdir(tmp_path)
    assert read_yaml(Path("sweeps/quickstart.yaml")) == read_yaml(packaged / "quickstart.yaml")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "quickstart.yaml").write_text("name: mine\n")
    assert read_yaml(Path("sweeps/quickstart.yaml")) == {"name": "mine"}


# --- credentials --------------------------------------------------------------------------------------------

HIDDEN = "wJalr/XUtn+FEMI"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"s3://AKIA:{HIDDEN}@bucket/runs", "s3://***@bucket/runs"),
        (f"s3://{HIDDEN[:5]}@bucket/runs?region=x", "s3://***@bucket/runs"),
        (f"s3://bucket/runs?region=x&secret_key={HIDDEN}", "s3://bucket/runs?secret_key=***"),
        (f"s3://bucket?Session%5FToken={HIDDEN}", "s3://bucket?Session_Token=***"),
        (f"s3://bucket?endpoint_override=user:{HIDDEN}@host", "s3://bucket?endpoint_override=***"),
        (f"gs://me:{HIDDEN}@bucket", "gs://***@bucket"),
        (f"abfs://box@account/x?sig={HIDDEN}", "abfs://***@account/x?sig=***"),
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_shown(uri: str, shown: str) -> None:
    with pytest.raises(ConfigError) as direct:
        Runtime(store=uri)
    with pytest.raises(ConfigError) as loaded:
        load(Sweep, {"name": "a", "runtime": {"store": uri}})
    with pytest.raises(ConfigError) as changed:
        override(Sweep(), {"runtime.store": uri})
    for caught, path in ((direct, "store"), (loaded, "runtime.store"), (changed, "runtime.store")):
        told = str(caught.value)
        assert told.startswith(f"{path} = '{shown}': must have no credentials") and "environment" in told
        assert HIDDEN not in repr(caught.value) and HIDDEN[:5] not in told


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/runs?region=eu-west-1&scheme=https&endpoint_override=host:9000",
        "s3://bucket/team@home/runs", "gs://anonymous@bucket/x", "gs://bucket?retry_limit_seconds=5",
        "abfss://box@account.dfs.core.windows.net/x", "file:///a/b", "/a/key:secret@b", "store",
    ],
)  # fmt: skip
def test_a_uri_without_credentials_is_legal(uri: str) -> None:
    assert Runtime(store=uri).store == uri
