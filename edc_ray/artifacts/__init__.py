"""The store and its artifacts: the only package that names, writes, checks and commits files."""

from edc_ray.artifacts.files import Damaged, Meta, Missing, Receipt, StoreError, Tensors, UnitFile, pack_table
from edc_ray.artifacts.store import SCHEMA, Artifact, Store

__all__ = [
    "SCHEMA", "Artifact", "Damaged", "Meta", "Missing", "Receipt", "Store", "StoreError", "Tensors",
    "UnitFile", "pack_table",
]  # fmt: skip
