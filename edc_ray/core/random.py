"""Where randomness comes from: a generator named by what it is for. The global generator is never used up."""

import hashlib
from collections.abc import Iterator
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
def fork_rng(*parts: int | str) -> Iterator[None]:
    """For what takes no generator, as initial weights: the CPU's global one is seeded, and restored after."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would re-seed every GPU too, for good.
        torch.default_generator.manual_seed(seed_of(*parts))
        yield
