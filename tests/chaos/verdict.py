"""What a disturbed sweep has to have in common with an undisturbed one."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from optuna.trial import TrialState

from edc_ray import space
from edc_ray.artifacts import Artifact, Store, every_artifact
from edc_ray.pipeline import COSTS
from tests.chaos.watch import UNIT, Unit, Watch

TRIALS = 4
NAME = "tiny"
INTERVAL = 1.0  # checkpoint_seconds of the sweep
SLACK = 1.5  # seconds: the step that was running, the write of the checkpoint, and this side's looks
Bits = dict[Unit, str]


def bits(store: Path) -> Bits:
    """Digest of what each committed unit holds, without how long and where it was made."""
    found: Bits = {}
    for artifact in every_artifact(Store(str(store))):
        for unit in (artifact.manifest() or {"units": ()})["units"]:
            found[artifact.folder, unit] = _content(artifact, unit)
    return found


def _content(artifact: Artifact, unit: str) -> str:
    digest = hashlib.sha256()
    if artifact.stage == "relabel":
        table, meta = artifact.read_table(unit)
        digest.update(repr(table.to_pydict()).encode())
    else:
        tensors, meta = artifact.read(unit)
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    kept = {name: value for name, value in meta.items() if name not in (*COSTS, "host")}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()


def seconds(store: Path) -> dict[Unit, float]:
    """Of work in each committed unit."""
    return {
        (artifact.folder, unit): facts["meta"]["seconds"]
        for artifact in every_artifact(Store(str(store)))
        for unit, facts in (artifact.manifest() or {"units": {}})["units"].items()
    }


def curves(store: Path) -> dict[str, dict[int, float]]:
    """Knobs -> accuracies, of the trials that came to their end."""
    complete = space.read_study(store / "sweeps" / NAME).get_trials(states=(TrialState.COMPLETE,))
    return {str(sorted(trial.params.items())): trial.intermediate_values for trial in complete}


def faults(store: Path, reference: Path, watch: Watch) -> list[str]:
    """What is wrong with a sweep that has ended well; nothing, if no injection did any harm."""
    found = [*_of_study(store, reference), *_of_files(store, watch), *_of_bits(store, reference)]
    return found + watch.restarted(seconds(store), INTERVAL)


def _of_study(store: Path, reference: Path) -> list[str]:
    study, found = space.read_study(store / "sweeps" / NAME), []
    states = Counter(trial.state.name for trial in space.finished(study))
    if states != {"COMPLETE": TRIALS}:
        found.append(f"finished trials: {dict(states)}")
    left = study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    found += [f"trial {trial.number} is {trial.state.name} at the end" for trial in left]
    ours, theirs = curves(store), curves(reference)
    found += [f"no curve of {knobs}" for knobs in theirs.keys() - ours.keys()]
    found += [
        f"another curve of {knobs}" for knobs in theirs if ours.get(knobs, theirs[knobs]) != theirs[knobs]
    ]
    return found


def _of_files(store: Path, watch: Watch) -> list[str]:
    """A unit's file is named by the hash of its bytes, seconds included: one made twice is there twice."""
    watch.look()
    files = [path for path in store.glob("*-*/*.*") if UNIT.fullmatch(path.name)]
    units = Counter(f"{path.parent.name}/{path.name.split('.')[0]}" for path in files)
    found = [f"{unit} was made {count} times" for unit, count in units.items() if count > 1]
    return found + [f"{path} was replaced" for path in sorted(watch.replaced)]


def _of_bits(store: Path, reference: Path) -> list[str]:
    ours, theirs = bits(store), bits(reference)
    found = [f"{'/'.join(unit)} is missing" for unit in theirs.keys() - ours.keys()]
    found += [f"{'/'.join(unit)} is too many" for unit in ours.keys() - theirs.keys()]
    found += [
        f"{'/'.join(unit)} has other bits" for unit in ours if ours[unit] != theirs.get(unit, ours[unit])
    ]
    return sorted(found)
