"""DD-Ranking (arXiv 2505.13300): its scores with its formulas put right, and the layout that it reads.

LRS asks what is left of a method without its labels, ARS what is left without its augmentation; both compare
with random real images under the same labels and views. Against ddranking 0.2.0: accuracies are fractions, as
in its paper, not percents (a gain of 2 points is 0.02 in the exponential); an arm's accuracy is the last one
and not the best of the looks at test; runs are seeded. docs/ddranking.md has the list.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edc_ray.config import ConfigError, Dataset
from edc_ray.core import data

NAMES = {
    "cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny_imagenet": "TinyImageNet",
    "imagenet_1k": "ImageNet1K",
}  # fmt: skip
Channels = tuple[Sequence[float], Sequence[float]]
CIFAR: Channels = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # of CIFAR-100 too, as its code has it
MODELS = {
    "convnet_w128": "ConvNet-3", "resnet18": "ResNet-18-BN", "torchvision/resnet18": "ResNet-18-BN",
    "torchvision/resnet50": "ResNet-50-BN",
}  # fmt: skip


# --- scores -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Label:
    """hlr: hard-label recovery, lower is better. ior: improvement over random. lrs: in [0, 1]. Fractions."""

    hlr: float
    ior: float
    lrs: float


def normalized(value: float) -> float:
    """[-1, 1] to [0, 1] by (e^x - e^-1) / (e - e^-1)."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(
    full_hard: float, hard: float, soft: float, random_soft: float, weight: float = 0.5
) -> Label:
    """The label-robust score of accuracies as fractions.

    full_hard: of all real images with hard labels. hard, soft: of the condensed set with hard labels, and
    with the method's own. random_soft: of as many random real images with the latter. weight: of ior.

    Raises:
        ValueError: an accuracy is no fraction.
    """
    _fractions(full_hard, hard, soft, random_soft)
    hlr, ior = full_hard - hard, soft - random_soft
    return Label(hlr, ior, normalized(weight * ior - (1 - weight) * hlr))


def augmentation_robust(
    augmented: float, random_augmented: float, plain: float, random_plain: float, weight: float = 0.5
) -> float:
    """The augmentation-robust score, in [0, 1]: gains over random images with and without augmentation.

    Raises:
        ValueError: an accuracy is no fraction.
    """
    _fractions(augmented, random_augmented, plain, random_plain)
    return normalized(weight * (augmented - random_augmented) + (1 - weight) * (plain - random_plain))


def _fractions(*accuracies: float) -> None:
    if not all(0 <= value <= 1 for value in accuracies):
        raise ValueError(f"accuracies must be fractions in [0, 1], not percents: {accuracies}")


# The accuracies that the scores take, in order. soft: the set under the method's own labels and views. plain:
# without views. hard: with hard labels. random_: as many random real images. full_hard: all of them.
LABEL_ARMS = ("full_hard", "hard", "soft", "random_soft")
AUGMENTATION_ARMS = ("soft", "random_soft", "plain", "random_plain")


# --- its layout ---------------------------------------------------------------------------------------------


def pixels(normalization: str) -> Channels:
    """Mean and standard deviation with which it normalises what is normalised so here.

    Raises:
        ConfigError: its means are others; then its zeros at the borders of a map are other pixels.
    """
    if normalization not in ("cifar10", "imagenet"):
        legal = "DD-Ranking has its own constants for each dataset, with the means of cifar10 or imagenet"
        raise ConfigError("dataset.normalization", normalization, legal)
    return CIFAR if normalization == "cifar10" else data.CONSTANTS["imagenet"]


def images(levels: Tensor, normalization: str) -> Tensor:
    """images.pt: (classes * ipc, 3, s, s) float32 in class order, normalised by its constants."""
    return data.normalize(levels, *pixels(normalization))


def weights(network: str, state: Mapping[str, Tensor], normalization: str) -> dict[str, Tensor]:
    """A teacher's weights, in the order of its modules, under the names of its twin there.

    The twins have the same tensors in the same order; the networks for small images only name them otherwise.
    The first convolution takes up the other scale of the pixels, so the logits are the same.

    Raises:
        ConfigError: it has no such network.
    """
    ours, theirs = (torch.tensor(each[1]) for each in (data.CONSTANTS[normalization], pixels(normalization)))
    first = next(iter(state))
    state = {**state, first: state[first] * (theirs / ours)[:, None, None]}
    if network not in MODELS:
        some = f"only {', '.join(MODELS)}: choose with --set relabel.observers=[...]"
        raise ConfigError("relabel.observers", network, f"DD-Ranking has no such teacher; {some}")
    if "/" in network:
        return {name.removeprefix("net."): value for name, value in state.items()}
    if network == "resnet18":
        return dict(zip(_resnet18(), state.values(), strict=True))
    last = max(int(name.partition(".")[0]) for name in state)
    return {
        name.replace(f"{last}.", "classifier.") if name.startswith(f"{last}.") else f"features.{name}": value
        for name, value in state.items()
    }


def _resnet18() -> Iterator[str]:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def unit(conv: str, bn: str) -> Iterator[str]:
        yield f"{conv}.weight"
        yield from (f"{bn}.{name}" for name in norm)

    yield from unit("conv1", "bn1")
    for stage in range(1, 5):
        for block in range(2):
            here = f"layer{stage}.{block}"
            yield from (*unit(f"{here}.conv1", f"{here}.bn1"), *unit(f"{here}.conv2", f"{here}.bn2"))
            if stage > 1 and block == 0:
                yield from unit(f"{here}.shortcut.0", f"{here}.shortcut.1")
    yield from ("classifier.weight", "classifier.bias")


def settings(
    about: Dataset, ipc: int, student: str, teachers: Sequence[str], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration file: soft-label mode M, in which its teachers label every batch, on image folders.

    recipe: `evaluate` and `relabel` together. What it has no name for takes its nearest: RandAugment and the
    average of the weights are left out.
    """
    size_px, dataset = about.size_px, about.name
    crop = {"size": [size_px, size_px], "scale": [recipe["crop_min"], 1.0]}
    mean, std = (list(values) for values in pixels(about.normalization))
    views = [
        *([{"name": "RandomResizedCrop", "args": crop}] if recipe["crop_min"] < 1 else []),
        *([{"name": "RandomHorizontalFlip", "args": {}}] if recipe["flip"] else []),
        {"name": "ToTensor", "args": {}},
        {"name": "Normalize", "args": {"mean": mean, "std": std}},
    ]
    kl = {"temperature": recipe["temperature"], "scale_loss": False}
    loss = {"mse_weight": 1.0, "ce_weight": recipe["ce_weight"]} if recipe["loss"] == "mse" else kl
    return {
        "dataset": NAMES.get(dataset, dataset), "real_data_path": "./dataset/", "ipc": ipc,
        "im_size": [size_px, size_px], "model_name": MODELS.get(student, student.rpartition("/")[2]),
        "stu_use_torchvision": "/" in student, "tea_use_torchvision": "/" in student,
        "teacher_dir": "./teachers", "teacher_model_names": list(teachers),
        "soft_label_mode": "M", "soft_label_criterion": "mse_gt" if recipe["loss"] == "mse" else "kl",
        "loss_fn_kwargs": loss, "optimizer": recipe["optimizer"], "lr_scheduler": "cosine",
        "weight_decay": recipe["weight_decay"], "momentum": recipe["momentum"],
        "num_epochs": recipe["epochs"], "num_eval": 5, "step_size": None, "use_zca": False,
        "data_aug_func": None if recipe["mix"] == "none" else recipe["mix"],
        "aug_params": {"cutmix_p": 1.0, "beta": 1.0} if recipe["mix"] == "cutmix" else {"lambda": 0.8},
        "use_aug_for_hard": False, "random_data_format": "image", "random_data_path": "./random_data",
        "real_batch_size": 256, "syn_batch_size": recipe["batch_size"], "batch_size": recipe["batch_size"],
        "label_type": "soft",
        "custom_train_trans": views, "custom_val_trans": None, "eval_full_data": True, "num_workers": 0,
        "save_path": "./results/scores.csv", "device": "cpu", "dist": False,
    }  # fmt: skip
