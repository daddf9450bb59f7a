"""The study in an object store: every append is there at once; large objects no longer change."""

import pickle
from pathlib import Path

import optuna
import pytest
from pyarrow import fs

from edc_ray import journal, space
from edc_ray.artifacts import Store, StoreError
from edc_ray.config import ConfigError
from edc_ray.journal import Remote, StoreJournal, folder_of, opened

LINES = [{"op_code": n, "text": "\u00e9\u2028\n" * 20} for n in range(40)]


class Fragile(Store):
    """Refuses writes for as long as it is told to."""

    refuses = False

    def put(self, relpath: str, data: bytes, first: bool = False) -> None:
        if self.refuses:
            raise StoreError("", "", relpath, 5, "gone")
        super().put(relpath, data, first)


@pytest.fixture
def place() -> Remote:
    return Remote(Fragile("mock:///bucket"), "sweeps/a")


def objects(place: Remote) -> dict[str, int]:
    found = place.store._fs.get_file_info(fs.FileSelector("bucket/sweeps", recursive=True))
    return {info.base_name: info.size for info in found if info.is_file}


def test_a_new_reader_finds_every_append(place: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1000)
    writer, sealed = StoreJournal(place), dict[str, int]()
    for i, line in enumerate(LINES):
        writer.append_logs([line])
        assert list(StoreJournal(place).read_logs(0)) == LINES[: i + 1] == list(writer.read_logs(0))
        now = objects(place)
        assert all(now[name] == size for name, size in sealed.items())
        sealed = {name: size for name, size in now.items() if size >= 1000}
    assert len(sealed) > 5 and list(writer.read_logs(37)) == LINES[37:]
    assert StoreJournal(Remote(place.store, "sweeps/b"))._lines == []


def test_a_failed_append_leaves_nothing(place: Remote) -> None:
    writer, store = StoreJournal(place), place.store
    assert isinstance(store, Fragile)
    writer.append_logs(LINES[:1])
    store.refuses = True
    with pytest.raises(StoreError):
        writer.append_logs(LINES[1:3])
    store.refuses = False
    writer.append_logs(LINES[3:4])
    assert list(writer.read_logs(0)) == [LINES[0], LINES[3]] == list(StoreJournal(place).read_logs(0))


def test_the_journal_is_not_pickled(tmp_path: Path) -> None:
    place = Remote(Store(tmp_path.as_uri()), "sweeps/a")
    writer = StoreJournal(place)
    writer.append_logs(LINES)
    data = pickle.dumps(writer)
    assert len(data) < 1000 and list(pickle.loads(data).read_logs(0)) == LINES


def test_a_study_is_the_same_in_both(place: Remote, tmp_path: Path) -> None:
    found = []
    for folder in (place, tmp_path):
        with pytest.raises(ConfigError, match="has no study"):
            space.read_study(folder)
        study = space.open_study(folder)
        study.sampler = optuna.samplers.RandomSampler(seed=0)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
        found.append([(t.number, t.params, t.value) for t in space.read_study(folder).trials])
    assert found[0] == found[1] and len(found[0]) == 5


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, name = opened("s3://bucket/runs/sweeps/a/?region=eu-west-1")
    assert (store.root, name) == ("s3://bucket/runs?region=eu-west-1", "sweeps/a")
    assert str(folder_of(store, name)) == "s3://bucket/runs/sweeps/a?region=eu-west-1"
    monkeypatch.chdir(tmp_path)
    store, name = opened("runs/sweeps/a/")
    assert folder_of(store, name) == tmp_path / "runs/sweeps/a" and store.root == str(tmp_path / "runs")
    assert opened("/a")[0].root == "/"
