"""How much memory units take, and what to say where that of the GPU runs out: which field to lower."""

import dataclasses
import re
import resource
from operator import attrgetter

import torch

from edc_ray.config import Runtime, active
from edc_ray.pipeline.types import Task

# Stage -> the fields that bound its memory, first those that change no result.
FIELDS: dict[str, tuple[str, ...]] = {
    "ingest": (),
    "squeeze": ("runtime.forward_images", "squeeze.batch_size"),
    "statistics": ("runtime.forward_images", "statistics.batch_size"),
    "init": ("runtime.forward_images",),
    "recover": ("runtime.groups_per_forward", "recover.group_images", "recover.classes_per_group"),
    "relabel": ("runtime.forward_images", "relabel.page_images", "relabel.batch_size"),
    "evaluate": ("runtime.forward_images", "relabel.batch_size", "relabel.page_images"),
    "sparse": ("squeeze.batch_size",),
    "diagnose": ("runtime.forward_images", "diagnose.images", "relabel.batch_size"),
    "apply": ("runtime.forward_images", "relabel.batch_size", "relabel.page_images"),
}  # fmt: skip


def forget_peak(device: torch.device) -> None:
    """`peak_bytes` of a GPU begins anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most that tensors of this process have had on the GPU; without one, the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kB


class OutOfMemory(RuntimeError):
    """The memory of the GPU ran out. One line: in which unit, and what to lower."""


def out_of_memory(task: Task, unit: str, runtime: Runtime, why: str) -> OutOfMemory:
    """The error to show instead of torch's, whose text is `why`."""
    values = {path: _above_least(path, task, runtime) for path in FIELDS[task.stage]}
    lower = [f"{path} (now {value})" for path, value in values.items() if value is not None]
    advice = f"lower {' or '.join(lower)}" if lower else "it needs a GPU with more"
    kept = "what is finished stays, and still counts where only runtime changes"
    size = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", why)
    more = f" ({size[1]} more was wanted)" if size else ""
    return OutOfMemory(f"the memory of the GPU ran out{more} in {task}, unit {unit}: {advice}; {kept}")


def _above_least(path: str, task: Task, runtime: Runtime) -> int | None:
    """The field's value where it has an effect and can be lowered."""
    section, _, name = path.rpartition(".")
    holder = runtime if section == "runtime" else attrgetter(section)(task.experiment)
    field = next(each for each in dataclasses.fields(holder) if each.name == name)
    value: int | None = getattr(holder, name)
    lowered = value is not None and value > field.metadata["low"] and active(holder, field)
    return value if lowered else None
