"""One run: a sweep on a cluster, what is killed in it and when, and what came of it."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests import tiny
from tests.chaos import verdict
from tests.chaos.nodes import ENVIRONMENT, ROOT, Nodes, kill, nothing_left
from tests.chaos.watch import UNIT, Watch

LIMIT_SECONDS = 600.0  # of a run; a bound against hangs
START_SECONDS = 5.0
TARGETS = {
    "worker": re.compile(r"ray::(UnitActor|(?!relabel)[a-z]+:)"),
    "label": re.compile(r"ray::(LabelJob|relabel:|MapWorker\(|MapBatches\()"),
    "broker": re.compile(r"ray::BrokerActor"),
    "trial": re.compile(r"ray::ImplicitFunc"),
}  # titles of the processes
KINDS = (*TARGETS, "node", "driver", "head")
SWEEP = {
    "sampler": "grid",  # with fifo, the one that evaluates the same configurations in every run
    "search": {"recover.iterations": {"choices": [100, 140]}, "evaluate.lr": {"choices": [3e-3, 1e-2]}},
    "confirm": {"seeds": 0},
    "runtime__workers": 2, "runtime__labels": "stream", "runtime__checkpoint_seconds": verdict.INTERVAL,
    "experiment__squeeze.epochs": 20, "experiment__relabel.page_images": 500,
    "experiment__evaluate.epochs": 500, "experiment__evaluate.reports": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """After so many finished units, and then as soon as there is a target, and then `delay` seconds.

    pause: seconds until what does not come back by itself is started again (node, driver, head).
    """

    kind: str
    units: int
    delay: float
    pause: float


@dataclass(frozen=True, slots=True)
class Hit:
    """An injection. unsaved: seconds of work that its victims had not saved, the most of one unit."""

    kind: str
    units: int  # finished when it struck
    after: float  # seconds since the run began
    victims: str  # title of the process, or how many
    unsaved: float


@dataclass(slots=True)
class Result:
    """missed: kinds whose moment did not come, as the sweep had ended. faults: nothing, if all is well."""

    seed: int
    kinds: Sequence[str]
    seconds: float = 0.0
    hits: list[Hit] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reference:
    """The undisturbed run: its store, and (seconds since its start, stage) of every finished unit."""

    store: Path
    timeline: tuple[tuple[float, str], ...]
    seconds: float


def plan(seed: int, kinds: Sequence[str], reference: Reference) -> list[Moment]:
    """Random moments, uniform in the time of the undisturbed run, but told by what was finished by then:
    so they mean the same on a slow machine. Its start is taken as START_SECONDS long.
    """
    random, first = Random(seed), reference.timeline[0][0]
    times = [at - first + START_SECONDS for at, _ in reference.timeline]
    labelled = max(at for at, (_, stage) in zip(times, reference.timeline, strict=True) if stage == "relabel")
    moments = []
    for kind in kinds:
        at = random.random() * (labelled if kind == "label" else times[-1])
        units = min(bisect(times, at), len(times) - 1)
        moments.append(Moment(kind, units, random.uniform(0, 2), random.uniform(0, 3)))
    return sorted(moments, key=lambda moment: moment.units)


class Run:
    """A sweep in a folder, on a cluster of a head and two nodes."""

    def __init__(self, folder: Path, watch: Watch, temporary: Path, random: Random) -> None:
        self._file = tiny.sweep_file(folder, **SWEEP)
        self._output, self._log, self._temporary = folder / "output.txt", folder / "nodes.txt", temporary
        self._watch, self._random = watch, random
        self._began = time.time()
        self._nodes = Nodes(temporary, self._log)
        self._driver = self._drive()

    def _drive(self) -> "subprocess.Popen[bytes]":
        environment = os.environ | ENVIRONMENT | {"RAY_ADDRESS": self._nodes.address}
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "edc_ray.sweep", self._file], cwd=ROOT, stdout=output,
                env=environment | {"RAY_TMPDIR": str(self._temporary)}, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.time() - self._began

    def inject(self, moment: Moment) -> Hit | None:
        """Wait for the moment and kill; None: the sweep has ended before."""
        while True:
            self._sleep_until(lambda: self._is_time(moment))
            self._sleep(moment.delay)
            if self._driver.poll() is not None:
                return None
            if targets := self._targets(moment):
                return self._kill(moment, self._random.choice(targets))

    def _is_time(self, moment: Moment) -> bool:
        return len(self._watch.finished) >= moment.units and bool(self._targets(moment))

    def _sleep(self, seconds: float) -> None:
        end = time.time() + seconds
        self._sleep_until(lambda: time.time() >= end)

    def _sleep_until(self, happened: Callable[[], bool]) -> None:
        while self._driver.poll() is None and not happened():
            if self.seconds > LIMIT_SECONDS:
                raise TimeoutError(
                    f"not finished after {LIMIT_SECONDS:.0f} s: {sorted(tiny.titles().values())}"
                )
            time.sleep(0.05)

    def _targets(self, moment: Moment) -> list[tuple[str, int]]:
        """(title, pid), or the number of a node."""
        if moment.kind == "node":
            return [("node", i) for i in range(len(self._nodes.workers()))]
        if moment.kind in ("driver", "head"):
            return [(moment.kind, self._driver.pid)]
        return sorted(
            (title.strip("\0 "), pid)
            for pid, title in tiny.titles().items()
            if TARGETS[moment.kind].match(title)
        )

    def _kill(self, moment: Moment, target: tuple[str, int]) -> Hit:
        title, number = target
        lost = set(tiny.titles())  # whoever works for what is killed
        if moment.kind in ("worker", "label", "trial"):
            lost = {number}
        elif moment.kind == "node":
            lost = set(self._nodes.workers()[number])
        unsaved = self._watch.unsaved(lost)
        hit = Hit(moment.kind, len(self._watch.finished), self.seconds, title, unsaved)
        if moment.kind in TARGETS:
            kill([number])
        else:
            getattr(self, f"_kill_{moment.kind}")(moment, number)
        return hit

    def _kill_node(self, moment: Moment, number: int) -> None:
        self._nodes.kill_node(number)
        time.sleep(moment.pause)
        self._nodes.add()

    def _kill_driver(self, moment: Moment, pid: int) -> None:
        kill([pid])
        self._driver.wait()
        time.sleep(moment.pause)
        self._driver = self._drive()

    def _kill_head(self, moment: Moment, pid: int) -> None:
        """The driver lives on the head. The other nodes go on for a while, and end with the cluster."""
        self._nodes.kill_head()
        kill([pid])
        self._driver.wait()
        time.sleep(moment.pause)
        self._nodes.end()
        self._nodes = Nodes(self._temporary, self._log)
        self._driver = self._drive()

    def finish(self) -> list[str]:
        """Wait for the driver; says what is wrong with its end."""
        self._sleep_until(lambda: False)
        if self._driver.returncode == 0:
            return []
        return [f"the driver ended with {self._driver.returncode}: {self._output.read_text()[-600:]}"]

    def end(self) -> None:
        kill([self._driver.pid] if self._driver.poll() is None else [])
        self._driver.wait()
        self._nodes.end()


def run(
    seed: int, moments: Sequence[Moment], kinds: Sequence[str], folder: Path, reference: Path | None
) -> Result:
    """Disturb a sweep at these moments. reference: the store of the undisturbed one."""
    result, store = Result(seed, kinds), folder / "store"
    with (
        tempfile.TemporaryDirectory(prefix="rc", dir="/tmp", ignore_cleanup_errors=True) as temporary,
        nothing_left(),
        Watch(store) as watch,
    ):
        sweep = Run(folder, watch, Path(temporary), Random(seed))
        try:
            for moment in moments:
                if hit := sweep.inject(moment):
                    result.hits.append(hit)
                else:
                    result.missed.append(moment.kind)
            result.faults += sweep.finish()
        except TimeoutError as error:
            result.faults.append(str(error))
        finally:
            result.seconds = sweep.seconds
            sweep.end()
        if reference and not result.faults:
            result.faults += verdict.faults(store, reference, watch)
    bound = verdict.INTERVAL + verdict.SLACK
    result.faults += [
        f"{hit.kind}: {hit.unsaved:.1f} s unsaved" for hit in result.hits if hit.unsaved > bound
    ]
    return result


def undisturbed(folder: Path) -> Reference:
    """The reference, found in the folder or made there.

    Raises:
        RuntimeError: the sweep fails by itself.
    """
    facts = folder / "reference.json"
    if not facts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        began, result = time.time(), run(0, [], [], folder, None)
        if result.faults:
            raise RuntimeError("\n".join(result.faults))
        files = [path for path in (folder / "store").glob("*-*/*") if UNIT.fullmatch(path.name)]
        times = sorted((path.stat().st_mtime - began, path.parent.name.rsplit("-", 1)[0]) for path in files)
        facts.write_text(json.dumps({"timeline": times, "seconds": result.seconds}))
    found = json.loads(facts.read_text())
    timeline = tuple((float(at), str(stage)) for at, stage in found["timeline"])
    return Reference(folder / "store", timeline, found["seconds"])
