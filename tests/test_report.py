"""The final claim and its report, from a study and a store that were made in this process, without Ray."""

import base64
import io
import json
import math
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import FrozenTrial, create_trial
from PIL import Image
from scipy import stats

from edc_ray import cli, config, pipeline, report, space
from edc_ray.artifacts import Store
from edc_ray.claim import Claim, interval, standard_error
from edc_ray.config import Budget, Confirm, Experiment, Knob, Runtime, Sweep
from edc_ray.report import figures, files, html, judged, page, search, trials
from edc_ray.report.section import Section

# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.1, 0.2, 0.4, 0.35], [-0.02, 0.01, 0.0, 0.03, 0.02]])
def test_interval_is_scipys(values: list[float]) -> None:
    found = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.n == len(values)


def test_interval_as_text() -> None:
    assert str(interval([0.5, 0.5, 0.5])) == "50.00 +- 0.00 (n = 3)"
    assert str(interval([0.25])) == "25.00 (n = 1)" and interval([0.25]).half == math.inf
    assert str(interval([-0.01, -0.03])) == "-2.00 +- 12.71 (n = 2)"


def test_standard_error_is_that_of_a_share() -> None:
    right = np.repeat([1.0, 0.0], [90, 10])
    assert standard_error(0.9, 100) == pytest.approx(right.std() / math.sqrt(100))
    assert standard_error(0.0, 7) == standard_error(1.0, 7) == 0


# --- pictures and table -------------------------------------------------------------------------------------


def test_grid_has_one_row_a_class() -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 3, 4, 4), np.uint8)
    picture = report.grid(images, ipc=2)
    assert picture.shape == (3 * 6, 2 * 6, 3) and picture.dtype == np.uint8
    cells = picture.reshape(3, 6, 2, 6, 3)
    for label in range(3):
        for member in range(2):
            cell = cells[label, :, member]
            assert (cell[1:-1, 1:-1] == 2 * label + member).all()
            assert (cell[[0, -1]] == 255).all() and (cell[:, [0, -1]] == 255).all()


def test_grid_keeps_rows_columns_and_channels() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4)
    assert (report.grid(image, ipc=1)[1:-1, 1:-1] == image[0].transpose(1, 2, 0)).all()


FACTS: dict[str, Any] = {
    "best": {"trial": 7, "params": {"recover.lr": 0.0123456, "init.kind": "noise"}, "val": 0.9},
    "val": {"images": 100, "standard_error": 0.03, "ties": [2, 5]},
    "trials": {"complete": 10, "fail": 1, "pruned": 5},
    "accuracies": {"condensed": [0.8, 0.9], "random_real": [0.7, 0.7], "t0": [0.7, 0.9]},
    "differences": {"random_real": [0.1, 0.2], "t0": [0.1, 0.0]},
    "test": {
        "split": "test", "images": 540, "observers": {"a": 0.9, "b": 0.95}, "ensemble": 0.96,
        "student": {"s": 0.97}, "kept": 10, "of": 1257, "image_bytes": 7680, "label_bytes": 1234567,
    },
    "core_seconds": {"synthesis": 12.345, "everything": 678.9},
    "rungs": {250: (0.5, 10)},
    "test_reads": 42,
    "protocol": "rd", "seeds": [1000, 1001],
}  # fmt: skip


def test_table() -> None:
    """Every number, line by line, in its unit; the words are free."""
    lines = report.table(FACTS, (3, 1))
    assert [re.findall(r"-?\d+(?:[.,]\d+)*", line) for line in lines] == [
        ["10", "1", "5"],  # trials
        ["7", "90.00", "3.00", "100", "2", "5"],  # best, val, standard error, images, ties
        ["0.0123"],
        [],
        ["540", "2", "1000", "1001", "95"],
        ["85.00", "63.53", "2"],
        ["70.00", "0.00", "2", "15.00", "63.53", "2"],  # and the paired difference
        ["0", "80.00", "127.06", "2", "0", "5.00", "63.53", "2"],
        ["97.00", "90.00", "95.00", "96.00"],
        ["10", "1257", "1", "126", "7,680", "1,234,567"],
        ["25", "0.50", "10"],
        ["12.3", "679"],
        ["75", "3", "1"],
        ["42"],
    ]
    assert "protocol rd" in lines[1] and "protocol rd" in lines[4]
    assert "2, 5" in lines[1] and "noise" in lines[3] and "condensed - t0" in lines[7]


def test_table_without_confirmation_ties_and_hits() -> None:
    facts = {name: value for name, value in FACTS.items() if name != "test"}
    facts |= {"val": FACTS["val"] | {"ties": []}, "rungs": {}}
    lines = report.table(facts, None)
    assert lines[1].endswith("within one standard error: none")
    assert not [line for line in lines if "confirmed" in line or "stage hits" in line or "rung" in line]


# --- a whole sweep, by hand ---------------------------------------------------------------------------------

BASE = config.override(
    Experiment(),
    {
        "dataset.limit": 200, "dataset.size_px": 8, "split.val": 0.3, "squeeze.epochs": 2, "init.ipc": 2,
        "squeeze.observers": ["convnet_w16_d2"], "recover.iterations": 2, "evaluate.student": "vgg5_w16",
        "evaluate.epochs": 2, "evaluate.reports": 2, "relabel.batch_size": 5,
    },
)  # fmt: skip
SEARCH = {"evaluate.lr": Knob(low=1e-4, high=0.1), "recover.flip": Knob(choices=(True, False))}
# The last two repeat the first two: equal to the bit, hence tied, and made only once.
ASKED: list[dict[str, Any]] = [
    {"evaluate.lr": 0.05, "recover.flip": True}, {"evaluate.lr": 0.001, "recover.flip": False},
    {"evaluate.lr": 0.05, "recover.flip": True}, {"evaluate.lr": 0.001, "recover.flip": False},
]  # fmt: skip
SWEEP = Sweep(name="hand", search=SEARCH, budget=Budget(trials=5), confirm=Confirm(seeds=2))


def build(experiment: Experiment, store: Store, upto: str = "evaluate") -> pipeline.Task:
    return pipeline.ensure(experiment, store, Runtime(), pipeline.in_process(store, Runtime()), upto=upto)[-1]


def read_claim(store: Store, made: Sweep) -> Claim:
    return Claim(BASE, made, store, space.read_study(Path(store.path("sweeps", made.name))))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Sweep]:
    """A store with four complete trials and one that failed; nothing is confirmed."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    made = replace(SWEEP, runtime=replace(Runtime(), store=store.path()))
    folder = Path(store.folder("sweeps/hand"))
    study = space.open_study(folder)
    for params in ASKED:
        study.enqueue_trial(params)
        trial = study.ask()
        space.Space(SEARCH)(trial)
        curve = pipeline.reports(build(space.apply(BASE, trial.params, SEARCH), store), store)
        for at, accuracy in curve:
            trial.report(accuracy, at)
        study.tell(trial, curve[-1][1])
    failed = study.ask()
    space.Space(SEARCH)(failed)
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    facts = {"sweep": config.dump(made), "base": config.dump(BASE), "store": store.path()}
    store.put("sweeps/hand/sweep.json", json.dumps(facts).encode())
    return store, made


@pytest.fixture(scope="module")
def confirmed(searched: tuple[Store, Sweep]) -> Claim:
    """The same after the confirmation, built as the Broker would."""
    store, made = searched
    claim = read_claim(store, made)
    assert claim.missing()
    for arm in claim.arms().values():
        for experiment in arm:
            build(experiment, store)
    assert claim.missing()  # the whole-data student is part of it
    whole = pipeline.whole(claim.winner)
    assert whole
    build(whole, store, "squeeze")
    return claim


@pytest.mark.slow
def test_a_claim_without_confirmation_reads_no_test(searched: tuple[Store, Sweep]) -> None:
    store, made = searched
    reads = len(store.read_lines("test_reads.jsonl"))
    claim = read_claim(store, replace(made, confirm=Confirm(seeds=0)))

    class Refuses:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} is called")

    claim.make(Refuses(), print)  # type: ignore[arg-type]
    assert not claim.missing() and claim.arms() == {}
    facts = claim.facts()
    assert "test" not in facts and facts["accuracies"] == {} and facts["test_reads"] == reads
    assert facts["core_seconds"]["synthesis"] > 0
    assert report.table(facts, claim.all_hits())


@pytest.mark.slow
def test_the_confirmation_uses_new_seeds_and_all_training_images(confirmed: Claim) -> None:
    assert not confirmed.missing()
    assert confirmed.winner.split.val == 0 and confirmed.experiment(confirmed.best).split.val == 0.3
    arms = confirmed.arms()
    assert list(arms) == ["condensed", "random_real", "t0"]
    for i in range(2):
        seed = pipeline.CONFIRM_SEED + i
        assert all(arm[i].evaluate.seeds == (seed,) for arm in arms.values())
        assert arms["condensed"][i].init.seed == arms["t0"][i].init.seed == seed
        assert arms["random_real"][i].init.seed not in (seed, BASE.init.seed)
    assert confirmed.winner.evaluate.reports == 1  # test is read at the end of a student's training only


def test_facts_about_val(confirmed: Claim) -> None:
    facts, trials = confirmed.facts(), confirmed.study.trials
    values = [trial.value or 0.0 for trial in trials[:4]]
    best = values.index(max(values))
    assert facts["best"] == {"trial": best, "params": ASKED[best], "val": values[best]}
    held_out = 6 * 10  # of 200 digits, 30 % of each class
    assert abs(facts["val"]["images"] - held_out) <= 5
    error = math.sqrt(values[best] * (1 - values[best]) / facts["val"]["images"])
    assert facts["val"]["standard_error"] == pytest.approx(error)
    ties = {n for n, value in enumerate(values) if n != best and value >= values[best] - error}
    assert set(facts["val"]["ties"]) == ties and best + 2 in ties
    assert facts["trials"] == {"complete": 4, "fail": 1} and facts["rungs"] == space.rung_correlation(trials)


def test_facts_about_test_are_paired_by_seed(confirmed: Claim) -> None:
    facts, store = confirmed.facts(), confirmed.store
    for i in range(2):
        seeded = pipeline.with_seed(confirmed.winner, pipeline.CONFIRM_SEED + i)
        found = {
            name: pipeline.facts(pipeline.tasks(e)[-1], store) for name, e in pipeline.arms(seeded).items()
        }
        assert {name: found[name]["accuracy"] for name in found} == {
            name: values[i] for name, values in facts["accuracies"].items()
        }
        for name in ("random_real", "t0"):
            assert facts["differences"][name][i] == found["condensed"]["accuracy"] - found[name]["accuracy"]
    test = facts["test"]
    assert (test["split"], test["kept"], test["of"]) == ("test", 20, 200)
    assert test["image_bytes"] == 20 * 3 * 8 * 8
    assert test["label_bytes"] > 0 and test["images"] > 500
    assert list(test["observers"]) == ["convnet_w16_d2"] and list(test["student"]) == ["vgg5_w16"]


def test_facts_about_cost(confirmed: Claim) -> None:
    """Everything in this store was made for this sweep: each artifact counts once, whoever shares it."""
    facts, root = confirmed.facts(), Path(confirmed.store.path())
    manifests = [json.loads(path.read_text()) for path in root.glob("*/manifest.json")]
    assert facts["core_seconds"]["everything"] == pytest.approx(sum(m["core_seconds"] for m in manifests))
    sets = [
        task for e in confirmed.arms()["condensed"] for task in pipeline.tasks(e) if task.stage == "recover"
    ]
    spent = [m["core_seconds"] for m in manifests if m["key"] in {task.key for task in sets}]
    assert len(spent) == 2 and facts["core_seconds"]["synthesis"] == pytest.approx(sum(spent) / 2)
    assert confirmed.all_hits()[0] >= len(manifests) and confirmed.all_hits()[1] == 0


def test_each_read_of_test_is_on_record_once(confirmed: Claim) -> None:
    """Two squeezes (observers, student) and three arms of two seeds."""
    lines = confirmed.store.read_lines("test_reads.jsonl")
    assert confirmed.facts()["test_reads"] == len(lines) == 2 + 3 * 2
    assert sorted(line["why"].split()[0] for line in lines) == ["evaluate"] * 6 + ["squeeze"] * 2


# --- files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(confirmed: Claim) -> tuple[Path, list[str]]:
    lines: list[str] = []
    facts = report.write(confirmed, (3, 5), lines.append)
    assert json.loads(json.dumps(facts))["test_reads"] == 8
    return Path(confirmed.store.path("sweeps/hand")), lines


@pytest.mark.slow
def test_files_of_a_report(written: tuple[Path, list[str]], confirmed: Claim) -> None:
    folder, lines = written
    assert json.loads((folder / "final.json").read_text())["accuracies"] == confirmed.facts()["accuracies"]
    assert "stage hits: 38 % (3 there already, 5 made in this run)" in lines[0]
    assert lines[1].startswith(f"written to {folder}: final.json, results.parquet, best.yaml,")
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [row["arm"] for row in rows] == ["search"] * 5 + ["condensed"] * 2 + ["random_real"] * 2 + [
        "t0"
    ] * 2
    assert [row["state"] for row in rows[:5]] == ["complete"] * 4 + ["fail"]
    assert [row["seed"] for row in rows[5:]] == [pipeline.CONFIRM_SEED, pipeline.CONFIRM_SEED + 1] * 3
    assert {row["split"] for row in rows[:5]} == {"val"} and {row["split"] for row in rows[5:]} == {"test"}
    for row in (row for row in rows if row["state"] == "complete"):
        assert json.loads(row["curve"])[-1] == [1000, row["accuracy"]]
        assert json.loads(row["params"]).keys() == SEARCH.keys()


@pytest.mark.slow
def test_best_yaml_is_the_best_experiment(written: tuple[Path, list[str]], confirmed: Claim) -> None:
    made, experiment = cli.load(str(written[0] / "best.yaml"), [])
    assert experiment == confirmed.experiment(confirmed.best)
    assert (made.name, made.runtime, made.search) == ("hand-best", confirmed.sweep.runtime, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images.png", "curves.png"])
def test_pictures(name: str, written: tuple[Path, list[str]]) -> None:
    with Image.open(io.BytesIO((written[0] / name).read_bytes())) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert all(200 < side < 3000 for side in picture.size)
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10


@pytest.mark.slow
def test_report_command(written: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in written[0].iterdir()}
    assert cli.main(["report", str(written[0])]) == 0
    out, err = capsys.readouterr()
    header, *leaders = out.splitlines()[:5]
    assert header.split() == ["trial", "val", "knobs"] and not err
    shares = [float(line.split()[1].rstrip("%")) for line in leaders]
    assert len(shares) == 4 and shares == sorted(shares, reverse=True)
    assert "evaluate.lr = " in leaders[0] and "confirmed on test" in out and "stage hits" not in out
    assert {path.name for path in written[0].iterdir()} == before


@pytest.mark.slow
def test_report_before_the_confirmation(
    searched: tuple[Store, Sweep], written: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the search found; what the same sweep will do is said."""
    store, made = searched
    more = replace(made, name="later", confirm=Confirm(seeds=3))
    facts = {"sweep": config.dump(more), "base": config.dump(BASE), "store": store.path()}
    folder = Path(store.folder("sweeps/later"))
    store.put("sweeps/later/sweep.json", json.dumps(facts).encode())
    store.put("sweeps/later/study.journal", (written[0] / "study.journal").read_bytes())
    assert cli.main(["report", str(folder)]) == 0
    assert "the confirmation is not finished" in capsys.readouterr().out
    there = {path.name for path in folder.iterdir()}
    assert there == {"study.journal", "sweep.json", "report.html", "images.png", "curves.png", "report"}
    html = (folder / "report.html").read_text()
    assert "Not finished: 5 of 5 trials ended, and the confirmation is to come." in html
    assert "nothing is confirmed on test" in html and UNSHOWN not in html


def test_a_sweep_of_failures_is_a_failure(
    searched: tuple[Store, Sweep], capsys: pytest.CaptureFixture[str]
) -> None:
    store, made = searched
    facts = {
        "sweep": config.dump(replace(made, name="none")),
        "base": config.dump(BASE),
        "store": store.path(),
    }
    store.put("sweeps/none/sweep.json", json.dumps(facts).encode())
    folder = Path(store.path("sweeps/none"))
    space.open_study(folder).ask()
    assert cli.main(["report", str(folder)]) == 1
    assert capsys.readouterr().err == (
        "failed: no trial of sweep none came to its end; the lines above say why\n"
    )


# --- report.html --------------------------------------------------------------------------------------------

UNSHOWN = "This cannot be shown"


class Page(HTMLParser):
    """What a page asks a browser for, its pictures, its tables, and that its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags, self.links = set[str](), list[str]()
        self.pictures, self.rows = list[bytes](), list[list[str]]()
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = {name: value or "" for name, value in attrs}
        self.links += [given[name] for name in ("href", "src") if name in given]
        if tag == "img":
            self.pictures.append(base64.b64decode(given["src"].removeprefix("data:image/png;base64,")))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.mark.slow
def test_the_page_is_one_file_that_asks_for_nothing(written: tuple[Path, list[str]]) -> None:
    text = (written[0] / "report.html").read_text()
    found = Page(text)
    assert not found.tags & {"script", "link", "iframe", "object"} and "@import" not in text
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in found.links)
    assert "url(" not in text and UNSHOWN not in text
    assert {link for link in found.links if link[0] == "#"} == {
        f"#{name}" for name in re.findall(r'<section id="([^"]+)"', text)
    }


@pytest.mark.slow
def test_the_pictures_and_tables_of_the_page_are_files_too(written: tuple[Path, list[str]]) -> None:
    folder, lines = written
    found = Page((folder / "report.html").read_text())
    files = {path.read_bytes() for path in folder.glob("**/*.png")}
    assert files == set(found.pictures) and len(files) == len(found.pictures) > 10
    tables = {path.stem for path in (folder / "report").glob("*.parquet")}
    always = {"claim", "leaderboard", "per_class", "most_confused", "pareto", "stages", "environment"}
    assert always <= tables <= always | {"importances", "rungs"}  # those need trials that differ
    assert all(name in lines[1] for name in ("report.html", "report/", "images.png", "curves.png"))


@pytest.mark.slow
def test_the_claim_of_the_page(written: tuple[Path, list[str]], confirmed: Claim) -> None:
    text, facts = (written[0] / "report.html").read_text(), confirmed.facts()
    ours, paired = interval(facts["accuracies"]["condensed"]), interval(facts["differences"]["random_real"])
    assert f"{100 * ours.mean:.2f} &plusmn; {100 * ours.half:.2f} % on test" in text
    rows = {row[0]: row for row in Page(text).rows}
    row = rows["random real images, same labels and recipe"]
    assert row[2:] == ["2", f"{100 * paired.mean:.2f} \xb1 {100 * paired.half:.2f}"]
    whole = facts["test"]["student"]["vgg5_w16"]
    assert rows["all images: student vgg5_w16"][1:] == [f"{100 * whole:.2f}", "1", ""]
    for words in (
        "Protocol own: ",
        "(1000, 1001)",
        "student vgg5_w16, 2 epochs",
        "digits at 8 px, 2 images a class",
        "judged on test",
    ):
        assert words in text
    table = pq.read_table(written[0] / "report/claim.parquet").to_pylist()
    assert table[0]["+- accuracy, %"] == pytest.approx(100 * ours.half)


def test_confusion_is_that_of_the_logits(confirmed: Claim) -> None:
    """By a loop over the test images, and against the accuracy that the evaluation told."""
    store, experiment = confirmed.store, confirmed.arms()["condensed"][0]
    tasks = {task.stage: task for task in pipeline.tasks(experiment)}
    said = store.artifact("evaluate", tasks["evaluate"].key).read("student")[0]["logits"].argmax(1)
    labels = store.artifact("ingest", tasks["ingest"].key).read("all")[0]["test_labels"]
    wanted = np.zeros((10, 10), int)
    for true, guess in zip(labels.tolist(), said.tolist(), strict=True):
        wanted[true, guess] += 1
    found = judged.Judged(store).confusion(experiment)
    assert (found == wanted).all() and found.sum() == len(labels)
    told = pipeline.facts(tasks["evaluate"], store)["accuracy"]
    assert np.trace(found) / found.sum() == pytest.approx(told, abs=1.5 / len(labels))  # logits are halves


def test_classes_that_are_mixed_up() -> None:
    names, counts = ("cat", "dog", "emu"), np.array([[6, 3, 1], [0, 0, 0], [0, 4, 1]])
    assert judged.confused(counts, names) == [
        {"class": "emu", "taken for": "dog", "of its images, %": 80.0},
        {"class": "cat", "taken for": "dog", "of its images, %": 30.0},
        {"class": "cat", "taken for": "emu", "of its images, %": 10.0},
    ]


@pytest.mark.slow
def test_uses_and_hits_of_stages(written: tuple[Path, list[str]]) -> None:
    """Four trials that ended well, one that failed, six students; nothing was there before."""
    rows = {row["stage"]: row for row in pq.read_table(written[0] / "report/stages.parquet").to_pylist()}
    evaluate = rows["evaluate"]
    assert (evaluate["artifacts"], evaluate["uses"]) == (2 + 6, 4 + 6)
    assert rows["ingest"]["artifacts"] == 1 and rows["ingest"]["uses"] == 4 + 1 + 6 + 1
    assert evaluate["hits, %"] == pytest.approx(100 * 2 / 10)
    assert all(row["made before this sweep"] == 0 and row["seconds"] > 0 for row in rows.values())
    (machine,) = pq.read_table(written[0] / "report/environment.parquet").to_pylist()
    assert (machine["machine"], machine["device"]) == (platform.node(), "cpu")
    assert (machine["python"], machine["numpy"]) == (platform.python_version(), np.__version__)


def test_short_names_tell_knobs_apart() -> None:
    names = trials.short_names(["a.weight", "b.c.weight", "b.c.lr", "c.weight"])
    assert names == {
        "a.weight": "a.weight",
        "b.c.weight": "b.c.weight",
        "b.c.lr": "lr",
        "c.weight": "c.weight",
    }


STATES = optuna.trial.TrialState


def asked(state: STATES, params: dict[str, Any], value: float | None = None, **more: Any) -> FrozenTrial:
    found = {path: space.distribution(path, SEARCH[path]) for path in params}
    return create_trial(state=state, params=params, distributions=found, value=value, **more)


def claim_of(store: Store, *told: FrozenTrial) -> Claim:
    """A search of these trials, without confirmation."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(told)
    return Claim(BASE, replace(SWEEP, confirm=Confirm(seeds=0)), store, study)


@pytest.mark.slow
def test_a_page_of_odd_trials(confirmed: Claim) -> None:
    """Some end well, one without the knob that waits; others failed, were stopped or lost, or run."""
    only, seen = {"evaluate.lr": 0.05}, {100: 0.1, 300: 0.2}
    fair = {"evaluate.lr": 0.02, "recover.flip": False}
    claim = claim_of(
        confirmed.store,
        asked(STATES.FAIL, {}, system_attrs={"edc:lost": True}),
        asked(STATES.FAIL, only),
        asked(STATES.PRUNED, only, 0.2, intermediate_values=seen),
        asked(STATES.COMPLETE, ASKED[1], 0.3, intermediate_values=seen),
        asked(STATES.COMPLETE, ASKED[0], 0.9, intermediate_values={100: 0.4, 300: 0.5}),
        asked(STATES.COMPLETE, only, 0.8, intermediate_values={100: 0.3, 300: 0.4}),
        asked(STATES.COMPLETE, fair, 0.7, intermediate_values={100: 0.2, 300: 0.3}),
        asked(STATES.COMPLETE, ASKED[1], 0.4, intermediate_values={100: 0.3, 300: 0.3}),
        asked(STATES.RUNNING, only, intermediate_values={100: 0.1}),
        asked(STATES.WAITING, {}),
    )
    made = {each.title: each for each in page.sections(claim, claim.facts(), "a note")}
    assert list(made) == list(page.SECTIONS) and made["Claim"].text[0] == "a note"
    assert not [line for each in made.values() for line in each.text if UNSHOWN in line]
    leaders = made["Leaderboard"].tables["leaderboard"]
    assert [row["trial"] for row in leaders] == [4, 5, 6, 7, 3]
    assert leaders[1]["flip"] is None and leaders[2]["core-seconds"] is None  # nobody made that one
    assert "1 trials were stopped early" in made["Along the training"].text[0]
    assert made["Along the training"].tables["rungs"][1]["rank correlation with the end"] > 0.9
    knobs = made["Which knobs matter"].tables["importances"]
    assert {row["knob"]: row["trials"] for row in knobs} == {"lr": 5, "flip": 4}
    assert {row["knob"]: row["fANOVA"] is None for row in knobs} == {"lr": False, "flip": True}
    assert list(made["Slices"].pictures) == [f"slice {row['knob']}" for row in knobs]
    assert len(made["Interactions"].pictures) == 1 and made["Parallel coordinates"].pictures


@pytest.mark.slow
def test_a_page_of_one_trial(confirmed: Claim) -> None:
    claim = claim_of(confirmed.store, asked(STATES.COMPLETE, ASKED[0], 0.5))
    made = {each.title: each for each in page.sections(claim, claim.facts())}
    assert not [line for each in made.values() for line in each.text if UNSHOWN in line]
    assert "there are 1 complete ones" in made["Which knobs matter"].text[0]
    assert [row["trial"] for row in made["Leaderboard"].tables["leaderboard"]] == [0]
    assert made["Condensed images"].pictures and made["Classes"].pictures and made["History"].pictures


@pytest.mark.slow
def test_what_cannot_be_shown_costs_only_its_section(
    confirmed: Claim, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The logits of the best trial are gone, as after a clean-up by hand."""
    copy = shutil.copytree(confirmed.store.path(), tmp_path / "copy")
    claim = claim_of(Store(str(copy)), *(asked(STATES.COMPLETE, each, 0.5) for each in ASKED[:1]))
    facts = claim.facts()
    for file in copy.glob(f"{pipeline.tasks(claim.experiment(claim.best))[-1]}/student.*"):
        file.unlink()
    made = {each.title: each for each in page.sections(claim, facts)}
    assert UNSHOWN in made["Classes"].text[0] and "evaluate-" in made["Classes"].text[0]
    assert [title for title in made if UNSHOWN in " ".join(made[title].text)] == ["Classes"]
    assert "the report has no section 'Classes'" in caplog.text


def test_what_was_found_about_the_winner_and_only_that_is_shown(confirmed: Claim) -> None:
    """With what must be known of it; read on test, the winner was condensed again."""
    store, best = confirmed.store, confirmed.experiment(confirmed.best)
    winner, again = (pipeline.tasks(e, "recover")[-1].key for e in (best, pipeline.refitted(best)))
    assert winner != again
    looks = [{"notes": ["each alone"], "seen": ["not resolved: this"]}]
    final = {
        "recover": again, "split": "test", "judged": 7, "seeds": [3, 4], "notes": ["made again"],
        "paper": "curves only",
    }  # fmt: skip
    left = {
        "diagnoses/ours-1.json": json.dumps({"recover": winner, "notes": ["all"], "looks": looks}).encode(),
        "diagnoses/ours-1.png": b"a picture",
        "applications/another-2.json": b'{"recover": "0"}',
        "applications/another-2.png": b"of another set",
        "applications/final-3.json": json.dumps(final).encode(),
        "applications/final-3.png": b"on test",
    }
    for name, data in left.items():
        store.put(name, data)
    found = trials.Trials(confirmed, confirmed.facts())
    made = figures.figures(found)
    assert made.pictures == {"ours-1": b"a picture", "final-3": b"on test"}
    assert made.captions == {
        "ours-1": [
            f"ours: numbers in {store.path('diagnoses/ours-1.parquet')}",
            "note: all", "note: each alone", "not resolved: this",
        ],
        "final-3": [
            f"final: numbers in {store.path('applications/final-3.parquet')}",
            "accuracy on test (7 images), seeds 3, 4", "note: made again", "the paper: curves only",
        ],
    }  # fmt: skip
    store.drop(*left)
    assert figures.figures(found).text == (figures.NONE,)


@pytest.mark.slow
def test_results_that_are_gone_are_told(
    written: tuple[Path, list[str]], confirmed: Claim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a store that another version wrote, whose artifacts have other names."""
    copy = shutil.copytree(confirmed.store.path(), tmp_path / "copy")
    shutil.rmtree(copy / str(pipeline.tasks(confirmed.experiment(confirmed.best))[-1]))
    for more in ([], [str(written[0])]):
        assert cli.main(["report", str(copy / "sweeps/hand"), *more]) == 1
        error = capsys.readouterr().err
        assert error.startswith("failed: of the best trial of sweep hand there is no evaluate in ")
        assert error.count("\n") == 1 and "makes it again" in error


@pytest.mark.slow
def test_fronts_are_those_of_a_comparison_of_all(confirmed: Claim) -> None:
    found = trials.Trials(confirmed, confirmed.facts())
    costs = found.costs
    assert [row["trial"] for row in costs] == [trial.number for trial in confirmed.ranked]
    one = confirmed.experiment(confirmed.best)
    spent = [pipeline.core_seconds(task, confirmed.store) for task in pipeline.tasks(one)]
    assert costs[0]["core-seconds"] == pytest.approx(sum(spent)) and costs[0]["image bytes"] == 20 * 3 * 64
    assert costs[0][trials.ACCURACY] == pytest.approx(100 * (confirmed.best.value or 0))

    def worth(row: dict[str, Any]) -> tuple[float, float]:
        return -row["core-seconds"], row[trials.ACCURACY]

    def beaten(row: dict[str, Any]) -> bool:
        mine = worth(row)
        return any(
            worth(b) != mine and all(x >= y for x, y in zip(worth(b), mine, strict=True)) for b in costs
        )

    rows = search.pareto(found).tables["pareto"]
    shown = {row["trial"] for row in rows if row["cost"] == "core-seconds"}
    assert shown == {row["trial"] for row in costs if not beaten(row)} and shown


@pytest.mark.slow
def test_several_objectives_have_the_studys_own_front(searched: tuple[Store, Sweep]) -> None:
    """Values made up by hand; trial 1 is on the front by the third objective only."""
    store, made = searched
    several = replace(made, objectives=("accuracy", "label_bytes", "core_seconds"), confirm=Confirm(seeds=0))
    study, old = optuna.create_study(directions=["maximize", "minimize", "minimize"]), read_claim(store, made)
    values = [(0.5, 10.0, 9.0), (0.4, 10.0, 1.0), (0.4, 20.0, 9.0), (0.6, 30.0, 9.0)]
    for trial, each in zip(old.study.trials[:4], values, strict=True):
        again = create_trial(values=each, params=trial.params, distributions=trial.distributions)
        study.add_trial(again)
    claim = Claim(BASE, several, store, study)
    facts = claim.facts()
    section = search.pareto(trials.Trials(claim, facts))
    assert set(section.pictures) == {"pareto label_bytes", "pareto core_seconds"}
    for i, cost in enumerate(several.objectives[1:], 1):
        rows = [row for row in section.tables["pareto"] if row["cost"] == cost]
        front = {point["trial"]: point["values"] for point in facts["front"]}
        assert {row["trial"]: [row["amount"], row[trials.ACCURACY]] for row in rows} == {
            number: [each[i], 100 * each[0]] for number, each in front.items()
        }
        assert set(front) == {0, 1, 3}
    table = pq.read_table(io.BytesIO(files.results(claim))).to_pylist()
    assert [(row["accuracy"], row["label_bytes"], row["core_seconds"]) for row in table] == values


def test_the_view_of_a_study_of_several_objectives() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    both = {"evaluate.lr": 0.05, "recover.flip": True}
    distributions = {path: space.distribution(path, SEARCH[path]) for path in both}
    study.add_trial(create_trial(values=[0.75, 39200.0], params=both, distributions=distributions))
    study.add_trial(create_trial(state=STATES.FAIL))
    seen = trials.view(study, "both").trials
    assert [trial.state for trial in seen] == [STATES.COMPLETE, STATES.FAIL]
    assert seen[0].value == 75 and seen[0].params == {"lr": 0.05, "flip": "True"}


def test_what_comes_from_outside_is_escaped() -> None:
    rows = [
        {"class": "<b>dog</b>", "a, %": 12.345, "+- a, %": 0.5, "n": 12345},
        {"class": "cat & co", "a, %": 1.0},
    ]
    text = html.page("<script>", [Section("A & B", ["<i>"], {"one": rows})])
    found = Page(text)
    assert not found.tags & {"script", "b", "i"}
    assert found.rows == [
        ["class", "a, %", "n"],
        ["<b>dog</b>", "12.35 \xb1 0.50", "12,345"],
        ["cat & co", "1.00", ""],
    ]


# --- two sweeps ---------------------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["report", *argv]) == 0
    return capsys.readouterr().out


def saved(claim: Claim, made: Sweep, params: Sequence[dict[str, Any]]) -> str:
    """The folder of another sweep in the same store, with trials whose results are there."""
    facts = {"sweep": config.dump(made), "base": config.dump(BASE), "store": claim.store.path()}
    claim.store.put(f"sweeps/{made.name}/sweep.json", json.dumps(facts).encode())
    folder = Path(claim.store.folder(f"sweeps/{made.name}"))
    values = {json.dumps(trial.params): trial.value for trial in claim.ranked}
    study = space.open_study(folder)
    study.add_trials([asked(STATES.COMPLETE, each, values[json.dumps(each)]) for each in params])
    return str(folder)


@pytest.mark.slow
def test_two_sweeps_are_paired_by_seed(
    written: tuple[Path, list[str]], confirmed: Claim, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one has the same winner and a seed less: one seed is common, without a difference."""
    other = replace(confirmed.sweep, name="rival", confirm=Confirm(seeds=1))
    folder = saved(confirmed, other, [confirmed.best.params])
    out = shown(capsys, str(written[0]), folder)
    assert "paired, hand - rival:" in out and "not paired" not in out
    for arm in ("condensed", "random_real", "t0"):
        assert re.search(rf"^ +{arm} +0.00 \(n = 1\)$", out, re.M)
    text = (written[0] / "compare_rival.html").read_text()
    found = Page(text)
    values = confirmed.facts()["accuracies"]["condensed"]
    row = next(row for row in found.rows if row[0] == "condensed, confirmed")
    assert row[1:] == [
        f"{100 * interval(values).mean:.2f} \xb1 {100 * interval(values).half:.2f}",
        f"{100 * values[0]:.2f}",
        "0.00",
    ]
    assert len(found.pictures) == 2 and not found.tags & {"script", "link"}


@pytest.mark.slow
def test_two_sweeps_that_cannot_be_paired(
    written: tuple[Path, list[str]], confirmed: Claim, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(confirmed.sweep, name="young", confirm=Confirm(seeds=0))
    worse = confirmed.ranked[-1].params
    out = shown(capsys, saved(confirmed, other, [worse]), str(written[0]))
    assert "not paired: young has no confirmation" in out
    best = confirmed.best.params
    differing = {path for path in best if best[path] != worse[path]}
    assert differing == set(re.findall(r"^    \* (\S+):", out, re.M))
    text = Path(confirmed.store.path("sweeps/young/compare_hand.html")).read_text()
    assert "No paired difference: young has no confirmation." in text
