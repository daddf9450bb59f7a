"""How far images are from the real ones of their class, as a network sees them."""

import scipy  # loads scipy.optimize when it is asked for
import torch
from jaxtyping import Float, Int
from torch import Tensor


def class_distances(
    ours: Float[Tensor, "m d"],
    labels: Int[Tensor, " m"],
    real: Float[Tensor, "n d"],
    real_labels: Int[Tensor, " n"],
) -> Float[Tensor, " m"]:
    """Squared distance of each image to the mean of its class, over that of the class's real images.

    1: as far as a real image is on average.
    """
    found = torch.empty(len(ours), dtype=torch.float64, device=ours.device)
    for label in labels.unique():
        members = real[real_labels == label].double()
        centre = members.mean(0)
        usual = (members - centre).square().sum(1).mean().clamp_min(1e-12)  # one image has no spread
        found[labels == label] = (ours[labels == label].double() - centre).square().sum(1) / usual
    return found


def transport(ours: Float[Tensor, "m d"], real: Float[Tensor, "n d"]) -> float:
    """Squared 2-Wasserstein distance of two sets of points, exact.

    The cheapest way to move one onto the other: each of ours to n / m of the real ones.

    Raises:
        ValueError: n is no multiple of m.
    """
    each, left = divmod(len(real), len(ours))
    if left or not each:
        raise ValueError(f"{len(real)} real points are no multiple of {len(ours)}")
    apart = torch.cdist(ours.double(), real.double()).square().cpu()
    costs = apart.repeat_interleave(each, 0).numpy()
    rows, columns = scipy.optimize.linear_sum_assignment(costs)
    return float(costs[rows, columns].mean())
