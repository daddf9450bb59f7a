"""What is computed (Experiment), how (Runtime) and what is searched (Sweep): the whole truth of a run.

Plain frozen dataclasses; bounds are checked whenever one is made. Names of datasets, models and losses are
checked by `pipeline.check`, which knows the tables.
"""

from edc_ray.config.apply import Apply
from edc_ray.config.condense import Flatness, Init, Matching, Recover
from edc_ray.config.diagnose import Diagnose
from edc_ray.config.experiment import Experiment, Quirks
from edc_ray.config.fields import ConfigError, NotThere, active, check_uri, join, legal_range, unknown
from edc_ray.config.judge import Evaluate, Relabel
from edc_ray.config.ladder import Ladder, Row
from edc_ray.config.observe import LIBRARIES, Augment, Dataset, Split, Squeeze, Statistics
from edc_ray.config.schema import schema
from edc_ray.config.sweep import Budget, Confirm, Knob, Runtime, Scheduler, Sweep, WarmStart
from edc_ray.config.text import digest, dump, hashed, load, override, parse_value, paths, read_yaml

__all__ = [
    "LIBRARIES",
    "Apply", "Augment", "Budget", "ConfigError", "Confirm", "Dataset", "Diagnose", "Evaluate", "Experiment",
    "Flatness", "Init", "Knob", "Ladder", "Matching", "NotThere", "Quirks", "Recover", "Relabel", "Row",
    "Runtime", "Scheduler", "Split", "Squeeze", "Statistics", "Sweep", "WarmStart", "active", "check_uri",
    "digest", "dump", "hashed", "join", "legal_range", "load", "override", "parse_value", "paths",
    "read_yaml", "schema", "unknown",
]  # fmt: skip
