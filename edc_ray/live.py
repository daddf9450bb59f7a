"""A live view of a search: Tune's own callbacks, by their names in the sweep file. None needs an account.

TensorBoard's files are written in any case: `tensorboard --logdir STORE/sweeps/NAME/tune`. The study itself
is shown by `optuna-dashboard STORE/sweeps/NAME/study.journal`, from an environment of its own.
"""

import importlib.util
import os
from typing import Any

from edc_ray.config import ConfigError, Sweep

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def check(sweep: Sweep) -> None:
    """Raises ConfigError where the package of a callback is not installed."""
    for i, name in enumerate(sweep.callbacks):
        if importlib.util.find_spec(PACKAGES[name]) is None:
            legal = f"needs a package that is not installed: pip install {PACKAGES[name]}"
            raise ConfigError(f"callbacks.{i}", name, legal)


def callbacks(sweep: Sweep, where: str) -> list[Any]:
    """Tune's. where: the folder or URI of Tune's files.

    MLflow writes to MLFLOW_TRACKING_URI, else to mlflow.db there. W&B stays offline, in `wandb` there, unless
    WANDB_API_KEY or WANDB_MODE say otherwise.
    """
    made: list[Any] = []
    local = None if "://" in where else where
    for name in sweep.callbacks:
        if name == "tensorboard":
            from ray.tune.logger import TBXLoggerCallback

            made.append(TBXLoggerCallback())
        elif name == "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            uri = os.environ.get("MLFLOW_TRACKING_URI") or (f"sqlite:///{local}/mlflow.db" if local else None)
            made.append(MLflowLoggerCallback(tracking_uri=uri, experiment_name=sweep.name))
        else:
            from ray.air.integrations.wandb import WandbLoggerCallback

            if "WANDB_API_KEY" not in os.environ:
                os.environ.setdefault("WANDB_MODE", "offline")
            made.append(WandbLoggerCallback(project="edc-ray", group=sweep.name, dir=local))
    return made
