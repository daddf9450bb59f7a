"""PRESETS: every row is an experiment that the tables know, with a number that can be reached."""

import pytest

from edc_ray import presets
from edc_ray.config import ConfigError, Experiment, dump, load
from edc_ray.core.data import DATASETS
from edc_ray.core.models import MODELS
from edc_ray.pipeline import check, graph
from edc_ray.presets import PRESETS, experiment


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_legal_experiment(name: str) -> None:
    made = experiment(name)
    assert load(Experiment, dump(made)) == made != Experiment()
    assert {*made.squeeze.observers, made.evaluate.student} <= set(MODELS)
    assert made.dataset.name in DATASETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_named_dataset_images_per_class_and_says_where_its_number_is_from(name: str) -> None:
    preset, made = PRESETS[name], experiment(name)
    assert name.endswith(f"/ipc{made.init.ipc}") and preset.source
    assert preset.target is None or 0 < preset.target < 1, "a fraction, not per cent"
    assert (preset.target is None) == name.startswith("digits/")


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("digits/")])
def test_what_needs_no_download_could_run_at_once(name: str) -> None:
    check(experiment(name))
    assert len(graph.tasks(experiment(name))) == 7


def test_a_published_number_is_read_on_test() -> None:
    """And one configuration is run, so nothing is selected there."""
    for name, preset in PRESETS.items():
        assert preset.target is None or experiment(name).split.val == 0


def test_presets_change_what_they_say_and_no_name_is_given_twice() -> None:
    made = {name: experiment(name) for name in PRESETS}
    assert len(set(made.values())) == len(PRESETS)
    assert experiment(None) == Experiment()


def test_an_unknown_preset_is_refused_with_the_near_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        experiment("digits/ipc3")
    assert (caught.value.path, caught.value.value) == ("preset", "digits/ipc3")
    assert "did you mean digits/ipc2 or digits/ipc1" in caught.value.legal
    with pytest.raises(ConfigError, match="legal: digits/ipc1"):
        experiment("")


def test_the_observers_of_the_paper_are_eight_models() -> None:
    assert len(set(presets.CIFAR_OBSERVERS)) == 8
