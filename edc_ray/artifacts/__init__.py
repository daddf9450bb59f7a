"""The store and its artifacts: the only package that names, writes, checks and commits files."""

from edc_ray.artifacts.files import (
    Damaged,
    Meta,
    Missing,
    Receipt,
    StoreError,
    Tensors,
    UnitFile,
    pack_pt,
    pack_table,
    save_file,
)
from edc_ray.artifacts.logs import Attempt, add_attempt, attempts, log_path, logged
from edc_ray.artifacts.look import (
    Holding,
    every_artifact,
    free_bytes,
    holding,
    move_folder,
    remove,
    try_writing,
)
from edc_ray.artifacts.store import SCHEMA, Artifact, Store

__all__ = [
    "SCHEMA", "Artifact", "Attempt", "Damaged", "Holding", "Meta", "Missing", "Receipt", "Store",
    "StoreError", "Tensors", "UnitFile", "add_attempt", "attempts", "every_artifact", "free_bytes",
    "holding", "log_path", "logged", "move_folder", "pack_pt", "pack_table", "remove", "save_file",
    "try_writing",
]  # fmt: skip
