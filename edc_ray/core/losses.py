"""LOSSES: what a student is trained on (method.md 5.2)."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from edc_ray.config import Evaluate

DIST_WEIGHT = 2.0  # beta = gamma of DIST

Logits = Float[Tensor, "b k"]
Scalar = Float[Tensor, ""]


def mse(logits: Logits, soft: Logits, cfg: Evaluate) -> Scalar:
    """Mean of the squared differences over images and classes ("mse_gt")."""
    return functional.mse_loss(logits, soft)


def kl(logits: Logits, soft: Logits, cfg: Evaluate) -> Scalar:
    """KL(softmax(soft / T) || softmax(logits / T)), mean over images, without the factor T^2 (official)."""
    ours, theirs = ((x / cfg.temperature).log_softmax(1) for x in (logits, soft))
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def cosine(logits: Logits, soft: Logits, cfg: Evaluate) -> Scalar:
    """1 - cosine of the angle between the logits, mean over images."""
    return 1 - functional.cosine_similarity(logits, soft).mean()


def dist(logits: Logits, soft: Logits, cfg: Evaluate) -> Scalar:
    """DIST: 1 - correlation of softmax(. / T), over the classes of an image and over the images of a class.

    With the factor T^2 (official).
    """
    ours, theirs = ((x / cfg.temperature).softmax(1) for x in (logits, soft))
    between, within = (1 - _correlation(ours, theirs, axis).mean() for axis in (1, 0))
    return cfg.temperature**2 * DIST_WEIGHT * (between + within)


def _correlation(a: Tensor, b: Tensor, axis: int) -> Tensor:
    a, b = (x - x.mean(axis, keepdim=True) for x in (a, b))
    return functional.cosine_similarity(a, b, dim=axis)


LOSSES: dict[str, Callable[[Tensor, Tensor, Evaluate], Tensor] | None] = {
    "mse": mse,
    "kl": kl,
    "cosine": cosine,
    "dist": dist,
    "hard": None,  # no soft labels: the cross-entropy alone, whatever ce_weight is
}


def student_loss(
    cfg: Evaluate, logits: Logits, soft: Logits | None, target: Int[Tensor, " b"] | Logits
) -> Scalar:
    """The distance to the soft labels + ce_weight * cross-entropy to the hard label.

    soft: None where `cfg.loss` is "hard". target: the classes; or, mixed, the chance of each.
    """
    entropy, distance = functional.cross_entropy(logits, target), LOSSES[cfg.loss]
    if distance is None:
        return entropy
    assert soft is not None
    return distance(logits, soft, cfg) + cfg.ce_weight * entropy
