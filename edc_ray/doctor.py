"""`edc-ray doctor`: is this machine ready for an experiment or a sweep, and if not, what is to be done.

It computes nothing, and writes nothing but a file into the store, which it removes again.
"""

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from edc_ray import estimate, pipeline, sweep
from edc_ray.artifacts import Store, StoreError, free_bytes, try_writing
from edc_ray.config import LIBRARIES, ConfigError, Experiment, Runtime, Sweep
from edc_ray.rates import Rates, size

SHOWN = ("torch", "ray", "optuna", "pyarrow")  # versions that a person asks for first
SHARED_BYTES = 256 * 2**20  # of /dev/shm: the object store of `session.cluster`
WORKER_BYTES = 2**30  # of a worker on a processor, where none was measured: torch itself takes half of it


@dataclass(frozen=True, slots=True)
class Finding:
    """One line; `text` says what to do where it is a problem."""

    ok: bool
    about: str
    text: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'problem':<8} {self.about:<9} {self.text}"


def examine(settings: Sweep, experiment: Experiment, submitted: bool) -> Iterator[Finding]:
    """All findings, cheap ones first. submitted: it will run on a cluster that is there."""
    runtime = settings.runtime
    yield from versions()
    yield gpus(runtime, submitted)
    store = Store(runtime.store)
    yield memory(runtime, store)
    yield shared_memory()
    yield writable(store)
    found = list(inputs(settings, experiment))
    yield from found
    if all(finding.ok for finding in found):
        yield room(settings, experiment, store)


# --- the machine --------------------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    """Python and the packages against what the installed edc-ray asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        wanted = [Requirement(each) for each in metadata.requires("edc-ray") or ()]
        python = metadata.metadata("edc-ray")["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield Finding(
            False, "versions", "edc-ray is not installed, only its files are here: pip install -e ."
        )
        return
    here, odd = {"python": platform.python_version()}, list[str]()
    if here["python"] not in SpecifierSet(python):
        odd.append(f"Python {here['python']} is not {python}: use another one")
    for each in wanted:
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            try:
                here[each.name] = metadata.version(each.name)
            except metadata.PackageNotFoundError:
                odd.append(f"{each.name} is missing: pip install '{each}'")
                continue
            if not each.specifier.contains(here[each.name], prereleases=True):
                odd.append(f"{each.name} {here[each.name]} is not {each.specifier}: pip install '{each}'")
    yield from (Finding(False, "versions", text) for text in odd)
    if not odd:
        shown = ", ".join(f"{name} {here[name]}" for name in ("python", *SHOWN))
        yield Finding(True, "versions", f"{shown}, and all {len(here) - 1} packages that are needed")


def gpus(runtime: Runtime, submitted: bool) -> Finding:
    """What torch sees, and what the runtime asks for."""
    import torch

    share, count = runtime.gpus_per_worker, torch.cuda.device_count()
    if count == 0:
        if runtime.device == "cuda":
            todo = "install the driver and a CUDA build of torch, or set runtime.device to auto"
            return Finding(False, "gpus", f"torch sees none and runtime.device = cuda: {todo}")
        if share and not submitted:
            todo = "submit it to a cluster that has some, or set it to 0"
            return Finding(False, "gpus", f"none here and runtime.gpus_per_worker = {share:g}: {todo}")
        asked = f"runtime.gpus_per_worker = {share:g} of the cluster's" if share else "none is asked for"
        return Finding(True, "gpus", f"none here; {asked}")
    names = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    room = min(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    told = f"{count} ({', '.join(names)}), {size(room)} each"
    try:
        torch.zeros(1, device="cuda")
    except RuntimeError as error:
        return Finding(False, "gpus", f"{told}, but torch cannot use them: {str(error).splitlines()[0]}")
    if not share:
        told += "; Ray gives them to no worker: set runtime.gpus_per_worker to 1 or a fraction"
    return Finding(True, "gpus", told)


def memory(runtime: Runtime, store: Store) -> Finding:
    """Whether the workers fit that one Ray on this machine would start; with GPUs, whatever there is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if runtime.gpus_per_worker:
        return Finding(True, "memory", f"{size(total)} of this machine; that of a GPU is in the estimate")
    try:
        peak = Rates(store).peak("cpu")
    except (ConfigError, StoreError):
        peak = 0  # the store has a line of its own
    each = peak or WORKER_BYTES
    known = "as measured in the store" if peak else "none was measured yet"
    told = f"{size(total)}; {runtime.workers} workers of {size(each)} ({known})"
    if runtime.workers * each > total:
        most = max(1, int(total / each))
        return Finding(False, "memory", f"{told}: lower runtime.workers to {most}, or use more machines")
    return Finding(True, "memory", told)


def shared_memory() -> Finding:
    """Where Ray keeps what processes share."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return Finding(True, "shm", "there is no /dev/shm; Ray uses its folder in /tmp, which is slower")
    total = room.f_blocks * room.f_frsize
    if total < SHARED_BYTES:
        todo = "start the container with --shm-size=2g, or mount a larger one"
        return Finding(False, "shm", f"/dev/shm has {size(total)}, Ray wants {size(SHARED_BYTES)}: {todo}")
    return Finding(True, "shm", f"{size(total)} in /dev/shm")


# --- the store and the inputs -------------------------------------------------------------------------------


def writable(store: Store) -> Finding:
    """A file is written, read and removed, where there is a store."""
    try:
        there = try_writing(store)
    except (ConfigError, StoreError) as error:
        return Finding(False, "store", f"{error}: set runtime.store, or its permissions and credentials")
    free = free_bytes(store)
    room = f", {size(free)} free" if free is not None else ""
    done = "written and read back" if there else "not there yet, will be made"
    return Finding(True, "store", f"{store.path()}: {done}{room}")


def inputs(settings: Sweep, experiment: Experiment) -> Iterator[Finding]:
    """The data and the weights that observers start from."""
    weights, trouble = experiment.squeeze.weights, _refused(lambda: _check(settings, experiment))
    if trouble and "squeeze.weights" in trouble.path:
        yield Finding(True, "data", f"{experiment.dataset.name} is there")
        yield Finding(False, "weights", str(trouble))
    elif trouble:
        yield Finding(False, "data", str(trouble))
    else:
        task = pipeline.tasks(experiment, "ingest")[0]
        held = f"{experiment.split.val:.0%} held out" if experiment.split.val else "none held out"
        told = f"{experiment.dataset.name}: {task.fit} training images in {task.classes} classes, {held}"
        yield Finding(True, "data", told)
        yield Finding(True, "weights", _weights(weights, experiment.squeeze.observers))


def _check(settings: Sweep, experiment: Experiment) -> None:
    sweep.check(settings, experiment) if settings.search else pipeline.check(experiment)


def _refused(check: Callable[[], None]) -> ConfigError | None:
    try:
        check()
    except ConfigError as error:
        return error
    return None


def _weights(weights: str | None, observers: tuple[str, ...]) -> str:
    from edc_ray.core.models import cached

    if weights is None:
        return "none are asked for: the observers are trained from random ones"
    if weights not in LIBRARIES:
        return f"those of {', '.join(observers)} are in {weights}"
    found = [cached(name) for name in observers]
    there = sum(is_there for _, is_there in found)
    rest = "" if there == len(found) else "; workers download the others, which needs a network"
    return f"{there} of {len(found)} are in {os.path.dirname(found[0][0]) or found[0][0]}{rest}"


def room(settings: Sweep, experiment: Experiment, store: Store) -> Finding:
    """Whether what is to be stored fits, as far as its size is known."""
    items, free = estimate.todo(settings, experiment, store), free_bytes(store)
    labels = estimate.label_bytes(items) if settings.runtime.labels == "stream" else 0.0
    told = f"{size(estimate.image_bytes(items))} of images and {size(labels)} of labels are to be stored"
    needed = estimate.image_bytes(items) + labels
    if free is not None and needed > free:
        todo = "use a larger disk, or runtime.labels = inline"
        return Finding(False, "disk", f"{told}, and {size(free)} are free: {todo}")
    return Finding(True, "disk", told)
