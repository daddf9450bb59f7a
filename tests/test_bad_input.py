"""What a user can write wrongly: exit code 2; one line with path, value and what is legal; no file."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from edc_ray import cli, config, specs, sweep

ROOT = Path(__file__).parents[1]
KINDS = {"recover.flatness.kind": {"choices": ["none", "sam"]}}
RANGE = {"low": 0.01, "high": 0.1}
GOOD: dict[str, Any] = {"name": "good", "search": {"recover.lr": RANGE}, "runtime": {"store": "store"}}


# --- files that lie beside the sweep file -------------------------------------------------------------------


def parquet(folder: str, labels: list[int], image: str = "image", label: str = "label") -> Callable[[], None]:
    """Makes a dataset with the same few images in train and test."""

    def make() -> None:
        sink = io.BytesIO()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(sink, "png")
        table = pa.table({image: [sink.getvalue()] * len(labels), label: labels})
        Path(folder).mkdir()
        for part in ("train", "test"):
            pq.write_table(table, f"{folder}/{part}.parquet")

    return make


def rewritten(file: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[], None]:
    """Changes a file of `parquet`."""
    return lambda: pq.write_table(change(pq.read_table(f"{file}.parquet")), f"{file}.parquet")


def named(file: str, classes: str) -> Callable[[], None]:
    """Names the classes in the metadata."""
    metadata = {"classes": json.dumps([*classes])}
    return rewritten(file, lambda table: table.replace_schema_metadata(metadata))


def shortened(file: str, rows: int) -> Callable[[], None]:
    return rewritten(file, lambda table: table[:rows])


def damaged(file: str, row: int) -> Callable[[], None]:
    """One image is cut."""

    def change(table: pa.Table) -> pa.Table:
        images = [blob[:40] if i == row else blob for i, blob in enumerate(table["image"].to_pylist())]
        return table.set_column(0, "image", pa.array(images, pa.binary()))

    return rewritten(file, change)


def both(*makes: Callable[[], None]) -> Callable[[], None]:
    def make() -> None:
        for each in makes:
            each()

    return make


def write(name: str, text: str) -> Callable[[], None]:
    def make() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)

    return make


def nothing() -> None:
    pass


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Changes to the top level of GOOD, or the file's text; how the line must begin; what is legal."""

    change: dict[str, Any] | str
    error: str
    legal: str
    args: list[str] = field(default_factory=list)
    make: Callable[[], None] = nothing

    def file(self) -> str:
        """Written outside of the working directory, as nothing may appear there."""
        path = Path("..") / "bad.yaml"
        text = (
            self.change
            if isinstance(self.change, str)
            else yaml.safe_dump(GOOD | self.change, sort_keys=False)
        )
        path.write_text(text)
        return str(path)


def exp(**sections: Any) -> dict[str, Any]:
    return {"experiment": sections}


def data(path: str) -> dict[str, Any]:
    """Each row has a path of its own, as a process asks the disk only once."""
    return exp(dataset={"name": "parquet", "path": path, "size_px": 8})


def search(**knobs: Any) -> dict[str, Any]:
    return {"search": {path.replace("__", "."): knob for path, knob in knobs.items()}}


def store(root: str) -> dict[str, Any]:
    return {"runtime": {"store": root}}


FOLDER = "no such folder; must be a folder with train*.parquet and test*.parquet"

# Wrong in the experiment or the store: also condense refuses it.
EXPERIMENT: dict[str, Row] = {
    "unknown key": Row({"serach": {}}, "serach = {}", "did you mean search?"),
    "unknown key in a section": Row(
        {"runtime": {"wokers": 2}}, "runtime.wokers = 2", "did you mean workers or label_workers?"
    ),
    "unknown key in experiment": Row(
        exp(recover={"lrr": 1}), "experiment.recover.lrr = 1", "did you mean recover.lr"
    ),
    "unknown section": Row(exp(recver={"lr": 1}), "experiment.recver.lr = 1", "did you mean recover.lr"),
    "wrong type": Row(exp(recover={"lr": "fast"}), "experiment.recover.lr = 'fast'", "a valid number"),
    "no section": Row(exp(recover=3), "experiment.recover = 3", "should be a mapping"),
    "null section": Row({"runtime": None}, "runtime = None", "should be a mapping"),
    "no whole number": Row(exp(init={"ipc": 1.5}), "experiment.init.ipc = 1.5", "a valid integer"),
    "no boolean": Row(exp(recover={"flip": 1}), "experiment.recover.flip = 1", "a valid boolean"),
    "item missing": Row(
        exp(recover={"betas": [0.5]}), "experiment.recover.betas = [0.5]", "there is no item 1"
    ),
    "no such word": Row(
        exp(recover={"flatness": {"kind": "sma"}}), "experiment.recover.flatness.kind = 'sma'", "or 'sam'"
    ),
    "out of range": Row(exp(recover={"lr": -1}), "experiment.recover.lr = -1.0", "must be >= 0"),
    "not finite": Row(exp(recover={"lr": float("nan")}), "experiment.recover.lr = nan", "must be finite"),
    "runtime out of range": Row({"runtime": {"workers": 0}}, "runtime.workers = 0", "must be >= 1"),
    "unknown dataset": Row(
        exp(dataset={"name": "digit"}), "experiment.dataset.name = 'digit'", "did you mean digits?"
    ),
    "unknown student": Row(
        exp(evaluate={"student": "convnet_w31"}),
        "experiment.evaluate.student = 'convnet_w31'",
        "did you mean convnet_w32",
    ),
    "unknown observer": Row(
        exp(squeeze={"observers": ["convnet_w32", "resnet81"]}),
        "experiment.squeeze.observers.1 = 'resnet81'",
        "did you mean resnet18",
    ),
    "unknown loss": Row(
        exp(recover={"matching": {"loss": "l3"}}),
        "experiment.recover.matching.loss = 'l3'",
        "legal: l2, l2_squared, rms; or module:function",
    ),
    "loss in no module": Row(
        exp(recover={"matching": {"loss": "nosuch_module:f"}}),
        "experiment.recover.matching.loss = 'nosuch_module:f'",
        "No module named 'nosuch_module'); must be in the working directory",
    ),
    "loss that its module lacks": Row(
        exp(recover={"matching": {"loss": "bad_input_plugin:f"}}),
        "experiment.recover.matching.loss = 'bad_input_plugin:f'",
        "the module bad_input_plugin has no f",
        make=write("bad_input_plugin.py", "number = 3\n"),
    ),
    "loss that is no function": Row(
        exp(recover={"matching": {"loss": "bad_input_plugin:number"}}),
        "experiment.recover.matching.loss = 'bad_input_plugin:number'",
        "must be a function; it is of type int",
        make=write("bad_input_plugin.py", "number = 3\n"),
    ),
    "student with a syntax error": Row(
        exp(evaluate={"student": "bad_input_syntax:net"}),
        "experiment.evaluate.student = 'bad_input_syntax:net'",
        "cannot be imported (SyntaxError: ",
        make=write("bad_input_syntax.py", "def net(:\n"),
    ),
    "observer that takes other arguments": Row(
        exp(squeeze={"observers": ["bad_input_arguments:net"]}),
        "experiment.squeeze.observers.0 = 'bad_input_arguments:net'",
        "fails with 10 classes and images of dataset.size_px = 16 (TypeError: net() takes 1 positional",
        make=write("bad_input_arguments.py", "def net(classes): pass\n"),
    ),
    "observer that is no network": Row(
        exp(squeeze={"observers": ["bad_input_none:net"]}),
        "experiment.squeeze.observers.0 = 'bad_input_none:net'",
        "must give a torch.nn.Module; gave NoneType",
        make=write("bad_input_none.py", "def net(classes, size_px): pass\n"),
    ),
    "classes in another order in test": Row(
        data("order"),
        "experiment.dataset.path = 'order/test.parquet'",
        "names other classes than train.parquet: from label 0 on b, a, not a, b",
        make=both(parquet("order", [0, 1]), named("order/train", "ab"), named("order/test", "ba")),
    ),
    "no test image of a class": Row(
        data("untested"),
        "experiment.dataset.path = 'untested'",
        "has no test image with the label 1 of 0 to 1",
        make=both(parquet("untested", [0, 1]), shortened("untested/test", 1)),
    ),
    "nothing to read on test": Row(
        exp(dataset={"name": "parquet", "path": "testless", "size_px": 8}, split={"val": 0.0}),
        "experiment.split.val = 0",
        "must be > 0: ",
        make=both(parquet("testless", [0, 1]), shortened("testless/test", 0)),
    ),
    "no word for skipping": Row(
        exp(dataset={"skip_corrupt": "yes"}), "experiment.dataset.skip_corrupt = 'yes'", "a valid boolean"
    ),
    "a class that is corrupt as a whole": Row(
        exp(dataset={"name": "parquet", "path": "corrupt", "size_px": 8, "skip_corrupt": True}),
        "experiment.dataset.skip_corrupt = True",
        "leaves no train image of class 1; corrupt is train.parquet, row 1",
        make=both(parquet("corrupt", [0, 1, 0]), damaged("corrupt/train", 1)),
    ),
    "observer that is not squeezed": Row(
        exp(relabel={"observers": ["resnet18"]}),
        "experiment.relabel.observers = ('resnet18',)",
        "some of squeeze.observers (",
    ),
    "unknown preset": Row({"preset": "digits/ipc3"}, "preset = 'digits/ipc3'", "did you mean digits/ipc2"),
    "preset and a typo": Row(
        {"preset": "digits/ipc2"} | exp(evaluate={"epoch": 3}),
        "experiment.evaluate.epoch = 3",
        "evaluate.epochs",
    ),
    "no dataset path": Row(exp(dataset={"name": "parquet"}), "experiment.dataset.path = None", FOLDER),
    "dataset path is a file": Row(
        data("file"), "experiment.dataset.path = 'file'", FOLDER, make=write("file", "")
    ),
    "path of a bundled dataset": Row(
        exp(dataset={"path": "data"}), "experiment.dataset.path = 'data'", "must be null"
    ),
    "no such columns": Row(
        data("columns"),
        "experiment.dataset.path = 'columns/train.parquet'",
        "has the columns picture (binary), label (int64); needs image",
        make=parquet("columns", [0, 1], image="picture"),
    ),
    "label below zero": Row(
        data("negative"),
        "experiment.dataset.path = 'negative/train.parquet'",
        "has the label -1; must be 0 to 1",
        make=parquet("negative", [-1, 0, 1]),
    ),
    "label with a gap": Row(
        data("gap"),
        "experiment.dataset.path = 'gap'",
        "no training image with the label 1 of 0 to 2",
        make=parquet("gap", [0, 0, 2, 2]),
    ),
    "fewer images than ipc": Row(
        exp(init={"ipc": 500}), "experiment.init.ipc = 500", "must be <= 110: the smallest class keeps 110"
    ),
    "few images in files": Row(
        data("few") | {"preset": "digits/ipc2"},
        "experiment.init.ipc = 2",
        "must be <= 1",
        make=parquet("few", [0, 1, 0, 1]),
    ),
    "store below a file": Row(
        store("file/store"), "runtime.store = '", "is not a folder", make=write("file", "")
    ),
    "store is a file": Row(store("file"), "runtime.store = '", "is not a folder", make=write("file", "")),
    "store cannot be read": Row(
        store("store"), "runtime.store = '", "cannot be read", make=write("store/store.json/x", "")
    ),
    "store of another schema": Row(
        store("store"),
        "runtime.store = '",
        "must have schema 1",
        make=write("store/store.json", '{"schema": 99}'),
    ),
    "store nowhere": Row(store(""), "runtime.store = ''", "must be a folder or a URI"),
    "store with credentials": Row(
        store("s3://AKIA:hidden@bucket/x"), "runtime.store = 's3://***@bucket/x'", "no credentials"
    ),
    "store of no known kind": Row(store("ftp://x"), "runtime.store = 'ftp://x'", "must be a folder or a URI"),
    "yaml syntax": Row("name: [", "../bad.yaml, line 1 = ", "is not YAML"),
    "yaml tab": Row("search:\n\tx: 1\n", "../bad.yaml, line 2 = ", "is not YAML"),
    "yaml key twice": Row("name: a\nname: b\n", "../bad.yaml, line 2 = ", "is not YAML"),
    "yaml bytes": Row("name: \x00", "../bad.yaml", "is not YAML"),
    "yaml list": Row("- 1\n", "(top level) = [1]", "must be a mapping with the keys name, preset,"),
    "set without =": Row({}, "--set = 'recover.lr'", "must be path=value", ["--set", "recover.lr"]),
    "set of an unknown path": Row(
        {}, "recover.lrr = 1", "did you mean recover.lr", ["--set", "recover.lrr=1"]
    ),
    "set of an unknown path, in full": Row(
        {}, "experiment.recover.lrr = 1", "did you mean recover.lr", ["--set", "experiment.recover.lrr=1"]
    ),
    "set out of range": Row(
        {}, "experiment.recover.lr = -1.0", "must be >= 0", ["--set", "experiment.recover.lr=-1"]
    ),
    "set of another section": Row({}, "budget.trials = 0", "must be >= 1", ["--set", "budget.trials=0"]),
    "set to no YAML": Row({}, "[1, line 1 = ", "is not YAML", ["--set", "recover.betas=[1"]),
    "name with a slash": Row({"name": "a/b"}, "name = 'a/b'", "must be letters, digits"),
    "name above the folder": Row({"name": ".."}, "name = '..'", "must be letters, digits"),
}

# Wrong only as a sweep.
SWEEP: dict[str, Row] = {
    "empty search": Row({"search": {}}, "search = {}", "needs at least one knob"),
    "knob is no path": Row(search(recover__lrr=RANGE), "search.recover.lrr = {", "did you mean recover.lr"),
    "knob is a section": Row(search(recover=RANGE), "search.recover = {", "unknown; did you mean recover.lr"),
    "knob is no mapping": Row(search(recover__lr=0.1), "search.recover.lr = 0.1", "should be a mapping"),
    "knob with an unknown key": Row(
        search(recover__lr={"lo": 1, "high": 2}), "search.recover.lr.lo = 1", "did you mean low"
    ),
    "knob of the split": Row(
        search(split__val=RANGE),
        "search.split.val = {",
        "cannot be searched: it would change what is compared",
    ),
    "knob of a seed": Row(
        search(init__seed={"choices": [0, 1]}), "search.init.seed = {'choices': [0, 1]}", "cannot be searched"
    ),
    "range above the field's": Row(
        search(evaluate__ema_horizon={"low": 0.1, "high": 0.9}),
        "search.evaluate.ema_horizon.high = 0.9",
        "must be in [0, 0.5]",
    ),
    "range below the field's": Row(
        search(recover__lr={"low": -1, "high": 1}), "search.recover.lr.low = -1", "must be >= 0"
    ),
    "range without an end": Row(
        search(recover__lr={"low": 0}), "search.recover.lr = {'low': 0.0}", "low < high"
    ),
    "range upside down": Row(
        search(recover__lr={"low": 1, "high": 0}),
        "search.recover.lr = {'low': 1.0, 'high': 0.0}",
        "low < high",
    ),
    "range without end": Row(
        search(recover__lr={"low": 1, "high": float("inf")}), "search.recover.lr.high = inf", "must be finite"
    ),
    "range of halves": Row(
        search(init__ipc={"low": 1, "high": 2.5}), "search.init.ipc = {", "needs whole numbers"
    ),
    "range of words": Row(search(evaluate__student=RANGE), "search.evaluate.student = {", "needs choices"),
    "range with an impossible end": Row(
        search(init__ipc={"low": 1, "high": 500}), "search.init.ipc.high = 500", "must be <= 110"
    ),
    "log from zero": Row(
        search(recover__lr={"low": 0, "high": 1, "log": True}),
        "search.recover.lr.low = 0.0",
        "must be > 0, as log",
    ),
    "log with a step": Row(
        search(recover__lr={"low": 1, "high": 2, "log": True, "step": 1}),
        "search.recover.lr.step = 1.0",
        "must be absent, as log",
    ),
    "step below zero": Row(
        search(recover__lr={"low": 0, "high": 1, "step": -0.5}),
        "search.recover.lr.step = -0.5",
        "must be > 0",
    ),
    "step that does not divide": Row(
        search(recover__iterations={"low": 0, "high": 10, "step": 4}),
        "search.recover.iterations.step = 4.0",
        "divide high - low = 10",
    ),
    "step longer than the range": Row(
        search(recover__lr={"low": 0, "high": 1, "step": 10}),
        "search.recover.lr.step = 10.0",
        "divide high - low",
    ),
    "range and choices": Row(
        search(recover__lr=RANGE | {"choices": [1]}), "search.recover.lr = {", "either choices"
    ),
    "neither range nor choices": Row(
        search(statistics__shard_images={}), "search.statistics.shard_images = {}", "no suggested range"
    ),
    "choices with a step": Row(
        search(recover__lr={"choices": [1, 2], "step": 1}), "search.recover.lr = {", "neither log nor step"
    ),
    "no choices": Row(
        search(recover__lr={"choices": []}), "search.recover.lr.choices = []", "at least one value"
    ),
    "choice twice": Row(
        search(recover__lr={"choices": [1, 1.0]}), "search.recover.lr.choices = [1, 1.0]", "each once"
    ),
    "choice out of range": Row(
        search(recover__lr={"choices": [0.1, -2]}), "search.recover.lr.choices.1 = -2", "must be >= 0"
    ),
    "choice of another type": Row(
        search(recover__lr={"choices": ["fast"]}), "search.recover.lr.choices.0 = 'fast'", "a valid number"
    ),
    "unknown student among the choices": Row(
        search(evaluate__student={"choices": ["convnet_w32", "resnet81"]}),
        "search.evaluate.student.choices.1 = 'resnet81'",
        "did you mean resnet18",
    ),
    "unknown observer among the choices": Row(
        search(squeeze__observers={"choices": [["convnet_w32"], ["vgg5_w16", "resnet81"]]}),
        "search.squeeze.observers.choices.1.1 = 'resnet81'",
        "did you mean resnet18",
    ),
    "ipc among the choices": Row(
        search(init__ipc={"choices": [1, 500]}), "search.init.ipc.choices.1 = 500", "must be <= 110"
    ),
    "choice that another field forbids": Row(
        exp(relabel={"observers": ["vgg5_w16"]}) | search(squeeze__observers={"choices": [["convnet_w32"]]}),
        "search.squeeze.observers.choices.0 = ['convnet_w32']",
        "relabel.observers must be some of",
    ),
    "when names no knob": Row(
        search(recover__lr=RANGE | {"when": {"recover.flatness.kind": "sam"}}),
        "search.recover.lr.when = 'recover.flatness.kind'",
        "unknown; legal: recover.lr",
    ),
    "when has an impossible value": Row(
        {"search": KINDS | {"recover.lr": RANGE | {"when": {"recover.flatness.kind": "smm"}}}},
        "search.recover.lr.when.recover.flatness.kind = 'smm'",
        "among the choices of recover.flatness.kind: ['none',",
    ),
    "when can never be": Row(
        {"search": KINDS | {"recover.lr": RANGE | {"when": {"recover.flatness.kind": []}}}},
        "search.recover.lr.when.recover.flatness.kind = []",
        "among the choices of recover.flatness.kind",
    ),
    "when names a range": Row(
        search(recover__lr=RANGE, evaluate__lr=RANGE | {"when": {"recover.lr": 0.1}}),
        "search.evaluate.lr.when.recover.lr = 0.1",
        "among the choices of recover.lr: it has none",
    ),
    "when is a word": Row(
        search(recover__lr=RANGE | {"when": "sam"}), "search.recover.lr.when = 'sam'", "should be a mapping"
    ),
    "when in a circle": Row(
        {
            "search": {
                "recover.flatness.kind": {"choices": ["none", "sam"], "when": {"init.kind": "real"}},
                "init.kind": {"choices": ["real", "noise"], "when": {"recover.flatness.kind": "sam"}},
            }
        },
        "search.recover.flatness.kind.when = {'init.kind': 'real'}",
        "wait for each other in a circle",
    ),
    "when of itself": Row(
        search(init__kind={"choices": ["real", "noise"], "when": {"init.kind": "real"}}),
        "search.init.kind.when = {'init.kind': 'real'}",
        "wait for each other in a circle",
    ),
    "nothing held out": Row(
        exp(split={"val": 0}), "experiment.split.val = 0", "must be > 0: a search selects on val"
    ),
    "one seed to confirm": Row({"confirm": {"seeds": 1}}, "confirm.seeds = 1", "must be 0 or at least 2"),
    "nothing to confirm on": Row(
        data("no_test") | {"search": KINDS, "confirm": {"seeds": 2}},
        "confirm.seeds = 2",
        "must be 0: the dataset has no test images",
        make=both(parquet("no_test", [0, 1] * 100), shortened("no_test/test", 0)),
    ),
    "unknown sampler": Row(
        {"sampler": "bayes"}, "sampler = 'bayes'", "should be 'tpe', 'random', 'nsga2' or 'grid'"
    ),
    "grid of a range": Row({"sampler": "grid"}, "search.recover.lr = {'low'", "needs choices: sampler grid"),
    "more trials than points": Row(
        {"sampler": "grid", "search": KINDS, "budget": {"trials": 3}},
        "budget.trials = 3",
        "must be <= 2, the points",
    ),
    "inner of none": Row(search(inner=0, recover__lr=RANGE), "search.inner = 0", "must be >= 1"),
    "inner is a knob": Row(search(inner=RANGE), "search.inner = {", "a valid integer"),
    "inner outside of search": Row({"inner": 2}, "inner = 2", "legal: search.inner"),
    "inner without a later knob": Row(
        search(inner=2, recover__lr=RANGE), "search.inner = 2", "must be 1: no knob is left to differ"
    ),
    "inner without a knob of the synthesis": Row(
        search(inner=2, evaluate__lr=RANGE), "search.inner = 2", "all trials share them anyway"
    ),
    "grid with inner": Row(
        {"sampler": "grid", "search": KINDS},
        "search.inner = 2",
        "must be 1 with sampler grid",
        ["--set", "search.inner=2"],
    ),
    "horizon leaves no rung": Row(
        exp(evaluate={"ema_horizon": 0.2}) | {"scheduler": {"kind": "asha"}},
        "experiment.evaluate.ema_horizon = 0.2",
        "must be < 0.2 with ASHA",
    ),
    "searched horizon leaves no rung": Row(
        search(evaluate__ema_horizon={"choices": [0.01, 0.4]}) | {"scheduler": {"kind": "asha"}},
        "search.evaluate.ema_horizon.choices.1 = 0.4",
        "must be < 0.2 with ASHA",
    ),
    "grace leaves no rung": Row(
        {"scheduler": {"kind": "asha", "grace": 1}}, "scheduler.grace = 1.0", "must be in (0, 1)"
    ),
}

MISSING = Row(data("gone"), "experiment.dataset.path = 'gone'", FOLDER)  # `plan` goes on and says so
SAME_FOLDER: dict[str, Row] = {  # the sweep's folder has results already
    "another experiment": Row(exp(recover={"lr": 0.2}), "name = 'good'", "differs in experiment.recover.lr)"),
    "another space": Row(
        search(recover__lr=RANGE | {"high": 1}), "name = 'good'", "differs in search.recover.lr.high)"
    ),
    "another dataset": Row(
        exp(dataset={"size_px": 8}), "name = 'good'", "differs in dataset, experiment.dataset.size_px)"
    ),
    "a knob more": Row(
        search(recover__lr=RANGE, **{"evaluate.lr": RANGE}),
        "name = 'good'",
        "differs in search.evaluate.lr.low,",
    ),
    "a knob less": Row({"search": KINDS}, "name = 'good'", "differs in search.recover.flatness.kind."),
}


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty; the sweep file lies above it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def tree(folder: Path) -> dict[str, bytes | None]:
    """What is in it; not what Python keeps of a plug-in's module."""
    paths = (path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def assert_refused(
    row: Row, main: Callable[[list[str]], int], argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path.cwd()
    before = tree(folder)
    code = main(argv)
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {row.error}"), err
    assert row.legal in err
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Input" not in err and "pydantic" not in err and "Traceback" not in err
    assert (code, out) == (2, "")
    assert (Path.cwd(), tree(folder)) == (folder, before)


@pytest.mark.parametrize("name", [*EXPERIMENT, *SWEEP])
def test_sweep_refuses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = (EXPERIMENT | SWEEP)[name]
    row.make()
    assert_refused(row, sweep.main, [row.file(), *row.args], capsys)


# `plan` says that data is missing, and a file without a search is one experiment.
PLANNED = {"no dataset path", "dataset path is a file", "empty search"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in [*EXPERIMENT, *SWEEP] if name not in PLANNED])
def test_plan_refuses_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = (EXPERIMENT | SWEEP)[name]
    row.make()
    assert_refused(row, cli.main, ["plan", row.file(), *row.args], capsys)


@pytest.mark.parametrize("name", EXPERIMENT)
def test_condense_refuses_what_is_no_experiment(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = EXPERIMENT[name]
    row.make()
    assert_refused(row, cli.main, ["condense", row.file(), *row.args], capsys)


def test_missing_dataset_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(MISSING, sweep.main, [MISSING.file()], capsys)
    assert_refused(MISSING, cli.main, ["condense", MISSING.file()], capsys)
    assert cli.main(["plan", MISSING.file()]) == 0
    assert f"missing: {MISSING.error}: {FOLDER}" in capsys.readouterr().out


@pytest.mark.parametrize("name", SAME_FOLDER)
def test_folder_of_another_sweep(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    begin_good()
    assert_refused(SAME_FOLDER[name], sweep.main, [SAME_FOLDER[name].file()], capsys)


def begin_good() -> None:
    """What a run of GOOD writes first."""
    ready = sweep.prepare(Row({}, "", "").file(), [])
    facts = {"identity": sweep.identity(ready.sweep, ready.base)}
    ready.store.put("sweeps/good/sweep.json", json.dumps(facts).encode())


def test_the_same_sweep_with_another_budget_goes_on() -> None:
    begin_good()
    row = Row({"budget": {"trials": 99}, "concurrent": 7, "experiment": {"recover": {"lr": 0.05}}}, "", "")
    assert sweep.prepare(row.file(), ["confirm.seeds=3"]).sweep.budget.trials == 99


def test_the_same_sweep_with_another_inner_goes_on() -> None:
    knobs = search(recover__lr=RANGE, evaluate__lr=RANGE)
    ready = sweep.prepare(Row(knobs, "", "").file(), [])
    facts = {"identity": sweep.identity(ready.sweep, ready.base)}
    ready.store.put("sweeps/good/sweep.json", json.dumps(facts).encode())
    assert sweep.prepare(Row(knobs, "", "").file(), ["search.inner=3"]).sweep.inner == 3


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_folder_with_a_foreign_file(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("store/sweeps/good/sweep.json", text)()
    row = Row({}, "name = 'good'", "the sweep.json in its folder is not of a sweep")
    assert_refused(row, sweep.main, [row.file()], capsys)


@pytest.mark.parametrize(
    ("argv", "error", "legal"),
    [
        (["sweep", "gone.yaml"], "file = 'gone.yaml'", "no such file"),
        (["plan", "sweeps/gone.yaml"], "file = 'sweeps/gone.yaml'", "no such file"),
        (["condense", "."], "preset = '.'", "`edc-ray presets` lists the"),
        (["condense", "digits/ipc9"], "preset = 'digits/ipc9'", "did you mean digits/ipc"),
        (["plan", "quickstart"], "preset = 'quickstart'", "`edc-ray presets` lists the"),
        (["condense", "digits/ipc1", "--set", "init.ipc=999"], "init.ipc = 999", "must be <= "),
        (["condense", "edc/cifar10/ipc1"], "dataset.path = 'data/cifar10'", "cifar-10-batches-py"),
        (["report", "gone"], "folder = 'gone'", "is not of a sweep"),
        (["check-plugin", "nocolon"], "MODULE:FUNCTION = 'nocolon'", "must be a module, a colon and a"),
        (["check-plugin", "nosuch_module:f"], "MODULE:FUNCTION = 'nosuch_module:f'", "No module named"),
        (
            ["check-plugin", "json:nothing"],
            "MODULE:FUNCTION = 'json:nothing'",
            "the module json has no nothing",
        ),
        (["check-plugin", "json:dumps"], "MODULE:FUNCTION = 'json:dumps'", "with --kind the checks say why"),
        (["check-plugin", "json:dumps", "--size-px", "0"], "--size-px = 0", "must be in [8, 1024]"),
        (["report", "torn"], "folder = 'torn'", "sweep.json is not of a sweep"),
        (["report", "old"], "folder = 'old'", "sweep.json is not of a sweep"),
        (["report", "nosuch://x/sweeps/y"], "runtime.store = 'nosuch://x'", "must be a folder or a URI"),
    ],
)
def test_command_line(argv: list[str], error: str, legal: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("torn/sweep.json", "{")()
    write("old/sweep.json", "{}")()
    assert_refused(Row({}, error, legal), cli.main, argv, capsys)


def test_the_good_file_is_good(folder: Path) -> None:
    """Else the rows above might be refused for another reason."""
    ready = sweep.prepare(Row({}, "", "").file(), [])
    assert ready.folder == folder / "store" / "sweeps" / "good" and not tree(folder)


@pytest.mark.slow
def test_bad_input_is_told_without_ray(tmp_path: Path) -> None:
    """As a command, with the deepest of the checks; the bound is only against waiting for a cluster.

    Nor may a module bring Ray in early: Ray reads its environment at import, and `session.cluster` sets that.
    """
    begin_good()
    script = (
        "import runpy, sys; sys.argv = ['sweep', *sys.argv[1:]]\n"
        "try: runpy.run_module('edc_ray.sweep', None, '__main__')\n"
        "finally:\n"
        "    import edc_ray.cli, edc_ray.report\n"
        "    print(sorted({'ray', 'matplotlib'} & set(sys.modules)))"
    )
    argv = [
        sys.executable,
        "-W",
        "error::UserWarning",
        "-c",
        script,
        SAME_FOLDER["another experiment"].file(),
    ]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=dict(os.environ) | path)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.startswith("error: name = 'good'") and done.stderr.count("\n") == 1, done.stderr


# --- --set --------------------------------------------------------------------------------------------------


def test_set_reaches_sweep_and_experiment() -> None:
    file = Row({"preset": "digits/ipc1"} | exp(init={"ipc": 3}), "", "").file()
    changes = [
        "seed=5",
        "experiment.seed=7",
        "recover.lr=1e-3",
        "experiment.evaluate.seeds=[4, 5]",
        "budget.trials=2",
    ]
    found, base = specs.load_file(file, [*changes, "dataset.path=2020-01-01", "relabel.observers=null"])
    assert (found.seed, base.seed, found.budget.trials) == (5, 7, 2)
    assert (base.recover.lr, base.evaluate.seeds, base.init.ipc) == (0.001, (4, 5), 3)
    assert (base.dataset.path, base.relabel.observers) == ("2020-01-01", None)


def test_set_changes_fields_together_that_need_each_other() -> None:
    file = Row({}, "", "").file()
    changes = ["relabel.observers=[resnet18]", "experiment.squeeze.observers=[resnet18, vgg5_w16]"]
    assert specs.load_file(file, changes)[1].relabel.observers == ("resnet18",)


def test_experiment_may_be_written_with_dots_or_nested() -> None:
    nested = specs.load_file(Row(exp(recover={"matching": {"weight": 0.5}, "lr": 0.1}), "", "").file())
    dotted = Row({"experiment": {"recover.matching": {"weight": 0.5}, "recover.lr": 0.1}}, "", "").file()
    assert specs.load_file(dotted)[1] == nested[1] != config.Experiment()
