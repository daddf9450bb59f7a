"""Label jobs of Ray Data against the in-process mapper."""

import hashlib
import shutil
from pathlib import Path

import pytest

from edc_ray import pipeline
from edc_ray.artifacts import Damaged, Receipt, Store
from edc_ray.artifacts.files import unpack_table
from edc_ray.distributed.labels import label_pages
from edc_ray.distributed.ledger import Pages
from edc_ray.distributed.probe import Site
from edc_ray.pipeline import Task
from tests import tiny

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
HOW = tiny.runtime(labels="stream")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, tiny.Bits]:
    """Everything with 30 pages of labels of seed 0, and three of seed 1."""
    store = Store(str(tmp_path_factory.mktemp("reference")))
    for changes in ({"evaluate__epochs": 60, "evaluate__seeds": [0]}, {}):
        bits = tiny.in_process(store, tiny.experiment(**changes), HOW)
    return store, bits


@pytest.fixture
def images(tmp_path: Path, reference: tuple[Store, tiny.Bits]) -> Store:
    """A store with the observers and the condensed images, without labels."""
    for folder in Path(reference[0].root).glob("*-*"):
        if not folder.name.startswith(("relabel", "evaluate")):
            shutil.copytree(folder, tmp_path / folder.name)
    return Store(str(tmp_path))


def labels(seed: int = 0, epochs: int = 6) -> Task:
    """The labels of one seed; half as many pages as epochs."""
    return pipeline.tasks(tiny.experiment(evaluate__seeds=[seed], evaluate__epochs=epochs), "relabel")[-1]


def pages(*tasks: Task) -> Pages:
    return [(task, unit) for task in tasks for unit in pipeline.units(task, HOW)]


def assert_finished(found: list[tuple[str, Receipt]], store: Store, wanted: Pages, bits: tiny.Bits) -> None:
    """A receipt for each page, and the reference's rows in its file."""
    assert sorted((key, receipt.unit) for key, receipt in found) == sorted(
        (t.key, unit) for t, unit in wanted
    )
    for key, receipt in found:
        # Not the unit's only file, where its first labeller was killed between writing and telling.
        data = store.get(f"relabel-{key}/{receipt.file}")
        assert data and hashlib.sha256(data).hexdigest() == receipt.sha256
        assert unpack_table(data).to_pydict() == bits["relabel", key, receipt.unit]


def test_two_labellers_share_pages_of_several_artifacts(
    images: Store, reference: tuple[Store, tiny.Bits]
) -> None:
    wanted = pages(labels(0), labels(1))
    assert len(wanted) == 6
    assert_finished(list(label_pages(Site.mark(images.root), HOW, wanted, 2)), images, wanted, reference[1])


def test_a_killed_labeller_costs_no_page(images: Store, reference: tuple[Store, tiny.Bits]) -> None:
    task, found = labels(epochs=60), list[tuple[str, Receipt]]()
    wanted = pages(task)
    for item in label_pages(Site.mark(images.root), HOW, wanted):
        if not found:
            assert len(images.artifact("relabel", task.key).units()) < len(wanted)
            tiny.kill("MapWorker(MapBatches(Labeller))")
        found.append(item)
    assert_finished(found, images, wanted, reference[1])


def test_a_page_that_a_lost_labeller_has_written_is_not_made_again(
    images: Store, reference: tuple[Store, tiny.Bits]
) -> None:
    wanted = pages(labels())
    before = pipeline.in_process(images, HOW)
    (_, receipt), *_ = [item for item in before(labels(), ["page-00001"]) if isinstance(item[1], Receipt)]
    found = list(label_pages(Site.mark(images.root), HOW, wanted))
    assert (labels().key, receipt) in found
    assert_finished(found, images, wanted, reference[1])
    assert len(list(Path(images.root).glob("relabel-*/page-*"))) == len(wanted)


def test_a_pages_error_arrives_with_its_cause(images: Store) -> None:
    (squeezed,) = Path(images.root).glob("squeeze-*/vgg5_w16.*")
    squeezed.write_bytes(squeezed.read_bytes()[:-1])
    with pytest.raises(Damaged) as caught:
        list(label_pages(Site.mark(images.root), HOW, pages(labels())[:1]))
    cause = caught.value.cause  # type: ignore[attr-defined]  # of Ray's wrapper
    assert (cause.stage, cause.unit) == ("squeeze", "vgg5_w16")
    assert cause.__notes__[-1].endswith("/logs/page-00000.log")
