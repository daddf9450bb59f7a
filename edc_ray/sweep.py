"""`python -m edc_ray.sweep FILE`: search the design space, then confirm the winner on test, once.

The Optuna study in the sweep's folder is the only truth: the same command again goes on where it stood, and
with a larger budget it goes further (architecture.md 6).
"""

import argparse
import functools
import itertools
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from edc_ray import config, ladder, live, pipeline
from edc_ray.artifacts import Damaged, Missing, Store, move_folder
from edc_ray.config import ConfigError, Experiment, Sweep
from edc_ray.distributed.ledger import UnitFailed, told
from edc_ray.session import Stopped, cluster, say, stoppable, watched
from edc_ray.specs import anchored, flatten, further, is_ladder, load_file, read_folder, under

if TYPE_CHECKING:  # Optuna, which only a search needs
    from edc_ray.journal import Folder
    from edc_ray.spend import Limits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked sweep: nothing has run and nothing is written yet."""

    sweep: Sweep
    base: Experiment
    store: Store
    folder: "Folder"


def prepare(file: str, changes: Sequence[str], fresh: bool = False) -> Prepared:
    """Everything that can be refused before any compute; writes nothing.

    fresh: the folder may be of another sweep.

    Raises:
        ConfigError: names the path, the value and what is legal.
    """
    from edc_ray.journal import folder_of

    sweep, base = load_file(file, changes)
    check(sweep, base)
    store = Store(sweep.runtime.store)
    store.check()
    if not fresh:
        _check_same(store, sweep, base)
    return Prepared(sweep, anchored(base), store, folder_of(store, f"sweeps/{sweep.name}"))


def check(sweep: Sweep, base: Experiment) -> None:
    """Refuse a sweep that cannot run; what only the dataset can tell comes last.

    Raises:
        ConfigError: names the path in the file, the value and what is legal.
    """
    from edc_ray import reuse, space, warm

    live.check(sweep)
    warm.check(sweep)
    space.check(sweep.search, base)
    reuse.check(sweep, base)
    if sweep.sampler == "grid":
        space.check_grid(sweep)
    if base.split.val == 0:
        raise ConfigError("experiment.split.val", 0, "must be > 0: a search selects on val, never on test")
    if max(base.init.seed, *base.evaluate.seeds) >= pipeline.CONFIRM_SEED:
        path = "init.seed" if base.init.seed >= pipeline.CONFIRM_SEED else "evaluate.seeds"
        legal = f"must be < {pipeline.CONFIRM_SEED}: the confirmation's seeds begin there and have to be new"
        raise ConfigError(f"experiment.{path}", attrgetter(path)(base), legal)
    if sweep.confirm.seeds == 1:
        raise ConfigError("confirm.seeds", 1, "must be 0 or at least 2: one run has no interval")
    if sweep.confirm.seeds == 0 and sweep.confirm.best > 1:
        raise ConfigError("confirm.best", sweep.confirm.best, "must be 1 where confirm.seeds = 0")
    if sweep.scheduler.kind == "asha":
        first_rung(sweep, base)
    with under("experiment"):
        pipeline.check_names(base)
    space.check_values(sweep.search, base, pipeline.check_names)
    with under("experiment"):
        pipeline.check(base)
    if sweep.confirm.seeds and not pipeline.looked(base.dataset)[3]:
        legal = "must be 0: the dataset has no test images, on which the winner is confirmed"
        raise ConfigError("confirm.seeds", sweep.confirm.seeds, legal)
    space.check_values(sweep.search, base, pipeline.check)


def identity(sweep: Sweep, base: Experiment) -> dict[str, Any]:
    """What makes two commands the same sweep: the data, the experiment and the space; not the budget."""
    search = {path: config.dump(knob) for path, knob in sweep.search.items()}
    experiment = config.hashed(base)
    data = pipeline.tasks(base, "ingest")[0].key
    several = {"objectives": list(sweep.objectives)} if len(sweep.objectives) > 1 else {}
    return {"dataset": data, "experiment": experiment, "search": search} | several


def _check_same(store: Store, sweep: Sweep, base: Experiment) -> None:
    found = store.get(f"sweeps/{sweep.name}/sweep.json")
    if found is None:
        return
    try:
        there = json.loads(found)["identity"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError("name", sweep.name, "the sweep.json in its folder is not of a sweep") from None
    ours = json.loads(json.dumps(identity(sweep, base)))
    odd = [part for part in {**ours, **there} if ours.get(part) != there.get(part)]
    if odd:
        new, old = dict(flatten(ours)), dict(flatten(there))
        differs = [path for path in {**new, **old} if new.get(path) != old.get(path)] or odd
        raise ConfigError(
            "name", sweep.name, f"its folder is of another sweep (differs in {', '.join(differs[:4])})"
        )


def _limits(ready: Prepared) -> "Limits":
    from edc_ray.spend import Limits, Spend

    return Limits(ready.sweep, Spend(ready.sweep, ready.base, ready.store))


def first_rung(sweep: Sweep, base: Experiment) -> float:
    """Share of the training before ASHA may stop anything: never under five EMA horizons.

    Raises:
        ConfigError: the horizon or the grace period is so long that no rung is left.
    """
    from edc_ray import space

    field, grace = "evaluate.ema_horizon", sweep.scheduler.grace
    knob = sweep.search.get(field)
    horizons = {f"search.{field}.{name}": float(value) for name, value in space.ends(knob)} if knob else {}
    if knob is None or knob.when:
        horizons[f"experiment.{field}"] = base.evaluate.ema_horizon
    path, longest = max(horizons.items(), key=lambda item: item[1])
    if 5 * longest >= 1:
        raise ConfigError(path, longest, "must be < 0.2 with ASHA, whose first rung is at five EMA horizons")
    rung = max(grace, 5 * longest)
    if not 0 < rung < 1:
        raise ConfigError("scheduler.grace", grace, "must be in (0, 1): there is no rung")
    return rung


def rungs(sweep: Sweep, base: Experiment) -> list[float]:
    """The shares of the training where a trial may be stopped, and the end."""
    found, at = [], first_rung(sweep, base) if sweep.scheduler.kind == "asha" else 1.0
    while at < 1:
        found.append(at)
        at *= sweep.scheduler.reduction
    return [*found, 1.0]


# --- Ray ----------------------------------------------------------------------------------------------------


def search(ready: Prepared, broker: Any, left: int) -> None:
    """Run `left` more trials. A trial that fails is told so and does not end the sweep."""
    from ray import tune

    from edc_ray import reuse, space, tuning
    from edc_ray.distributed.trial import trial

    sweep, base = ready.sweep, ready.base
    where = ready.store.folder(f"sweeps/{sweep.name}/tune")
    study = space.read_study(ready.folder)
    done = space.finished(study)
    outer = reuse.outer(sweep.search, base)
    tuning.keep_credentials()
    thin = functools.partial(trial, base=base, search=sweep.search, broker=broker, stops=rungs(sweep, base))
    thin.__mixins__ = (tuning.Named,)  # type: ignore[attr-defined]  # Tune's way into the trainable it makes
    limits = _limits(ready)
    costs = functools.partial(_costs, sweep, base, ready.store)
    searcher = tuning.make_search(sweep, ready.folder, study, outer, limits, costs)
    tuner = tune.Tuner(
        tune.with_resources(thin, {"cpu": 0, "node:__internal_head__": 0.001}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=tuning.make_scheduler(sweep.scheduler, rungs(sweep, base), done),
            num_samples=left,
            max_concurrent_trials=sweep.concurrent,
            trial_name_creator=tuning.Names(searcher),
        ),
        run_config=tune.RunConfig(
            name=f"from-{len(study.trials):05d}",
            storage_path=where,
            failure_config=tune.FailureConfig(max_failures=3),  # lost processes of one trial
            callbacks=[tuning.TrialLines(len(done), sweep.budget.trials, say), *live.callbacks(sweep, where)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except tune.TuneError as error:
        raise tuning.own_error(error) from None
    study = space.read_study(ready.folder)
    short = sweep.budget.trials - len(space.finished(study))
    if ended := limits.ended(study):
        say(f"budget.{ended} is used up: {limits.said(study)}")
    elif short > 0:
        raise RuntimeError(
            f"{short} trials were lost through no fault of theirs; the same command tries them again"
        )


def _costs(sweep: Sweep, base: Experiment, store: Store, chosen: Mapping[str, Any]) -> list[float]:
    """The objectives of a finished trial but accuracy."""
    from edc_ray import space, spend

    cost = spend.of_trial(space.apply(base, chosen, sweep.search), store)
    return [getattr(cost, name) for name in sweep.objectives[1:]]


# --- the whole ----------------------------------------------------------------------------------------------


def run(ready: Prepared) -> dict[str, Any]:
    """Search what the budget leaves, confirm, write the results; returns the final facts.

    Raises:
        RuntimeError: no trial came to its end. UnitFailed: a unit of the confirmation failed.
    """
    from edc_ray import report, space, warm
    from edc_ray.claim import Claim

    sweep, base, store = ready.sweep, ready.base, ready.store
    facts = {"identity": identity(sweep, base), "sweep": config.dump(sweep), "base": config.dump(base)}
    try:
        with store.alone(f"sweeps/{sweep.name}/driver.lock"):
            store.mend_lines(f"sweeps/{sweep.name}/study.journal")
            store.put(f"sweeps/{sweep.name}/sweep.json", json.dumps(facts, indent=1).encode())
            study = space.open_study(ready.folder, sweep.objectives)
            warm.start(sweep, base, study, say)
            left = max(0, sweep.budget.trials - len(space.finished(study)))
            say(f"sweep {sweep.name}: {left} of {sweep.budget.trials} trials to run; folder {ready.folder}")
            hits: tuple[int, int] | None = None
            if left > 0 or Claim(base, sweep, store, study).missing():
                hits = _compute(ready, left)
            claim = Claim(base, sweep, store, space.read_study(ready.folder))
            claim.sign()
            return report.write(claim, hits or claim.all_hits(), say)
    except BlockingIOError:
        raise ConfigError("name", sweep.name, "another process is running this sweep") from None


def _compute(ready: Prepared, left: int) -> tuple[int, int]:
    """Trials and confirmation on a cluster; returns (artifacts that were there already, artifacts made)."""
    with cluster(ready.sweep.runtime):
        from edc_ray import space
        from edc_ray.claim import Claim
        from edc_ray.distributed.service import start_broker

        leader = next(iter(space.ranked(space.read_study(ready.folder))), None)
        best = space.accuracy(leader) if leader else None
        broker = start_broker(ready.store.path(), ready.sweep.runtime, ready.sweep.name, best)
        with watched(broker, ready.store):
            if left > 0:
                search(ready, broker, left)
            Claim(ready.base, ready.sweep, ready.store, space.read_study(ready.folder)).make(broker, say)
            events = broker.status()["events"]
    return events.get("stage_hit", 0), events.get("stage_built", 0)


def put_aside(ready: Prepared) -> None:
    """Move the sweep's folder, that is its study, aside: the sweep then begins anew. Artifacts stay.

    Raises:
        ConfigError: another process is running the sweep.
    """
    store, old = ready.store, f"sweeps/{ready.sweep.name}"
    if not any(info.is_file for info in store.listed(old, deep=True)):
        return
    new = next(name for i in itertools.count(1) if not store.listed(name := f"{old}-old{i}"))
    try:
        with store.alone(f"{old}/driver.lock"):
            move_folder(store, old, new)
            store.drop(f"{new}/driver.lock")
    except BlockingIOError:
        raise ConfigError("name", ready.sweep.name, "another process is running this sweep") from None
    say(f"a new study: the old one is now {store.path(new)}; artifacts stay, and are hits")


def extend(folder: str, trials: int, changes: Sequence[str]) -> dict[str, Any]:
    """So many more trials for a sweep that was started, by its folder or URI; then it confirms again.

    Raises:
        ConfigError: it is of no sweep, or another budget is at its end.
    """
    from edc_ray import space
    from edc_ray.journal import folder_of

    if trials < 1:
        raise ConfigError("--trials", trials, "must be >= 1")
    sweep, base, store, place = read_folder(folder)
    if str(place) != str(folder_of(store, f"sweeps/{sweep.name}")):
        raise ConfigError("folder", folder, "must be STORE/sweeps/NAME: the folder was moved")
    study = space.read_study(place)
    more = config.override(
        sweep, {"budget.trials": len(space.finished(study)) + trials, "runtime.store": store.root}
    )
    more = further(more, changes)
    check(more, base)
    _check_same(store, more, base)
    ready = Prepared(more, base, store, place)
    if ended := _limits(ready).ended(study):
        raise ConfigError(f"budget.{ended}", getattr(more.budget, ended), "is used up: no trial would start")
    return run(ready)


def main(argv: Sequence[str] | None = None) -> int:
    """0 = done; 1 = the sweep failed; 2 = the input is wrong."""
    parser = argparse.ArgumentParser(prog="python -m edc_ray.sweep", description=__doc__)
    parser.add_argument("file", help="a sweep or a ladder, such as sweeps/quickstart.yaml")
    add_options(parser)
    args = parser.parse_args(argv)
    return guarded(lambda: start(args.file, args.set, args.fresh))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Also of `edc-ray sweep`."""
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change one field")
    parser.add_argument("--fresh", action="store_true", help="begin a new study; the old one is moved aside")


def start(file: str, changes: Sequence[str], fresh: bool = False) -> None:
    """Run a sweep file, or a ladder file."""
    if is_ladder(file):
        if fresh:
            raise ConfigError("--fresh", file, "is a ladder, which has no study")
        ladder.run(ladder.prepare(file, changes))
        return
    ready = prepare(file, changes, fresh)
    if fresh:
        put_aside(ready)
    run(ready)


def guarded(command: Callable[[], object]) -> int:
    """The exit code of a command: 0 = done; 1 = failed; 2 = the input is wrong; 130 and 143 = interrupted by
    Ctrl-C and SIGTERM. One line says why.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        with stoppable():
            command()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        return 143 if isinstance(error, Stopped) else 130
    except (OSError, Damaged, Missing, UnitFailed, FloatingPointError, RuntimeError) as error:
        print(f"failed: {told(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
