"""Stored labels can always be made again: those that take too much room are removed."""

from collections.abc import Collection, Mapping

from edc_ray.artifacts import Store, every_artifact, holding, remove


def evict(store: Store, limit: float, held: Collection[str], used: Mapping[str, int]) -> list[str]:
    """Remove labels until they take at most `limit` bytes, the least recently used first; returns the keys.

    held: keys that stay. used: key -> place in the order of use; those without one go first, by the age of
    their files.
    """
    found = [holding(artifact) for artifact in every_artifact(store) if artifact.stage == "relabel"]
    found.sort(key=lambda each: (used.get(each.artifact.key, -1), each.at))
    over, gone = sum(each.bytes for each in found) - limit, list[str]()
    for each in found:
        if over > 0 and each.artifact.key not in held:
            remove(each.artifact)
            over -= each.bytes
            gone.append(each.artifact.key)
    return gone
