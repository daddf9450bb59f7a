"""Training and reading of students on the condensed images (method.md 5)."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edc_ray.config import Evaluate, Experiment
from edc_ray.core import schedules, views
from edc_ray.core.data import Pixels
from edc_ray.core.fit import TEST_IMAGES, pack, parameter_groups, predict, unpack
from edc_ray.core.losses import student_loss
from edc_ray.core.random import fork_rng, seed_of
from edc_ray.core.relabel import Page

OPTIMIZERS: dict[str, Callable[[Any, Evaluate], torch.optim.Optimizer]] = {
    "adamw": lambda groups, cfg: torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.999), eps=1e-8),
    "sgd": lambda groups, cfg: torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum),
}


@dataclass(frozen=True, slots=True)
class Averages:
    """Moving average of a model's weights and, where asked for, its floating buffers (method.md 5.5).

    The rate is given, or follows from a share of all steps, so that small and large batches are averaged
    alike. With bias correction nothing is left of the initial weights; without, the average starts there.
    """

    rate: float
    corrected: bool
    sums: dict[str, Tensor]
    live: dict[str, Tensor]  # the model's own tensors, which change in place

    @classmethod
    def of(cls, model: nn.Module, cfg: Evaluate, steps: int) -> "Averages":
        """Before the first of so many steps."""
        span = cfg.ema_horizon * steps
        rate = cfg.ema_rate if cfg.ema_rate is not None else math.exp(-1 / span) if span > 0 else 0.0
        weights = {name for name, _ in model.named_parameters()}
        live = {
            name: value
            for name, value in model.state_dict().items()
            if value.is_floating_point() and (cfg.ema_buffers or name in weights)
        }
        start = torch.zeros_like if cfg.ema_bias_correction else torch.clone
        return cls(rate, cfg.ema_bias_correction, {k: start(v) for k, v in live.items()}, live)

    def update(self) -> None:
        torch._foreach_lerp_(list(self.sums.values()), list(self.live.values()), 1 - self.rate)

    def value(self, steps: int) -> dict[str, Tensor]:
        """After so many updates. What is not averaged is not there."""
        return {k: v / (1 - self.rate**steps) if self.corrected else v for k, v in self.sums.items()}


def total_steps(cfg: Evaluate, per_epoch: int) -> int:
    return cfg.epochs * per_epoch


def report_steps(cfg: Evaluate, per_epoch: int) -> list[int]:
    """The steps after which accuracy is read: evenly spaced or after given epochs; the last is the end."""
    total = total_steps(cfg, per_epoch)
    if cfg.report_epochs is not None:
        return sorted({epoch * per_epoch for epoch in cfg.report_epochs} | {total})
    return sorted({max(1, round(total * (i + 1) / cfg.reports)) for i in range(cfg.reports)})


def stop_step(cfg: Evaluate, per_epoch: int, until: float) -> int:
    """The first report at or after the share `until` of the training."""
    total = total_steps(cfg, per_epoch)
    return next(step for step in report_steps(cfg, per_epoch) if step >= min(until, 1.0) * total - 1e-6)


class Student:
    """A student in training. `advance` runs it to a step; `pack` and `saved` make it resumable anywhere.

    images: all condensed images, normalised by `pixels`, their channels' mean and standard deviation. The
    one seed of `experiment.evaluate.seeds` drives dropout.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: nn.Module,
        images: Float[Tensor, "n c s s"],
        labels: Int[Tensor, " n"],
        pixels: tuple[Sequence[float], Sequence[float]],
        saved: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.cfg, self.quirks = experiment.evaluate, experiment.quirks
        self.model, self.images, self.labels, self.pixels = model.train(), images, labels, pixels
        (self.seed,) = self.cfg.seeds
        self.per_epoch, self.step = views.steps_per_epoch(experiment.relabel, len(images)), 0
        self.total = total_steps(self.cfg, self.per_epoch)
        self.optimizer = OPTIMIZERS[self.cfg.optimizer](
            parameter_groups(model, self.cfg.weight_decay), self.cfg
        )
        self.averages = Averages.of(model, self.cfg, self.total)
        self.losses = torch.zeros(self.cfg.epochs, device=images.device)  # mean over each epoch's images
        self._draws = True  # whether a step draws random numbers, as dropout does; the first one shows it
        if saved is not None:
            self.step = int(saved["step"])
            unpack(model, self.optimizer, saved)
            self.losses.copy_(saved["losses"])
            for name, value in self.averages.sums.items():
                value.copy_(saved[f"average.{name}"])
        self._set_rates()

    def pack(self) -> dict[str, Tensor]:
        sums = {f"average.{name}": value for name, value in self.averages.sums.items()}
        state = {"step": torch.tensor(self.step), "losses": self.losses}
        return pack(self.model, self.optimizer) | sums | state

    def advance(self, pages: Iterable[Page], until: int) -> Iterator[int]:
        """Train on these pages, which go on where the student stands; yields the step after every update.

        Raises:
            FloatingPointError: the loss of a page is not finite.
        """
        if self.step >= until:
            return
        for page in pages:
            assert page.first_step <= self.step, (page.first_step, self.step)
            batches = self.batches(page)
            end = min(until, page.first_step + len(page.views))
            for i in range(self.step - page.first_step, end - page.first_step):
                self._update(*batches[i])
                # Before the last yield, as a caller may not come back after it.
                if self.step == end and not bool(self.losses.isfinite().all()):
                    raise FloatingPointError(f"the student's loss is not finite before step {self.step}")
                yield self.step
            if self.step >= until:  # the next page may have to be labelled first
                return

    def batches(self, page: Page) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """(pixels, soft labels, hard labels) of each step, on the device: one transfer for the whole page."""
        view, device = views.concat(page.views), self.images.device
        sizes = [len(one.ids) for one in page.views]
        mixed = views.apply(view, self.images, self.pixels) if page.pixels is None else page.pixels
        target = self._target(view).split(sizes)
        soft: Sequence[Tensor | None] = [None] * len(sizes)
        if page.logits:
            soft = torch.cat(page.logits).to(device).float().split(sizes)
        return list(zip(mixed.split(sizes), soft, target, strict=True))

    def _target(self, view: views.View) -> Tensor:
        """The class of each image, or the chance of each class by the pixels that were mixed."""
        labels = self.labels[view.ids.to(self.labels.device)]
        if self.cfg.ce_label == "unmixed":
            return labels
        own = functional.one_hot(labels, int(self.labels.max()) + 1).float()
        return torch.lerp(own[view.partner.to(own.device)], own, view.lam.to(own.device)[:, None])

    def _set_rates(self) -> None:
        """The learning rates of the epoch that begins, or goes on."""
        epoch, cfg = self.step // self.per_epoch, self.cfg
        if epoch == cfg.epochs:
            return
        past = self.losses[:epoch].tolist() if cfg.schedule == "alrs" else []
        multiplier = schedules.multiplier(cfg, epoch, past)
        for i, group in enumerate(self.optimizer.param_groups):
            left_out = i > 0 and cfg.schedule == "alrs" and self.quirks.alrs_weights_only
            group["lr"] = cfg.lr * (1.0 if left_out else multiplier)

    def _update(self, pixels: Tensor, soft: Tensor | None, target: Tensor) -> None:
        """One step; nothing waits for the device."""
        loss = student_loss(self.cfg, self._forward(pixels), soft, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.averages.update()
        self.losses[self.step // self.per_epoch].add_(loss.detach(), alpha=len(pixels) / len(self.images))
        self.step += 1
        if self.step % self.per_epoch == 0:
            self._set_rates()

    def _forward(self, pixels: Tensor) -> Tensor:
        """Logits. Dropout has no generator argument: the global ones are seeded, where the model draws."""
        if not self._draws:
            return self.model(pixels)
        with fork_rng(seed_of("student", self.seed, self.step), device=pixels.device) as drawn:
            logits = self.model(pixels)
            self._draws = drawn()
        return logits

    def averaged(self) -> nn.Module:
        """A copy with the weights that `predict` reads, in eval mode and frozen."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        model.load_state_dict(self.averages.value(self.step), strict=False)
        return model

    def predict(
        self, images: Float[Tensor, "n c s s"] | Pixels, together: int = TEST_IMAGES
    ) -> Float[Tensor, "n k"]:
        """Logits of the averaged weights, in eval mode; the student itself is not changed.

        Where its buffers are not averaged, BatchNorm reads those of the raw student (official).
        """
        weights = self.averages.value(self.step)
        self.model.eval()
        try:
            return predict(lambda chunk: functional_call(self.model, weights, (chunk,)), images, together)
        finally:
            self.model.train()
