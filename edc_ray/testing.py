"""What every network and matching loss must keep to, those of the user's own too: `edc-ray check-plugin`.

A battery is a mapping from what is promised to a function that raises AssertionError where that does not
hold, and may return a remark. In a test of your own: `for check in MATCHER_CHECKS.values(): check(my_loss)`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edc_ray.core.matching import Norm
from edc_ray.core.models import capture
from edc_ray.core.models.library import on_meta
from edc_ray.core.random import fork_rng, generator

Make = Callable[[int, int], nn.Module]
CLASSES = 3
FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one check. told: why it failed, or a remark."""

    promise: str
    holds: bool
    told: str = ""


def outcomes(checks: Mapping[str, Callable[..., str | None]], *about: Any) -> Iterator[Outcome]:
    """Every check of a battery on `about`: a function of the user's own, and for networks the size in px."""
    for promise, check in checks.items():
        try:
            yield Outcome(promise, True, check(*about) or "")
        except AssertionError as error:
            yield Outcome(promise, False, str(error).splitlines()[0] if str(error) else "")
        except Exception as error:  # what is tried here may raise anything
            yield Outcome(promise, False, f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}")


def kind_of(function: Callable[..., Any], size_px: int) -> str | None:
    """ "model" for a function of (classes, size_px) that gives a network, "matcher" for one of tensors."""
    with fork_rng("kind"):
        for kind, arguments, wanted in (
            ("model", (CLASSES, size_px), nn.Module),
            ("matcher", (torch.ones(2, 3, 4), torch.full((3,), 4.0)), Tensor),
        ):
            try:
                if isinstance(function(*arguments), wanted):
                    return kind
            except Exception:  # it is of the other kind, or of none
                continue
    return None


# --- networks: a function of (classes, size_px) -------------------------------------------------------------


def _net(make: Make, size_px: int, seed: int = 0) -> nn.Module:
    with fork_rng("testing", seed):
        net = make(CLASSES, size_px)
    assert isinstance(net, nn.Module), f"gives {type(net).__name__}, not a torch.nn.Module"
    return net


def _images(count: int, size_px: int) -> Tensor:
    return torch.randn((count, 3, size_px, size_px), generator=generator("testing", "images"))


def _near(one: Tensor, other: Tensor, why: str) -> None:
    scale = float(other.detach().abs().max()) + 1e-6
    worst = float((one - other).detach().abs().max()) / scale
    assert worst < 1e-3, f"{why}: a relative difference of {worst:.1e}"


def logits(make: Make, size_px: int) -> None:
    net = _net(make, size_px)
    for count, training in ((2, True), (1, False), (3, False)):
        given = net.train(training)(_images(count, size_px))
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        assert shape == (count, CLASSES), f"gives {shape} for {count} images of {CLASSES} classes"
        assert given.isfinite().all(), "gives logits that are not finite"


def shapes(make: Make, size_px: int) -> None:
    with torch.no_grad():
        given = on_meta(lambda: make(CLASSES, size_px))(torch.empty(2, 3, size_px, size_px, device="meta"))
    assert tuple(given.shape) == (2, CLASSES), f"gives {tuple(given.shape)} on torch's meta device"


def dtypes(make: Make, size_px: int) -> None:
    net, images = _net(make, size_px).eval(), _images(2, size_px)
    given = [net.to(kind)(images.to(kind)) for kind in FLOATS]
    for each, kind in zip(given, FLOATS, strict=True):
        assert each.dtype == kind, f"gives {each.dtype} for {kind}"
    _near(given[0], given[1], "float32 and float64 differ")


def gradients(make: Make, size_px: int) -> None:
    net = _net(make, size_px)
    for training in (True, False):
        images = _images(2, size_px).requires_grad_()
        net.train(training).zero_grad()
        net(images).logsumexp(1).sum().backward()
        found = {"images": images.grad, **{name: p.grad for name, p in net.named_parameters()}}
        wrong = [name for name, grad in found.items() if grad is not None and not grad.isfinite().all()]
        assert not wrong, f"the gradient of {wrong[0]} is not finite"
        assert images.grad is not None and images.grad.abs().sum() > 0, "no gradient reaches the images"


def seeds(make: Make, size_px: int) -> None:
    one, again, other = (_net(make, size_px, seed).state_dict() for seed in (0, 0, 1))
    wrong = [name for name in one if not torch.equal(one[name], again[name])]
    assert not wrong, f"{wrong[:1]} differs though torch's generator was seeded alike: another one was used"
    drawn = [name for name, value in one.items() if value.ndim > 1]
    same = [name for name in drawn if torch.equal(one[name], other[name])]
    assert len(same) < max(1, len(drawn)), "the weights do not follow the seed of torch's generator"


def repeats(make: Make, size_px: int) -> None:
    net, images = _net(make, size_px).eval(), _images(2, size_px)
    before = images.clone()
    with torch.no_grad(), fork_rng("forward") as drawn:
        one, other = net(images), net(images)
        quiet = not drawn()
    assert quiet, "draws from the global generator in eval mode"
    assert torch.equal(one, other), "gives other logits the second time in eval mode"
    assert torch.equal(images, before), "changes the images that it is given"


def apart(make: Make, size_px: int) -> None:
    net, images = _net(make, size_px).eval(), _images(3, size_px)
    with torch.no_grad():
        together = net(images)
        _near(torch.cat([net(image[None]) for image in images]), together, "an image depends on its batch")
        _near(net(images.flip(0)).flip(0), together, "the order of the images counts")


def layers(make: Make, size_px: int) -> str | None:
    net, images = _net(make, size_px).eval(), _images(2, size_px)
    copies: dict[str, Tensor] = {}
    with torch.no_grad(), capture(net, lambda name, z: copies.setdefault(name, z.clone())):
        net(images)
    with torch.no_grad(), capture(net) as inputs:
        net(images)
    late = [name for name, z in inputs.items() if not torch.equal(z, copies[name])]
    assert not late, f"the input of {late[0]} is overwritten after the layer has read it"
    seen = [name for name, z in inputs.items() if z.ndim == 4 and len(z) == 2]
    return f"{len(seen)} layers" if seen else "it has none: a student, but no observer"


def states(make: Make, size_px: int) -> None:
    one, other = (_net(make, size_px, seed).eval() for seed in (0, 1))
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        equal = torch.equal(one(_images(2, size_px)), other(_images(2, size_px)))
    assert equal, "a network with the loaded state gives other logits: not all of it is in the state dict"


MODEL_CHECKS: dict[str, Callable[[Make, int], str | None]] = {
    "gives one finite logit a class": logits,
    "shapes are known without numbers": shapes,
    "float32 and float64": dtypes,
    "finite gradients": gradients,
    "the seed decides the weights": seeds,
    "eval mode is deterministic": repeats,
    "images do not see each other": apart,
    "layers to match are not overwritten": layers,
    "the state dict is the whole state": states,
}


# --- matching losses: a function of (difference, width) -----------------------------------------------------


def _case(kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(difference, width): 4 groups, and 3 segments of which two are narrower than the widest."""
    width = torch.tensor([5, 2, 1])
    difference = torch.randn((4, 3, 5), generator=generator("testing", "difference"), dtype=kind)
    return difference * (torch.arange(5) < width[:, None]), width.to(kind)


def norms(norm: Norm) -> None:
    for kind in FLOATS:
        difference, width = _case(kind)
        given = norm(difference, width)
        assert isinstance(given, Tensor), f"gives {type(given).__name__}, not a tensor"
        assert given.shape == (4, 3), f"gives {tuple(given.shape)} for 4 groups of 3 segments; must be (4, 3)"
        assert given.dtype == kind, f"gives {given.dtype} for {kind}"
        assert given.isfinite().all(), "is not finite"


def zero(norm: Norm) -> None:
    difference, width = _case()
    assert not norm(torch.zeros_like(difference), width).any(), "is not 0 where nothing differs"
    assert (norm(difference, width) > 0).all(), "is not above 0 where something differs"
    for entry in range(5):
        small = torch.zeros_like(difference)
        small[1, 0, entry] = -1e-3
        found = norm(small, width) > 0
        assert found[1, 0] and found.sum() == 1, "does not see that one entry differs by 0.001, there alone"


def slopes(norm: Norm) -> None:
    difference, width = _case()
    for factor in (0.0, 1e-6, 1.0, 1e6):
        leaf = (factor * difference).requires_grad_()
        norm(leaf, width).sum().backward()
        assert leaf.grad is not None and leaf.grad.isfinite().all(), (
            f"the gradient is not finite where the difference is {factor:g} times a normal one"
        )
        assert bool(leaf.grad.any()) or not factor, f"has no gradient at {factor:g} times a normal difference"


def grows(norm: Norm) -> None:
    difference, width = _case()
    near, far = norm(difference, width), norm(2 * difference, width)
    assert (far > near).all(), "does not grow where all differences double"


def groups(norm: Norm) -> None:
    difference, width = _case()
    together = norm(difference, width)
    _near(torch.cat([norm(row, width) for row in difference.split(1)]), together, "groups are not apart")
    _near(norm(difference.flip(0), width).flip(0), together, "the order of the groups counts")
    alone = [norm(difference[:, [i]], width[[i]]) for i in range(3)]
    _near(torch.cat(alone, 1), together, "segments are not apart")


def padding(norm: Norm) -> None:
    difference, width = _case()
    wider = torch.nn.functional.pad(difference, (0, 3))
    _near(norm(wider, width), norm(difference, width), "what fills up a narrow segment counts")


def same(norm: Norm) -> None:
    difference, width = _case()
    before = difference.clone(), width.clone()
    with fork_rng("matcher") as drawn:
        one, other = norm(difference, width), norm(difference, width)
        quiet = not drawn()
    assert quiet, "draws from the global generator"
    assert torch.equal(one, other), "gives another value the second time"
    assert torch.equal(difference, before[0]) and torch.equal(width, before[1]), "changes what it is given"


def precise(norm: Norm) -> None:
    difference, width = (part.double() for part in _case())
    double = norm(difference, width)
    _near(norm(*_case()), double, "float32 and float64 differ")
    nudged = norm(difference * (1 + 1e-9), width)
    assert (nudged != double).all(), "does not see a change of 1e-9 in float64"


MATCHER_CHECKS: dict[str, Callable[[Norm], str | None]] = {
    "one number a segment and group": norms,
    "zero only without a difference": zero,
    "finite gradients": slopes,
    "grows with the difference": grows,
    "groups and segments are apart": groups,
    "padding does not count": padding,
    "deterministic": same,
    "float32 and float64": precise,
}
CHECKS: dict[str, Mapping[str, Callable[..., str | None]]] = {
    "model": MODEL_CHECKS,
    "matcher": MATCHER_CHECKS,
}
