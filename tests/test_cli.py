"""The commands: what they print, what they write, and that no option comes in by the back door."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from edc_ray import cli, pipeline, sweep
from edc_ray.artifacts import Store

TINY = [
    "dataset.limit=200", "dataset.size_px=8", "squeeze.epochs=1", "recover.iterations=2", "evaluate.epochs=2",
    "squeeze.observers=[convnet_w16_d2, vgg5_w16]", "evaluate.student=convnet_w16_d2", "evaluate.reports=2",
    "evaluate.seeds=[0, 1]", "runtime.device=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], command: str, target: str, *changes: str) -> str:
    """What a command prints that ends well and says nothing on stderr."""
    code = cli.main([command, target, *(word for change in changes for word in ("--set", change))])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


# --- options ------------------------------------------------------------------------------------------------

OPTIONS = {
    "condense": {"--help", "--set", "--ray"},
    "plan": {"--help", "--set", "--cluster"},
    "sweep": {"--help", "--set", "--fresh", "--dry-run"},
    "extend": {"--help", "--trials", "--set"},
    "report": {"--help"},
    "doctor": {"--help", "--set"},
    "status": {"--help", "--address"},
    "store": {"--help"},
    "evaluate": {"--help", "--protocol", "--students", "--dataset", "--set", "--final", "--scores", "--ray"},
    "apply": {"--help", "--dataset", "--set", "--final", "--ray"},
    "export": {"--help", "--format", "--out", "--dataset", "--set"},
    "store gc": {"--help", "--keep", "--yes"},
    "teachers": {"--help"},
    "teachers export": {"--help", "--set"},
    "teachers import": {"--help", "--set", "--store"},
    "diagnose": {"--help", "--what", "--dataset", "--set", "--ray"},
    "check-plugin": {"--help", "--kind", "--size-px"},
}


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*argv, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", OPTIONS)
def test_no_new_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A field is changed with --set; an option for one needs a better reason than comfort."""
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", shown(capsys, *command.split()))) == OPTIONS[command]


def test_no_new_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    listed = re.findall(r"^    ([\w-]+)  ", text, re.M)
    assert set(listed) == {name for name in OPTIONS if " " not in name} | {"presets", "explain", "schema"}
    assert "condense" in text and "What there is to do" in text
    with pytest.raises(SystemExit) as ended:
        sweep.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert (
        set(re.findall(r"(?<![\w-])--[a-z-]+", text)) == {"--help", "--set", "--fresh"}
        and "sweeps/quickstart.yaml" in text
    )


def test_help_says_where_the_presets_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert all("`edc-ray presets` lists them" in shown(capsys, name) for name in ("condense", "plan"))


# --- plan ---------------------------------------------------------------------------------------------------


def rows_of(lines: list[str]) -> list[str]:
    """Of the table of a plan, which the estimate follows."""
    end = next(i for i, line in enumerate(lines) if line.startswith("estimate"))
    return lines[lines.index(HEADER) + 1 : end]


HEADER = f"{'artifact':<24} {'units':>6} {'to do':>6}"


def test_plan_of_the_quickstart_from_the_package(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "plan", "sweeps/quickstart.yaml")
    first, expected, header, *_ = out.splitlines()
    rows = rows_of(out.splitlines())
    assert expected == (
        "expected made + hits: ingest 1 + 15, squeeze 1 + 15, statistics 1 + 15, init 1 + 15, "
        "recover 16 + 0, relabel 16 + 0, evaluate 16 + 0"
    )
    assert first == "sweep quickstart: 16 trials over 8 knobs" and header == HEADER
    assert [row.split("-")[0] for row in rows] == list(pipeline.STAGES)
    shared = [row for row in rows if "per trial" not in row]
    assert [row.split("-")[0] for row in shared] == ["ingest", "squeeze", "statistics", "init"]
    assert not list(folder.iterdir())


def test_plan_of_a_sweep_whose_trials_share_their_images(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "plan", "sweeps/quickstart.yaml", "search.inner=5")
    first, expected, *_ = out.splitlines()
    rows = rows_of(out.splitlines())
    assert first == "sweep quickstart: 16 trials over 8 knobs, 5 for each of 4 syntheses"
    assert "init 1 + 15, recover 4 + 12, relabel 16 + 0" in expected
    notes = {row.split("-")[0]: row.rpartition("  ")[2] for row in rows}
    assert notes["recover"] == "per synthesis" and notes["relabel"] == notes["evaluate"] == "per trial"


def test_plan_of_the_design_space_says_what_is_missing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, "plan", "sweeps/design_space.yaml", f"runtime.store={folder / 'store'}")
    assert "sweep design-space-cifar10-ipc10: 100 trials over 37 knobs, 4 for each of 25 syntheses\n" in out
    assert "init 25 + 75, recover 25 + 75, relabel 100 + 0, evaluate 100 + 0\n" in out  # needs no images
    (missing,) = re.findall(r"^missing: .*", out, re.M)
    assert missing.startswith(
        "missing: experiment.dataset.path = 'data/cifar10': no such folder; must be a folder"
    )
    notes = re.findall(r"^note: .*", out, re.M)
    assert len(notes) == (not torch.cuda.is_available())
    assert all("runtime.gpus_per_worker = 0.5 and this machine has no GPU" in note for note in notes)
    assert not list(folder.iterdir())


def test_plan_of_a_preset_without_its_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "plan", "edc/cifar10/ipc10")
    assert (
        out.startswith("missing: dataset.path = 'data/cifar10': no such folder")
        and "stages: ingest -> " in out
    )
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (["recover.classes_per_group=10"], "one group: nothing to shard"),
        (["runtime.labels=inline"], "inline: made by the student's worker"),
    ],
)
def test_plan_explains(changes: list[str], note: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert note in run(capsys, "plan", "digits/ipc1", *changes)


# --- condense -----------------------------------------------------------------------------------------------


def arms_of(out: str) -> dict[str, str]:
    """The rows of the final table."""
    return dict(re.findall(r"^    (condensed|random_real|t0|whole data) +(.*)$", out, re.M))


def test_condense_end_to_end_and_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(capsys, "condense", "digits/ipc1", *TINY)
    assert [name.name for name in folder.iterdir()] == ["store"]
    rows = arms_of(first)
    assert list(rows) == ["condensed", "random_real", "t0", "whole data"]
    for name in ("condensed", "random_real", "t0"):
        assert re.fullmatch(r"\d+\.\d\d \+- \d+\.\d\d \(n = 2\)", rows[name])
    assert re.fullmatch(r"student convnet_w16_d2 \d+\.\d\d", rows["whole data"])
    assert (
        "accuracy on val in %, 2 students" in first and "there already" not in first.split("random_real:")[0]
    )

    _, experiment = cli.load("digits/ipc1", TINY)
    recover = next(task for task in pipeline.tasks(experiment) if task.stage == "recover")
    images = re.findall(r"^images: (.*)$", first, re.M)
    assert images == [str(folder / "store" / str(recover))] and Path(images[0], "manifest.json").is_file()

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    second = run(capsys, "condense", "digits/ipc1", *TINY)
    made = [line for line in second.splitlines() if " units" in line]
    assert not made and second.count("there already") == len(
        set(re.findall(r"there already \((.*)\)", second))
    )
    assert arms_of(second) == rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before

    plan = run(capsys, "plan", "digits/ipc1", *TINY).splitlines()
    planned = rows_of(plan)
    assert all("0  hit" in row for row in planned if not row.startswith("relabel"))
    assert plan[-1] == "estimate: nothing to do"
    # One epoch on 140 images teaches little, and both the table and the plan say so.
    (squeezed,) = (row for row in planned if row.startswith("squeeze"))
    for said in (first, second, squeezed):
        assert re.search(r"observer vgg5_w16 cannot be told from guessing: accuracy [\d.]+ % on \d+ ", said)
        assert "chance 10.0 %" in said

    # Nothing optimised: the images are their own t0. All else is there already.
    third = run(capsys, "condense", "digits/ipc1", *TINY, "recover.iterations=0")
    assert list(arms_of(third)) == ["condensed", "random_real", "whole data"]
    assert "squeeze    there already" in third and arms_of(third)["condensed"] == rows["t0"]


def test_condense_without_a_baseline_of_its_own() -> None:
    _, experiment = cli.load("digits/ipc1", ["recover.iterations=0", "init.seed=3"])
    assert list(pipeline.arms(experiment)) == ["condensed", "random_real"]


def test_a_failure_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1: the input is right, the computation is not."""
    changes = [*TINY, "recover.iterations=20", "recover.lr=1e30", "recover.matching.weight=1e30"]
    code = cli.main(["condense", "digits/ipc1", *(word for change in changes for word in ("--set", change))])
    _, err = capsys.readouterr()
    assert code == 1 and err.startswith("failed: ") and err.count("\n") == 1, err
    assert Store(str(folder / "store")).exists("store.json")


@pytest.mark.slow
@pytest.mark.ray
def test_a_look_and_a_use_have_the_same_rows_on_ray(folder: Path) -> None:
    """`--ray` of diagnose and apply, in a process of its own, as each starts a Ray and ends it."""
    program = """
import sys
from edc_ray import cli
from tests.test_cli import TINY

changes = [*TINY, "evaluate.seeds=[0]", "split.val=0.3", "runtime.workers=1"]
changes += ["apply.epsilon=[0.02]", "apply.pgd_steps=2"]
for place, *ray in (("here",), ("there", "--ray")):
    sets = [f"--set={each}" for each in (*changes, f"runtime.store={place}")]
    for words in ("diagnose digits/ipc1 --what gradients", "apply robustness digits/ipc1"):
        assert cli.main([*words.split(), *sets, *ray]) == 0
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], check=True, env=env, timeout=200)

    def rows(place: str) -> dict[str, list[object]]:
        files = [next(Path(place, kind).glob("*.parquet")) for kind in ("diagnoses", "applications")]
        return {path.name: pq.read_table(path).to_pylist() for path in files}

    def workers(place: str) -> set[str]:
        logs = [path.read_text() for path in Path(place).rglob("logs/*.log")]
        return {number for text in logs for number in re.findall(r"process (\d+)\)", text)}

    assert rows("here") == rows("there") and all(rows("here").values())
    assert len(workers("here")) == 1 and workers("there") and not workers("here") & workers("there")
