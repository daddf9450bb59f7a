"""What a student is trained on (method.md 5.2)."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def student_loss(
    logits: Float[Tensor, "b k"], soft: Float[Tensor, "b k"], hard: Int[Tensor, " b"], ce_weight: float
) -> Float[Tensor, ""]:
    """MSE of the logits + ce_weight * cross-entropy to the un-mixed label ("mse_gt", method.md 5.2)."""
    return functional.mse_loss(logits, soft) + ce_weight * functional.cross_entropy(logits, hard)
