"""Networks and matching losses of the user's own: found, checked, refused, and part of the names."""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edc_ray import cli, pipeline
from edc_ray.artifacts import Store, every_artifact
from edc_ray.config import ConfigError, Experiment, Runtime, hashed, override
from edc_ray.core import matching, models
from edc_ray.core.models import plugins
from edc_ray.testing import CHECKS, MATCHER_CHECKS, MODEL_CHECKS, kind_of, outcomes

GOOD = """
import torch
from torch import nn


def net(classes, size_px):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes),
    )


def huber(difference, width):
    size = difference.abs()
    return torch.where(size < 1, size.square() / 2, size - 0.5).sum(-1)


number = 3
"""
# What fails -> a function that breaks that promise (and maybe more).
BAD_MATCHERS = {
    "one number a segment and group": "def f(difference, width): return difference.sum()",
    "zero only without a difference": "def f(difference, width): return difference.square().sum(-1) + 1",
    "finite gradients": "def f(difference, width): return difference.square().sum(-1).sqrt()",
    "grows with the difference": "def f(difference, width): return difference.abs().clamp(max=1).sum(-1)",
    "groups and segments are apart": (
        "def f(difference, width): return difference.square().sum(-1) * difference.square().mean()"
    ),
    "padding does not count": "def f(difference, width): return difference.square().mean(-1)",
    "deterministic": (
        "import torch\ndef f(difference, width): return difference.square().sum(-1) * torch.rand(())"
    ),
    "float32 and float64": (
        "def f(difference, width): return difference.bfloat16().square().sum(-1).to(difference)"
    ),
}
NET = "from torch import nn\nimport torch, random\n"
FLAT = "nn.Flatten(), nn.Linear(3 * s * s, c)"
BAD_MODELS = {
    "gives one finite logit a class": f"def f(c, s): return nn.Sequential({FLAT}, nn.Linear(c, c + 1))",
    "shapes are known without numbers": (
        "class N(nn.Module):\n"
        " def __init__(self, c, s): super().__init__(); self.l = nn.Linear(3 * s * s, c)\n"
        " def forward(self, x): return self.l(x.flatten(1)) * float(x.numel() if x.sum() == 0 else 1)\n"
        "f = N"
    ),
    "float32 and float64": (
        "class N(nn.Module):\n"
        " def __init__(self, c, s): super().__init__(); self.l = nn.Linear(3 * s * s, c)\n"
        " def forward(self, x): return self.l(x.flatten(1).float())\n"
        "f = N"
    ),
    "finite gradients": """
class Root(nn.Module):
    def forward(self, x): return (x - x).sqrt()
def f(c, s): return nn.Sequential(nn.Flatten(), Root(), nn.Linear(3 * s * s, c))
""",
    "the seed decides the weights": f"""
def f(c, s):
    net = nn.Sequential({FLAT})
    net[1].weight.data.fill_(random.random())
    return net
""",
    "eval mode is deterministic": f"""
class Noise(nn.Module):
    def forward(self, x): return x + torch.randn_like(x)
def f(c, s): return nn.Sequential(Noise(), {FLAT})
""",
    "images do not see each other": f"""
class Centre(nn.Module):
    def forward(self, x): return x - x.mean(0, keepdim=True)
def f(c, s): return nn.Sequential(Centre(), {FLAT})
""",
    "layers to match are not overwritten": """
def f(c, s):
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardtanh(-0.1, 0.1, inplace=True), Grab(), nn.Flatten(),
                         nn.Linear(3 * s * s, c))
class Grab(nn.Module):
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 3, 1)
    def forward(self, x): return self.conv(x) + x.add_(1)
""",
    "the state dict is the whole state": f"""
class Hidden(nn.Module):
    def __init__(self): super().__init__(); self.shift = [torch.randn(())]
    def forward(self, x): return x + self.shift[0].to(x)
def f(c, s): return nn.Sequential(Hidden(), {FLAT})
""",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, on the search path for this test alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for cache in (plugins._source, matching._own, models.probe):
        cache.cache_clear()
    return tmp_path


@pytest.fixture
def module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes NAME.py, which is forgotten after the test."""

    def write(name: str, text: str) -> None:
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        plugins._source.cache_clear()

    return write


Write = Callable[[str, str], None]

# --- the contract -------------------------------------------------------------------------------------------


def test_good_plug_ins_keep_to_the_contract(module: Write, capsys: pytest.CaptureFixture[str]) -> None:
    module("good_plugin", GOOD)
    assert cli.main(["check-plugin", "good_plugin:huber"]) == 0
    out = capsys.readouterr().out
    assert "as a matcher, source " in out and out.count("\nok  ") == len(MATCHER_CHECKS)
    assert cli.main(["check-plugin", "good_plugin:net", "--size-px", "8"]) == 0
    out = capsys.readouterr().out
    assert "as a model, source " in out and out.count("\nok  ") == len(MODEL_CHECKS) and "2 layers" in out


@pytest.mark.parametrize("promise", [*MATCHER_CHECKS])
def test_a_matcher_that_breaks_a_promise_is_caught(promise: str, module: Write) -> None:
    module("bad_plugin", BAD_MATCHERS[promise])
    function = plugins.resolve("x", "bad_plugin:f")
    assert promise in {each.promise for each in outcomes(MATCHER_CHECKS, function) if not each.holds}


@pytest.mark.parametrize("promise", [*MODEL_CHECKS])
def test_a_network_that_breaks_a_promise_is_caught(promise: str, module: Write) -> None:
    module("bad_plugin", NET + BAD_MODELS[promise])
    function = plugins.resolve("x", "bad_plugin:f")
    failed = {each.promise for each in outcomes(MODEL_CHECKS, function, 8) if not each.holds}
    assert promise in failed, failed


def test_a_failed_check_is_told_in_a_line_and_by_the_exit_code(
    module: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    module("bad_plugin", BAD_MATCHERS["padding does not count"])
    assert cli.main(["check-plugin", "bad_plugin:f"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED  padding does not count: what fills up a narrow segment counts" in out
    assert err == "failed: 1 of 8 checks failed\n"


def test_the_kind_is_found_out(module: Write) -> None:
    module("good_plugin", GOOD)
    assert kind_of(plugins.resolve("x", "good_plugin:net"), 8) == "model"
    assert kind_of(plugins.resolve("x", "good_plugin:huber"), 8) == "matcher"
    assert kind_of(print, 8) is None and set(CHECKS) == {"model", "matcher"}


# --- names of artifacts -------------------------------------------------------------------------------------

TINY = {
    "dataset.limit": 120, "dataset.size_px": 8, "split.val": 0.3, "squeeze.epochs": 1, "init.ipc": 1,
    "squeeze.observers": ["convnet_w16_d2", "good_plugin:net"], "recover.iterations": 2,
    "recover.matching.loss": "good_plugin:huber", "evaluate.student": "good_plugin:net",
    "evaluate.epochs": 1, "evaluate.reports": 1, "relabel.batch_size": 5,
}  # fmt: skip


def keys(experiment: Experiment) -> dict[str, str]:
    return {task.stage: task.key for task in pipeline.tasks(experiment)}


def test_an_edited_plug_in_is_another_artifact(module: Write, folder: Path) -> None:
    module("good_plugin", GOOD)
    both = override(Experiment(), TINY)
    student = override(both, {"squeeze.observers": ["convnet_w16_d2"], "recover.matching.loss": "l2"})
    loss = override(
        student, {"recover.matching.loss": "good_plugin:huber", "evaluate.student": "convnet_w32"}
    )
    before = {name: keys(each) for name, each in {"both": both, "student": student, "loss": loss}.items()}
    module("good_plugin", GOOD + "\n# edited\n")
    after = {name: keys(each) for name, each in {"both": both, "student": student, "loss": loss}.items()}
    differs = {
        name: {stage for stage in before[name] if before[name][stage] != after[name][stage]}
        for name in before
    }
    assert differs["both"] == {"squeeze", "statistics", "recover", "relabel", "evaluate"}
    assert differs["student"] == {"evaluate"} and differs["loss"] == {"recover", "relabel", "evaluate"}
    module("good_plugin", GOOD)
    assert keys(both) == before["both"]


def test_the_source_is_that_of_what_it_imports_beside_it_and_of_its_whole_package(
    module: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module("plug_helper", "factor = 1\n")
    module("plug_user", "import plug_helper, torch\ndef f(d, w): return d.square().sum(-1)\n")
    (folder / "other.py").write_text("x = 1\n")
    first = plugins.fingerprint(["plug_user:f"])
    (folder / "other.py").write_text("x = 2\n")
    plugins._source.cache_clear()
    assert plugins.fingerprint(["plug_user:f"]) == first
    module("plug_helper", "factor = 2\n")
    assert plugins.fingerprint(["plug_user:f"]) != first

    (folder / "plug_package").mkdir()
    (folder / "plug_package" / "__init__.py").write_text("")
    (folder / "plug_package" / "inner.py").write_text("def f(d, w): return d\n")
    one = plugins.fingerprint(["plug_package.inner:f"])
    (folder / "plug_package" / "more.py").write_text("")
    plugins._source.cache_clear()
    assert plugins.fingerprint(["plug_package.inner:f"]) != one
    assert plugins.fingerprint(["resnet18", "timm/resnet18.a1_in1k"]) is None
    for name in ("plug_package", "plug_package.inner"):
        sys.modules.pop(name, None)


def test_names_without_a_plug_in_are_what_they_were() -> None:
    """Nothing of what came later is in them."""
    for stage in ("squeeze", "recover", "evaluate"):
        assert pipeline.STAGES[stage].files(Experiment()) is None
    weights = override(Experiment(), {"squeeze.weights": "timm", "squeeze.observers": ["timm/resnet18"]})
    assert pipeline.STAGES["squeeze"].files(weights) == models.fingerprint("timm", ["timm/resnet18"])
    assert "skip_corrupt" not in hashed(Experiment())["dataset"]
    assert hashed(override(Experiment(), {"dataset.skip_corrupt": True}))["dataset"]["skip_corrupt"] is True


def test_an_entry_point_names_a_loss(module: Write, folder: Path) -> None:
    module("good_plugin", GOOD)
    info = folder / "good_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: good-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edc_ray.matchers]\nhuber = good_plugin:huber\n")
    importlib.invalidate_caches()
    assert matching.reference("huber") == "good_plugin:huber" and matching.reference("l2") is None
    difference, width = torch.full((2, 3, 4), 0.5), torch.full((3,), 4.0)
    torch.testing.assert_close(matching.norm_of("huber")(difference, width), torch.full((2, 3), 0.5))
    named = override(Experiment(), {"recover.matching.loss": "huber"})
    pipeline.check_names(named)
    with pytest.raises(ConfigError, match="did you mean huber"):
        matching.norm_of("hubert")


# --- end to end ---------------------------------------------------------------------------------------------


def test_plug_ins_observe_match_and_learn(module: Write, store: Store) -> None:
    module("good_plugin", GOOD)
    experiment, runtime = override(Experiment(), TINY), Runtime(device="cpu")
    pipeline.check(experiment)
    tasks = pipeline.ensure(experiment, store, runtime, pipeline.in_process(store, runtime))
    found = {task.stage: pipeline.manifest(task, store) for task in tasks if task.stage != "relabel"}
    assert set(found["squeeze"]["units"]) == {"convnet_w16_d2", "good_plugin==net", "all"}
    observed, _ = store.artifact("statistics", found["statistics"]["key"]).read("all")
    assert {name.split("/")[0] for name in observed} == {"convnet_w16_d2", "good_plugin:net"}


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_ray_find_what_lies_in_the_working_directory(folder: Path) -> None:
    """As the installed command, whose own folder is on the search path instead of the working directory."""
    (folder / "good_plugin.py").write_text(GOOD)
    changes = [f"--set={path}={json.dumps(value)}" for path, value in TINY.items()]
    script = "import sys; from edc_ray import cli; sys.exit(cli.main(sys.argv[1:]))"
    argv = [sys.executable, "-P", "-c", script, "condense", "digits/ipc1", *changes]
    found = []
    with tempfile.TemporaryDirectory(prefix="edc-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        environment = os.environ | {"RAY_TMPDIR": temporary, "PYTHONPATH": str(Path(__file__).parents[1])}
        for store, more in (("local", []), ("ray", ["--ray"])):
            done = subprocess.run(
                [*argv, f"--set=runtime.store={store}", "--set=runtime.device=cpu", *more],
                capture_output=True, text=True, timeout=240, env=environment, cwd=folder,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            found.append({
                f"{artifact.folder}/{unit}/{name}": tensor
                for artifact in every_artifact(Store(str(folder / store)))
                for unit in artifact.units()
                for name, tensor in artifact.read(unit)[0].items()
            })  # fmt: skip
    assert any("/good_plugin==net/model.net." in name for name in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_the_network_and_the_loss_of_the_readme_keep_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    own = [block for block in re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S) if "def " in block]
    assert len(own) == 1
    (tmp_path / "of_the_readme.py").write_text(own[0])
    for name, kind in (("net", "model"), ("huber", "matcher")):
        assert cli.main(["check-plugin", f"of_the_readme:{name}"]) == 0
        assert f"as a {kind}" in capsys.readouterr().out
