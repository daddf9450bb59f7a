"""`warm_start`: which configurations of another sweep are tried first."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from edc_ray import config, space, warm
from edc_ray.artifacts import Store
from edc_ray.config import ConfigError, Experiment, Knob, Sweep, WarmStart
from edc_ray.journal import folder_of

KIND, RHO = "recover.flatness.kind", "recover.flatness.rho"
THEIRS = {
    "evaluate.lr": Knob(low=1e-3, high=1e-1, log=True),
    "recover.matching.families": Knob(choices=(["bn"], ["bn", "channel"])),
    KIND: Knob(choices=("none", "sam")),
    RHO: Knob(low=0.01, high=1, when={KIND: "sam"}),
}


def trial(accuracy: float, state: str = "COMPLETE", **params: Any) -> FrozenTrial:
    """With a value for each of their knobs."""
    chosen = {"evaluate.lr": 0.01, "recover.matching.families": '["bn"]', KIND: "none"}
    chosen |= {path.replace("__", "."): value for path, value in params.items()}
    distributions = {path: space.distribution(path, THEIRS[path]) for path in chosen}
    return create_trial(
        params=chosen, distributions=distributions, state=TrialState[state],
        value=accuracy if state == "COMPLETE" else None,
    )  # fmt: skip


@pytest.fixture
def there(tmp_path: Path) -> str:
    """The folder of a sweep with four complete trials and a failed one."""
    store = Store(str(tmp_path / "other"))
    sweep, base = Sweep(name="first", search=THEIRS), Experiment()
    facts = {"identity": {}, "sweep": config.dump(sweep), "base": config.dump(base)}
    store.put("sweeps/first/sweep.json", json.dumps(facts).encode())
    space.open_study(folder_of(store, "sweeps/first")).add_trials([
        trial(0.5),
        trial(0.8, evaluate__lr=0.05),
        trial(0.7, recover__flatness__kind="sam", recover__flatness__rho=0.5),
        trial(0.6, recover__matching__families='["bn", "channel"]'),
        trial(0.0, "FAIL"),
    ])  # fmt: skip
    return store.path("sweeps/first")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The folder of a sweep that begins."""
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def started(sweep: Sweep, folder: Path) -> tuple[list[Any], list[str]]:
    """What waits in the study, and what is said."""
    said: list[str] = []
    study = space.open_study(folder)
    warm.start(sweep, Experiment(), study, said.append)
    waiting = [t for t in study.trials if t.state == TrialState.WAITING]
    return [t.system_attrs["fixed_params"] for t in waiting], said


def test_the_best_legal_ones_come_first_and_no_value_is_copied(there: str, mine: Path) -> None:
    search = {"evaluate.lr": Knob(low=1e-3, high=0.02, log=True), KIND: THEIRS[KIND], RHO: THEIRS[RHO]}
    sweep = Sweep(search=search, warm_start=WarmStart(folder=there, best=3))
    waiting, (said,) = started(sweep, mine)
    assert waiting == [{"evaluate.lr": 0.01, KIND: "sam", RHO: 0.5}, {"evaluate.lr": 0.01, KIND: "none"}]
    assert said.startswith(f"warm start: 2 configurations of {there} are tried first; 1 more are not")
    study = space.open_study(mine)
    assert not space.finished(study)
    asked = study.ask()
    space.Space(search)(asked)
    assert asked.params == waiting[0]
    study.tell(asked, 0.9)
    assert started(sweep, mine) == (waiting[1:], [])  # once a study


def test_a_knob_that_they_did_not_search_has_their_value(there: str, mine: Path) -> None:
    search = {
        "recover.matching.families": Knob(choices=(["bn"], ["channel"])),
        "evaluate.epochs": Knob(low=100, high=400),
        "evaluate.zeta": Knob(choices=(1.0, 2)),
    }
    sweep = Sweep(search=search, warm_start=WarmStart(folder=there, best=1))
    waiting, _ = started(sweep, mine)
    base = Experiment().evaluate
    assert waiting == [
        {"recover.matching.families": '["bn"]', "evaluate.epochs": base.epochs, "evaluate.zeta": base.zeta}
    ]
    study = space.open_study(mine)
    asked = study.ask()
    space.Space(search)(asked)
    assert space.apply(Experiment(), asked.params, search).recover.matching.families == ("bn",)


def test_a_folder_that_is_no_help_is_refused(there: str, tmp_path: Path) -> None:
    for folder, why in ((tmp_path / "nothing", "is not of a sweep"), (tmp_path, "is not of a sweep")):
        with pytest.raises(ConfigError, match=why) as caught:
            warm.check(Sweep(warm_start=WarmStart(folder=str(folder))))
        assert caught.value.path == "warm_start.folder"
    warm.check(Sweep(warm_start=WarmStart(folder=there)))
    warm.check(Sweep())
    with pytest.raises(ConfigError, match=r"warm_start.folder = .* must be null with sampler grid"):
        Sweep(sampler="grid", warm_start=WarmStart(folder=there))
    with pytest.raises(ConfigError, match="credentials"):
        config.load(Sweep, {"warm_start": {"folder": "s3://KEY:SECRET@bucket/sweeps/first"}})


def test_their_study_is_only_read(there: str, mine: Path) -> None:
    before = {path: path.read_bytes() for path in Path(there).rglob("*") if path.is_file()}
    started(Sweep(search=THEIRS, warm_start=WarmStart(folder=there)), mine)
    assert {path: path.read_bytes() for path in Path(there).rglob("*") if path.is_file()} == before
    assert isinstance(space.read_study(Path(there)), optuna.Study)
