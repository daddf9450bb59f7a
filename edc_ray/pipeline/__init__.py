"""Stages: names, units, workers; the in-process mapper; the plan. Knows neither Ray nor the terminal."""

from edc_ray.pipeline.applications import APPLICATIONS, Application, check_application
from edc_ray.pipeline.baselines import CONFIRM_SEED, arms, random_real, refitted, whole, with_seed
from edc_ray.pipeline.checks import check, check_names
from edc_ray.pipeline.evict import evict
from edc_ray.pipeline.graph import (
    READS,
    PlanRow,
    commit,
    core_seconds,
    discard,
    facts,
    finish,
    finished,
    is_hit,
    key,
    looked,
    manifest,
    missing,
    needed,
    note_test_read,
    parents,
    plan,
    reports,
    skipped,
    tasks,
    units,
)
from edc_ray.pipeline.local import Mapper, Tell, ensure, in_process
from edc_ray.pipeline.observe import at_chance
from edc_ray.pipeline.stages import ENDS, ROWS, STAGES
from edc_ray.pipeline.types import COSTS, Output, Progress, Report, Stage, Step, Task, Tensors, unit_of
from edc_ray.pipeline.worker import Worker, log_attempt

__all__ = [
    "APPLICATIONS", "CONFIRM_SEED", "COSTS", "ENDS", "READS", "ROWS", "STAGES", "Application", "Mapper",
    "Output", "PlanRow", "Progress", "Report", "Stage", "Step", "Task", "Tell", "Tensors", "Worker",
    "arms", "at_chance", "check", "check_application", "check_names", "commit", "core_seconds", "discard",
    "ensure", "evict", "facts", "finish", "finished", "in_process", "is_hit", "key", "log_attempt",
    "looked", "manifest", "missing", "needed", "note_test_read", "parents", "plan", "random_real",
    "refitted", "reports", "skipped", "tasks", "unit_of", "units", "whole", "with_seed",
]  # fmt: skip
