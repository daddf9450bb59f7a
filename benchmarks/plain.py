"""The plain baseline: synthesis, statistics and evaluation organised as the official code is (method.md 7.2).

Written from method.md alone, to be timed, not to be used: a Python hook a layer, copies for the variances and
the patches, small operations layer by layer, one group and one observer at a time, a loop over the images of
a batch, PIL files, reads that wait for the device. It is not made slower than that, and the official bugs
are left out: losses, gradients and moments are those of edc_ray, which the benchmarks check first.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from edc_ray.config import Evaluate, Recover, Relabel
from edc_ray.core import schedules
from edc_ray.core.fit import parameter_groups
from edc_ray.core.stats import Moments

Pixels = tuple[Sequence[float], Sequence[float]]  # mean and deviation of the channels
Pair = tuple[Tensor, Tensor]  # mean and variance


def hooked(model: nn.Module) -> dict[str, nn.Module]:
    """Every convolution and BatchNorm, in the order of `named_modules` (method.md 2.1)."""
    kinds = nn.Conv2d | nn.BatchNorm2d
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


# --- the moments of a batch (method.md 2.2) -----------------------------------------------------------------


def channel_moments(z: Tensor) -> Pair:
    """Of each channel; the variance on a copy with the channels first."""
    rows = z.permute(1, 0, 2, 3).contiguous().view(z.shape[1], -1)
    return z.mean([0, 2, 3]), rows.var(1, unbiased=False)


def resized(z: Tensor, patch: int) -> Tensor:
    """Up to multiples of `patch`; also where they are (W3)."""
    size = [math.ceil(side / patch) * patch for side in z.shape[-2:]]
    return functional.interpolate(z, size, mode="bilinear", align_corners=False)


def patch_moments(z: Tensor, patch: int) -> Pair:
    """Of each cell, on a copy with the cells first."""
    cut = resized(z, patch).unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # n c u p v q
    rows = cut.permute(2, 4, 0, 1, 3, 5).contiguous().view(cut.shape[2] * cut.shape[4], -1)
    return rows.mean(1), rows.var(1, unbiased=False)


# --- synthesis (method.md 2.6, 3.3, 3.5) --------------------------------------------------------------------


class Kind:
    """One kind of statistic of a layer, of its channels or of its cells: what it should be, and was so far.

    second: E[variance] + E[mean^2] of each class, for the variance over all pixels of a mix of classes.
    """

    def __init__(self, whole: Pair, sums: Tensor, count: Tensor, device: torch.device) -> None:
        self.whole = tuple(part.flatten().float().to(device) for part in whole)
        mean, square, var = (sums / count.clamp_min(1)[:, None, None]).unbind(1)
        self.mean, self.second = mean.float().to(device), (var + square).float().to(device)
        self.running = [torch.zeros_like(part) for part in self.whole]

    def residual(self, now: Pair, labels: Tensor, momentum: float, correction: float, share: float) -> Tensor:
        """(1 - a) R_global + a R_class, a = share; the running statistics move on."""
        values = []
        for i, part in enumerate(now):
            self.running[i] = momentum * self.running[i] + (1 - momentum) * part.detach()
            values.append(self.running[i] / correction + part - part.detach())
        mean = self.mean[labels].mean(0)
        var = self.second[labels].mean(0) - mean**2
        far = torch.norm(self.whole[1] - values[1], 2) + torch.norm(self.whole[0] - values[0], 2)
        near = torch.norm(var - values[1], 2) + torch.norm(mean - values[0], 2)
        return (1 - share) * far + share * near


class Watch:
    """The hook of one layer: the moments of its input and their residual, at every forward."""

    def __init__(self, module: nn.Module, moments: Moments, cfg: Recover, patch: int, labels: Tensor) -> None:
        self.cfg, self.patch, self.labels, self.visits, self.on = cfg.matching, patch, labels, 0, True
        self.residual: Tensor | float = 0.0
        totals, device = moments.count.sum(), labels.device
        self.kinds = []
        for sums in (moments.channel, moments.patch):
            if sums is not None:
                mean, square, var = sums.sum(0) / totals
                whole = mean, var + square - mean**2
                if isinstance(module, nn.BatchNorm2d):
                    whole = module.running_mean, module.running_var
                self.kinds.append(Kind(whole, sums, moments.count, device))
        module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self.on:
            return
        z, cfg = inputs[0], self.cfg
        self.visits += 1
        correction = 1 - cfg.momentum**self.visits if cfg.bias_correction else 1.0
        now = [channel_moments(z)]
        if len(self.kinds) > 1:
            now.append(patch_moments(z, self.patch))
        terms = [
            kind.residual(pair, self.labels, cfg.momentum, correction, cfg.class_weight)
            for kind, pair in zip(self.kinds, now, strict=True)
        ]
        self.residual = sum(terms[1:], terms[0])


class Synthesis:
    """One group of images, an observer after another; the hooks stay in the observers.

    moments: of each observer by layer name, for the targets. start: normalised by `pixels`.
    Of cfg: class_form pooled, loss l2, no drop_rate, flatness none or logits in the paper's form.
    """

    def __init__(
        self, cfg: Recover, observers: Sequence[nn.Module], moments: Sequence[Mapping[str, Moments]],
        labels: Tensor, start: Tensor, pixels: Pixels, patch: int,
    ) -> None:  # fmt: skip
        self.cfg, self.observers, self.labels, self.turn = cfg, observers, labels, 0
        self.watches = [
            [Watch(module, found[name], cfg, patch, labels) for name, module in hooked(model).items()]
            for model, found in zip(observers, moments, strict=True)
        ]
        self.images = start.clone().requires_grad_(True)
        self.averaged, self.best = start.clone(), start.clone()
        self.adam = torch.optim.Adam([self.images], lr=cfg.lr, betas=cfg.betas, eps=1e-8)
        self.low, self.high = ([(edge - m) / s for m, s in zip(*pixels, strict=True)] for edge in (0.0, 1.0))

    def loss(self, k: int, augment: Callable[[Tensor], Tensor]) -> Tensor:
        """Of observer k, which is visited. augment: called twice, must do the same both times."""
        cfg, watches = self.cfg, self.watches[k]
        logits = self.observers[k](augment(self.images))
        loss = functional.cross_entropy(logits, self.labels)
        first, *others = (watch.residual for watch in watches)
        loss = loss + cfg.matching.weight * sum(others, cfg.matching.first_multiplier * first)
        with torch.no_grad():
            averaged = augment(self.averaged)  # also where it is not looked at (W5)
        if cfg.flatness.kind == "logits":
            loss = loss + cfg.flatness.weight * self._flatness(k, logits, averaged)
        return loss

    def _flatness(self, k: int, logits: Tensor, averaged: Tensor) -> Tensor:
        for watch in self.watches[k]:
            watch.on = False
        with torch.no_grad():
            anchor = functional.log_softmax(self.observers[k](averaged) / self.cfg.flatness.temperature, 1)
        for watch in self.watches[k]:
            watch.on = True
        ours = functional.log_softmax(logits / self.cfg.flatness.temperature, 1)
        return functional.kl_div(anchor, ours, reduction="batchmean", log_target=True)

    def iterate(self) -> float:
        """One iteration; its loss."""
        cfg, size = self.cfg, self.images.shape[-1]
        rate = cfg.lr * 0.5 * (1 + math.cos(math.pi * self.turn / cfg.iterations))
        for group in self.adam.param_groups:
            group["lr"] = rate
        seed = random.randrange(2**31)

        def augment(images: Tensor) -> Tensor:
            torch.manual_seed(seed)
            crop = transforms.RandomResizedCrop(size, (cfg.crop_min, 1.0), antialias=False)
            return transforms.Compose([crop, transforms.RandomHorizontalFlip()])(images)

        self.adam.zero_grad()
        loss = self.loss(self.turn % len(self.observers), augment)
        loss.backward()
        beta = cfg.flatness.beta
        self.averaged = beta * self.averaged + (1 - beta) * self.images.detach()
        self.adam.step()
        with torch.no_grad():
            for channel, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
                self.images[:, channel] = torch.clamp(self.images[:, channel], low, high)
        self.best = self.images.detach().clone()
        self.turn += 1
        return loss.item()


# --- statistics (method.md 2.3, 2.4) ------------------------------------------------------------------------


class Tally:
    """The hook of one layer in the pass over the real images: batch by batch, and image by image.

    whole: of a convolution, sums over batches of share * (mean, variance). classes: sums over the images of
    each class of (mean, variance). Both once for the channels and, of a convolution, once for the cells.
    seen: images of each class.
    """

    def __init__(self, module: nn.Module, classes: int, patch: int, images: int) -> None:
        self.conv, self.patch, self.images = isinstance(module, nn.Conv2d), patch, images
        self.labels = torch.zeros(0)
        self.whole: list[list[Any]] = [[0.0, 0.0] for _ in range(1 + self.conv)]
        self.classes: list[list[list[Any]]] = [
            [[0.0] * classes for _ in range(2)] for _ in range(1 + self.conv)
        ]
        self.seen = [0] * classes
        self.handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        z = inputs[0]
        if self.conv:
            for kind, now in enumerate((channel_moments(z), patch_moments(z, self.patch))):
                for i, part in enumerate(now):
                    self.whole[kind][i] = self.whole[kind][i] + part * (len(z) / self.images)
        rows = z.contiguous().view(*z.shape[:2], -1)
        each = [(z.mean([2, 3]), rows.var(2, unbiased=False))]
        if self.conv:
            each.append(self._cells(z))
        for image in range(len(z)):
            label = int(self.labels[image].item())
            self.seen[label] += 1
            for kind, pair in enumerate(each):
                for i, part in enumerate(pair):
                    self.classes[kind][i][label] = self.classes[kind][i][label] + part[image]

    def _cells(self, z: Tensor) -> Pair:
        cut = resized(z, self.patch).unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        rows = cut.permute(0, 2, 4, 1, 3, 5).contiguous().view(len(z), cut.shape[2] * cut.shape[4], -1)
        return rows.mean(2), rows.var(2, unbiased=False)


class Decoded(Dataset[tuple[Any, int]]):
    """Bytes (n, 3, h, w) that become PIL images, one by one, whenever they are asked for."""

    def __init__(self, images: Tensor, labels: Tensor, change: Callable[[Any], Any]) -> None:
        self.images, self.labels, self.change = images.permute(0, 2, 3, 1).numpy(), labels.tolist(), change

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.change(Image.fromarray(self.images[index])), self.labels[index]


def shifted(size: int, pad_px: int, pixels: Pixels) -> transforms.Compose:
    """The augmentation of one real image: a shifted crop and a flip."""
    crop, flip = transforms.RandomCrop(size, padding=pad_px), transforms.RandomHorizontalFlip()
    return transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(*pixels)])


@torch.no_grad()
def statistics(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], images: int, classes: int, patch: int
) -> dict[str, Tally]:
    """One observer's own pass over the data: (images, labels) in batches, `images` in all."""
    tallies = {name: Tally(module, classes, patch, images) for name, module in hooked(model).items()}
    for pixels, labels in batches:
        for tally in tallies.values():
            tally.labels = labels
        model(pixels)
    for tally in tallies.values():
        tally.handle.remove()
    return tallies


# --- evaluation (method.md 5) -------------------------------------------------------------------------------


class Files(Dataset[tuple[Any, int]]):
    """Images in PIL's hands, decoded from their files whenever they are asked for."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], change: Callable[[Any], Any]) -> None:
        self.paths, self.labels, self.change = paths, labels, change

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        with Image.open(self.paths[index]) as file:
            return self.change(file.convert("RGB")), self.labels[index]


def written(images: Tensor, folder: Path) -> list[Path]:
    """Bytes (n, 3, h, w) as PNG files."""
    paths = [folder / f"{i:05d}.png" for i in range(len(images))]
    for image, path in zip(images.permute(0, 2, 3, 1).cpu().numpy(), paths, strict=True):
        Image.fromarray(image).save(path)
    return paths


def changes(cfg: Relabel, size: int, pixels: Pixels) -> transforms.Compose:
    """Of one training image: RandAugment on PIL, where there is any, then crop and flip of the tensor."""
    steps: list[Any] = []
    if cfg.randaugment_ops:
        steps.append(transforms.RandAugment(cfg.randaugment_ops, cfg.randaugment_magnitude))
    steps += [
        transforms.ToTensor(),
        transforms.RandomResizedCrop(size, (cfg.crop_min, 1.0), antialias=True),
        transforms.RandomHorizontalFlip(0.5 if cfg.flip else 0.0),
        transforms.Normalize(*pixels),
    ]
    return transforms.Compose(steps)


def cutmix(images: Tensor) -> Tensor:
    """One box a batch, pasted in place from a permutation of it (method.md 4)."""
    lam, size = random.betavariate(1.0, 1.0), images.shape[-1]
    half = int(size * math.sqrt(1 - lam)) // 2
    row, column = random.randrange(size), random.randrange(size)
    rows = slice(max(row - half, 0), min(row + half, size))
    columns = slice(max(column - half, 0), min(column + half, size))
    order = torch.randperm(len(images), device=images.device)
    images[:, :, rows, columns] = images[order, :, rows, columns]
    return images


class Evaluation:
    """A student, an epoch after another: labels from the teachers at every step, average of the weights.

    teachers: in eval mode, on the student's device. workers: of the loader, which starts them anew at every
    epoch; what they spend is not in the time of this process.
    """

    def __init__(
        self, cfg: Evaluate, student: nn.Module, teachers: Sequence[nn.Module], data: Files, batch_size: int,
        checkpoint: Path, workers: int = 0,
    ) -> None:  # fmt: skip
        self.cfg, self.student, self.teachers, self.checkpoint = cfg, student.train(), teachers, checkpoint
        self.device, self.epoch = next(student.parameters()).device, 0
        self.loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers)
        groups = parameter_groups(student, cfg.weight_decay)
        self.adam = torch.optim.AdamW(groups, lr=cfg.lr)
        self.rate = cfg.ema_rate if cfg.ema_rate is not None else 0.99
        self.average = {name: p.detach().clone() for name, p in student.named_parameters()}

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """One update on normalised images; (loss, accuracy), read at once."""
        mixed, labels = cutmix(images.to(self.device)), labels.to(self.device)
        with torch.no_grad():
            soft = torch.stack([teacher(mixed) for teacher in self.teachers]).mean(0)
        logits = self.student(mixed)
        loss = functional.mse_loss(logits, soft)
        loss = loss + self.cfg.ce_weight * functional.cross_entropy(logits, labels)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            for name, p in self.student.named_parameters():
                self.average[name] = self.rate * self.average[name] + (1 - self.rate) * p.detach()
        correct = (logits.argmax(1) == labels).float().sum()
        return loss.item(), correct.item() / len(labels)

    def train(self) -> float:
        """An epoch; its mean loss. Writes a checkpoint of the student and the optimizer."""
        rate = self.cfg.lr * schedules.multiplier(self.cfg, self.epoch)
        for group in self.adam.param_groups:
            group["lr"] = rate
        losses = [self.step(images, labels)[0] for images, labels in self.loader]
        self.epoch += 1
        state = {"student": self.student.state_dict(), "optimizer": self.adam.state_dict()}
        torch.save(state | {"epoch": self.epoch}, self.checkpoint)
        return sum(losses) / len(losses)
