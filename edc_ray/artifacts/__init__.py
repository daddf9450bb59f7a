"""The store and its artifacts: the only package that names, writes, checks and commits files."""

from edc_ray.artifacts.files import Damaged, Meta, Missing, Receipt, StoreError, Tensors, UnitFile, pack_table
from edc_ray.artifacts.logs import Attempt, add_attempt, attempts, log_path, logged
from edc_ray.artifacts.look import every_artifact, free_bytes, try_writing
from edc_ray.artifacts.store import SCHEMA, Artifact, Store

__all__ = [
    "SCHEMA", "Artifact", "Attempt", "Damaged", "Meta", "Missing", "Receipt", "Store", "StoreError",
    "Tensors", "UnitFile", "add_attempt", "attempts", "every_artifact", "free_bytes", "log_path",
    "logged", "pack_table", "try_writing",
]  # fmt: skip
