"""What the training of observers and of students shares."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edc_ray.core.data import Pixels

TEST_IMAGES = 1024  # images in one forward when accuracy is read


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay only on weights with more than one dimension; none on biases and norms (method.md 5.3)."""
    decayed = [p for name, p in model.named_parameters() if "weight" in name and p.ndim > 1]
    kept = [p for name, p in model.named_parameters() if not ("weight" in name and p.ndim > 1)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


@torch.no_grad()
def predict(
    model: Callable[[Tensor], Tensor], images: Float[Tensor, "n c s s"] | Pixels, together: int = TEST_IMAGES
) -> Float[Tensor, "n k"]:
    """Logits; the model must be in eval mode. together: images in one forward."""
    return torch.cat([model(chunk) for chunk in images.split(together)])


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
