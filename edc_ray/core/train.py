"""Training and reading of networks: observers on real images, students on condensed ones (method.md 1, 5)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edc_ray.config import Evaluate, Squeeze
from edc_ray.core import views
from edc_ray.core.random import fork_rng, generator, seed_of
from edc_ray.core.relabel import Page

TEST_IMAGES = 1024  # images in one forward when accuracy is read


# --- schedules: multiplier of the peak learning rate in epoch e of E ----------------------------------------


def cos(epoch: int, epochs: int, zeta: float) -> float:
    """Cosine that would reach 0 at zeta * E (paper 3.2, "smoothing LR"; method.md 5.4)."""
    return 0.5 * (1 + math.cos(math.pi * epoch / (zeta * epochs)))


def linear(epoch: int, epochs: int, zeta: float) -> float:
    """Straight line that would reach 0 at zeta * E; what the official ImageNet-1k script really ran (B1)."""
    return 1 - epoch / (zeta * epochs)


def constant(epoch: int, epochs: int, zeta: float) -> float:
    """No decay."""
    return 1.0


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "cos": cos,
    "linear": linear,
    "constant": constant,
}


# --- shared pieces ------------------------------------------------------------------------------------------


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay only on weights with more than one dimension; none on biases and norms (method.md 5.3)."""
    decayed = [p for name, p in model.named_parameters() if "weight" in name and p.ndim > 1]
    kept = [p for name, p in model.named_parameters() if not ("weight" in name and p.ndim > 1)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], images: Float[Tensor, "n c s s"]) -> Float[Tensor, "n k"]:
    """Logits; the model must be in eval mode."""
    return torch.cat([model(chunk) for chunk in images.split(TEST_IMAGES)])


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


def _batches(order: Int[Tensor, " n"], size: int) -> list[Tensor]:
    """Runs of `size`; a last image alone joins the batch before it, since BatchNorm cannot train on one."""
    batches = list(order.split(size))
    return [*batches[:-2], torch.cat(batches[-2:])] if len(batches) > 1 and len(batches[-1]) == 1 else batches


# --- observers ----------------------------------------------------------------------------------------------


def fit_observer(
    cfg: Squeeze,
    model: nn.Module,
    images: Float[Tensor, "n c s s"],
    labels: Int[Tensor, " n"],
    seeds: tuple[int, str],
    saved: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[int, Callable[[], dict[str, Tensor]]]]:
    """Train `model` in place with SGD and cross-entropy; yields (epochs done, how to make a checkpoint).

    seeds: the experiment's seed and the observer's name.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
    """
    groups = parameter_groups(model, cfg.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum)
    start = 0
    if saved is not None:
        unpack(model, optimizer, saved)
        start = int(saved["epoch"])
    model.train()
    for epoch in range(start, cfg.epochs):
        rng = generator("squeeze", *seeds, epoch)
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * SCHEDULES[cfg.schedule](epoch, cfg.epochs, cfg.zeta)
        total = torch.zeros((), device=images.device)
        for ids in _batches(torch.randperm(len(images), generator=rng), cfg.batch_size):
            ids = ids.to(images.device)
            logits = model(views.augment(images[ids], cfg.augment, rng))
            loss = functional.cross_entropy(logits, labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        if not math.isfinite(float(total)):
            raise FloatingPointError(f"the loss of {seeds[1]} is not finite in epoch {epoch}")
        done = torch.tensor(epoch + 1)
        yield epoch + 1, lambda done=done: pack(model, optimizer) | {"epoch": done}  # type: ignore[misc]
    model.eval()


# --- students -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Averages:
    """Bias-corrected moving average of a model's weights and its floating buffers (method.md 5.5, `fixed`).

    The horizon is a share of all steps, so that small and large batches are averaged alike.
    """

    rate: float
    sums: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, horizon: float, steps: int) -> "Averages":
        rate = math.exp(-1 / (horizon * steps)) if horizon * steps > 0 else 0.0
        return cls(
            rate, {k: torch.zeros_like(v) for k, v in model.state_dict().items() if v.is_floating_point()}
        )

    def update(self, model: nn.Module) -> None:
        state = model.state_dict()
        torch._foreach_lerp_(list(self.sums.values()), [state[k] for k in self.sums], 1 - self.rate)

    def value(self, steps: int) -> dict[str, Tensor]:
        return {k: v / (1 - self.rate**steps) for k, v in self.sums.items()}


def total_steps(cfg: Evaluate, per_epoch: int) -> int:
    return cfg.epochs * per_epoch


def report_steps(cfg: Evaluate, per_epoch: int) -> list[int]:
    """The steps after which accuracy is read: evenly spaced, the last one is the end."""
    total = total_steps(cfg, per_epoch)
    return sorted({max(1, round(total * (i + 1) / cfg.reports)) for i in range(cfg.reports)})


def stop_step(cfg: Evaluate, per_epoch: int, until: float) -> int:
    """The first report at or after the share `until` of the training."""
    total = total_steps(cfg, per_epoch)
    return next(step for step in report_steps(cfg, per_epoch) if step >= min(until, 1.0) * total - 1e-6)


def student_loss(
    logits: Float[Tensor, "b k"], soft: Float[Tensor, "b k"], hard: Int[Tensor, " b"], ce_weight: float
) -> Float[Tensor, ""]:
    """MSE of the logits + ce_weight * cross-entropy to the un-mixed label ("mse_gt", method.md 5.2)."""
    return functional.mse_loss(logits, soft) + ce_weight * functional.cross_entropy(logits, hard)


class Student:
    """A student in training. `advance` runs it to a step; `pack` and `saved` make it resumable anywhere."""

    def __init__(
        self,
        cfg: Evaluate,
        model: nn.Module,
        images: Float[Tensor, "n c s s"],
        labels: Int[Tensor, " n"],
        per_epoch: int,
        seed: int,
        saved: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.cfg, self.model, self.images, self.labels = cfg, model.train(), images, labels
        self.per_epoch, self.seed, self.step = per_epoch, seed, 0
        groups = parameter_groups(model, cfg.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.999), eps=1e-8)
        self.averages = Averages.of(model, cfg.ema_horizon, total_steps(cfg, per_epoch))
        if saved is not None:
            self.step = int(saved["step"])
            unpack(model, self.optimizer, saved)
            for name, value in self.averages.sums.items():
                value.copy_(saved[f"average.{name}"])

    def pack(self) -> dict[str, Tensor]:
        sums = {f"average.{name}": value for name, value in self.averages.sums.items()}
        return pack(self.model, self.optimizer) | sums | {"step": torch.tensor(self.step)}

    def advance(self, pages: Iterable[Page], until: int) -> Iterator[int]:
        """Train on these pages, which go on where the student stands; yields the step after every update.

        Raises:
            FloatingPointError: the loss of a page is not finite.
        """
        device = self.images.device
        if self.step >= until:
            return
        for page in pages:
            pixels = views.apply(views.concat(page.views).to(device), self.images)
            assert page.first_step <= self.step, (page.first_step, self.step)
            batches = pixels.split([len(view.ids) for view in page.views])
            total = torch.zeros((), device=device)
            end = min(until, page.first_step + len(page.views))
            for i in range(self.step - page.first_step, end - page.first_step):
                total += self._update(
                    batches[i], page.logits[i].to(device).float(), page.views[i].ids.to(device)
                )
                # Before the last yield, as a caller may not come back after it.
                if self.step == end and not math.isfinite(float(total)):
                    raise FloatingPointError(f"the student's loss is not finite before step {self.step}")
                yield self.step
            if self.step >= until:  # the next page may have to be labelled first
                return

    def _update(self, pixels: Tensor, soft: Tensor, ids: Tensor) -> Tensor:
        """One step; returns the loss, still on the device."""
        multiplier = SCHEDULES[self.cfg.schedule](self.step // self.per_epoch, self.cfg.epochs, self.cfg.zeta)
        for group in self.optimizer.param_groups:
            group["lr"] = self.cfg.lr * multiplier
        with fork_rng(seed_of("student", self.seed, self.step)):  # dropout has no generator argument
            loss = student_loss(self.model(pixels), soft, self.labels[ids], self.cfg.ce_weight)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.averages.update(self.model)
        self.step += 1
        return loss.detach()

    def predict(self, images: Float[Tensor, "n c s s"]) -> Float[Tensor, "n k"]:
        """Logits of the averaged weights and buffers, in eval mode; the student itself is not changed."""
        weights = self.averages.value(self.step)
        self.model.eval()
        try:
            return predict(lambda chunk: functional_call(self.model, weights, (chunk,)), images)
        finally:
            self.model.train()
