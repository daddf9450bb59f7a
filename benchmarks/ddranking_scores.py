"""The scores of the real DD-Ranking package for a set that `edc-ray export --format ddranking` wrote.

Runs where ddranking 0.2.0 is installed, in an environment of its own, and imports nothing of edc_ray:

    python benchmarks/ddranking_scores.py lrs FOLDER PARQUET [--lr 0.001]

PARQUET is a folder with train.parquet and test.parquet: they stand in for torchvision's CIFAR-10, which would
be downloaded. Prints the accuracies that the package logs, and its table as it is: on percents.
"""

import argparse
import io
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image


def cifar_of(folder: str) -> type:
    """A stand-in for torchvision.datasets.CIFAR10 with the images of Parquet files."""

    class Cifar10:
        def __init__(self, root: str, train: bool, download: bool, transform: Any) -> None:
            table = pq.read_table(Path(folder) / f"{'train' if train else 'test'}.parquet")
            self.images = [Image.open(io.BytesIO(b)).convert("RGB") for b in table["image"].to_pylist()]
            self.targets, self.transform = table["label"].to_pylist(), transform

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.transform(self.images[index]), self.targets[index]

    return Cifar10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("score", choices=("lrs", "ars"))
    parser.add_argument("folder")
    parser.add_argument("parquet")
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from torchvision import datasets

    datasets.CIFAR10 = cifar_of(os.path.abspath(args.parquet))
    from ddranking.config import Config
    from ddranking.metrics import AugmentationRobustScore, LabelRobustScoreSoft

    os.chdir(args.folder)
    settings = yaml.safe_load(Path("settings.yaml").read_text())
    settings |= {"dataset": "CIFAR10", "num_eval": 1, "random_data_path": f"./random_data/{os.getpid()}"}
    teachers = sorted(Path("teachers").iterdir())[0]
    (Path("teachers") / "CIFAR10").exists() or (Path("teachers") / "CIFAR10").symlink_to(teachers.name)
    kind = LabelRobustScoreSoft if args.score == "lrs" else AugmentationRobustScore
    metric = kind(config=Config(settings))
    print(metric.compute_metrics(image_path="images", syn_lr=args.lr), file=sys.stderr)


if __name__ == "__main__":
    main()
