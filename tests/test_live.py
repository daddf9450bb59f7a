"""Tune's callbacks by name: what is made of them, and what is said where their package is not there."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.logger import TBXLoggerCallback

from edc_ray import live
from edc_ray.config import ConfigError, Sweep


def test_tensorboard_is_tunes_own(tmp_path: Path) -> None:
    sweep = Sweep(callbacks=("tensorboard",))
    live.check(sweep)
    (made,) = live.callbacks(sweep, str(tmp_path))
    assert isinstance(made, TBXLoggerCallback)
    assert live.callbacks(Sweep(), str(tmp_path)) == []


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_not_installed_is_named(name: Any) -> None:
    sweep = replace(Sweep(), callbacks=("tensorboard", name))
    if importlib.util.find_spec(name) is not None:
        live.check(sweep)
        return
    with pytest.raises(ConfigError) as caught:
        live.check(sweep)
    assert str(caught.value) == (
        f"callbacks.1 = '{name}': needs a package that is not installed: pip install {name}"
    )
