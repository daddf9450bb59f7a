"""WHY: the reason of every field in which a version of EDC differs from `fixed`, by P- and B-number.

The numbers are those of method.md 6: B = a defect or surprise of the code, P = paper against code.
"""

_BOTH = {
    "squeeze.batch_size": "the squeeze script's",
    "squeeze.lr": "the squeeze script's",
    "squeeze.clip_norm": "none in the scripts; on CIFAR still 5, without which ConvNetD1 and D2, which no "
    "script trains (B10), end at chance",
    "squeeze.schedule": "the squeeze script's",
    "squeeze.weight_decay": "the squeeze script's",
    "squeeze.zeta": "the squeeze script's: ends at 3/4 of the peak",
    "init.replacement": "the script draws again and again from the class; the paper does not say",
    "evaluate.ema_bias_correction": "method.md 5.5: the average starts at the random weights",
    "evaluate.ema_buffers": "method.md 5.5: averaged weights run with the raw student's BatchNorm buffers",
}
WHY: dict[str, dict[str, str]] = {
    "paper": _BOTH | {
        "squeeze.epochs": "the paper's (its pre-training ablation for CIFAR-10; P10)",
        "squeeze.observers": "P11; its EfficientNet-V2 is read as B0, the slip that it makes on ImageNet-1k",
        "recover.matching.class_form": "P1: Eq. 5 has one term for each class of the batch",
    },
    "official": _BOTH | {
        "dataset.normalization": "B17: CIFAR-100's constants",
        "squeeze.weights": "P10: ImageNet's weights, with a new head (and a stock stem: B11 cannot run)",
        "squeeze.epochs": "the squeeze script's",
        "squeeze.checkpoint_epoch": "B9: written at every tenth epoch index only",
        "statistics.conv_variance": "method.md 2.3: the mean over mini-batches",
        "statistics.batch_size": "method.md 2.3",
        "init.pool": "method.md 3.1: drawn with replacement from 50 RDED images a class (less often twice on "
        "ImageNet-10, which is left out)",
        "recover.iterations": "P6",
        "recover.crop_min": "P12: no weak augmentation on CIFAR-10",
        "recover.group_images": "P14, method.md 3.2: each GPU measures its own slice of the batch",
        "recover.observers": "P10: three in the synthesis, four for the labels",
        "recover.format": "B16: JPEG; PNG elsewhere, by truncation",
        "recover.matching.class_form": "P2: the mean variance inside one image",
        "recover.matching.momentum": "the recover script's",
        "recover.matching.bias_correction": "B5: the running statistics start at 0",
        "recover.matching.reset": "B6: they go on from one batch of images to the next",
        "recover.flatness.kind": "P5: no script has it on",
        "relabel.crop_min": "P12: no weak augmentation on CIFAR-10",
        "relabel.observers": "P9: five of the eight",
        "evaluate.optimizer": "P7",
        "evaluate.lr": "P7",
        "evaluate.momentum": "P7",
        "evaluate.weight_decay": "P7",
        "evaluate.schedule": "P8; on ImageNet-1k by B1, `cos` that is linear",
        "evaluate.report_epochs": "B25: where test is read; its maximum is a diagnostic, never the accuracy",
        "quirks.swap_class_patch": "B2: exchanged when saved",
        "quirks.double_conv_targets": "B4: with the statistics that the repository ships",
        "quirks.verifier_updates": "B7; ImageNet-1k's verifier is a network of its own",
        "quirks.alphabetical_init": "B18: unless the initial images were numbered in the list's order",
    },
}  # fmt: skip
# Rows of method.md 6 that no field of a version shows.
LEFT_OUT = {
    "B3, B10, B22, B24": "crashes, missing files and wrong paths: nothing to reproduce",
    "B8, B13, B15, B19, B20": "cost only, or code that no shipped command runs; B8's half-precision "
    "teachers: ours are rounded after the mean",
    "B12": "the patch shuffle shuffles nothing",
    "B14": "images left over by the number of GPUs: there are none at these sizes",
    "B21, B23": "depends on the torchvision version; on the clock, as nothing is seeded. Ours repeat",
    "B26, P4": "no row uses ALRS (`quirks.alrs_weights_only`) or another alpha than .5",
    "P3, P15": "patch moments, the factor 10, r, the half-width MobileNetV2: the code's in all versions",
    "P13": "appendix and scripts say original images, the history RDED crops: `--set init.kind=rded`",
    "2.6, 2.7": "a convolution that `drop_rate` leaves out still moves its running statistics",
    "3.1": "initial images are not flipped at random; training images of 224 px are centre-cropped before "
    "their augmentation, not cropped from the whole photograph",
    "3.2": "where statistics are not reset (B6), all groups follow one another, not every fourth as on "
    "four GPUs; nor does a verifier look once more at the end of a group (B7)",
    "P16, P17": "contradictions inside the paper; the number of its runs is not stated",
}
VERSIONS = tuple(WHY)
