"""Where randomness comes from: a generator named by what it is for. The global generator is never used up."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def seed_of(*parts: int | str) -> int:
    """The first 63 bits of the SHA-256 of the parts joined by "/"."""
    name = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded from its name, such as ("recover", seed, group)."""
    return torch.Generator().manual_seed(seed_of(*parts))


@contextmanager
def fork_rng(*parts: int | str, device: torch.device | None = None) -> Iterator[Callable[[], bool]]:
    """For what takes no generator, as initial weights or dropout: the global ones are seeded, and restored
    after. Yields a function that says whether anything was drawn meanwhile.

    device: a GPU whose generator is meant too, beside the CPU's.
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    kept = [g.get_state() for g in generators]
    for g in generators:
        # Not torch.manual_seed: that would re-seed every GPU too, for good.
        g.manual_seed(seed_of(*parts))
    seeded = [g.get_state() for g in generators]
    try:
        yield lambda: any(not torch.equal(g.get_state(), s) for g, s in zip(generators, seeded, strict=True))
    finally:
        for g, state in zip(generators, kept, strict=True):
            g.set_state(state)
