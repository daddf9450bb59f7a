"""What the training of observers and of students shares."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edc_ray.core.data import Pixels

TEST_IMAGES = 1024  # images in one forward when accuracy is read
CPU_PIXELS = 1 << 16  # in one forward on a CPU: 64 images at 32 px
CPU_IMAGES = 8  # and not fewer images than these


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay only on weights with more than one dimension; none on biases and norms (method.md 5.3)."""
    decayed = [p for name, p in model.named_parameters() if "weight" in name and p.ndim > 1]
    kept = [p for name, p in model.named_parameters() if not ("weight" in name and p.ndim > 1)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


@torch.no_grad()
def predict(
    model: Callable[[Tensor], Tensor], images: Float[Tensor, "n c s s"] | Pixels, together: int = TEST_IMAGES
) -> Float[Tensor, "n k"]:
    """Logits; the model must be in eval mode. together: most images in one forward."""
    return torch.cat([model(chunk) for chunk in cached(images.split(together))])


@torch.no_grad()
def features(
    model: nn.Module, images: Float[Tensor, "n c s s"] | Pixels, together: int = TEST_IMAGES
) -> Float[Tensor, "n d"]:
    """What the last linear layer sees; of a network without one, its logits. The model is in eval mode."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    seen: list[Tensor] = []
    handles = [head.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for head in heads[-1:]]
    try:
        logits = [model(part) for part in cached(images.split(together))]
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([part.flatten(1) for part in (seen or logits)])


def cached(batches: Iterable[Float[Tensor, "_ c s s"]]) -> Iterator[Float[Tensor, "_ c s s"]]:
    """The batches, on a CPU in parts with smaller activations.

    In a thread, where Ray Data labels, `heap.keep_freed` does not help: there a forward of 1024 images at
    32 px took twice the time of these parts.
    """
    for batch in batches:
        height, width = batch.shape[-2:]
        few = max(CPU_IMAGES, CPU_PIXELS // (height * width)) if batch.device.type == "cpu" else len(batch)
        yield from batch.split(few)


def top1(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    """Accuracy as a fraction."""
    return float((logits.argmax(1) == labels).float().mean())


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and the optimizer's moments as one flat mapping; `unpack` puts them back."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        state |= {
            f"optimizer.{i}.{name}": v for name, v in optimizer.state.get(p, {}).items() if v is not None
        }
    return state


def unpack(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    model.load_state_dict({k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")})
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        prefix = f"optimizer.{i}."
        moments = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
        # Copies: the optimizer changes them in place.
        optimizer.state[p] = {
            k: v.clone() if k == "step" else v.to(p.device, copy=True) for k, v in moments.items()
        }


def batches(order: Int[Tensor, " n"], size: int) -> list[Tensor]:
    """Runs of `size`; a last image alone joins the batch before it, since BatchNorm cannot train on one."""
    runs = list(order.split(size))
    return [*runs[:-2], torch.cat(runs[-2:])] if len(runs) > 1 and len(runs[-1]) == 1 else runs
