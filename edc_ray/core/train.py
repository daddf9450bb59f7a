"""Training and reading of students on the condensed images (method.md 5)."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from edc_ray.config import Evaluate
from edc_ray.core import views
from edc_ray.core.fit import pack, parameter_groups, predict, unpack
from edc_ray.core.losses import student_loss
from edc_ray.core.random import fork_rng, seed_of
from edc_ray.core.relabel import Page
from edc_ray.core.schedules import SCHEDULES


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
