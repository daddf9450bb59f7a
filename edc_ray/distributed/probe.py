"""Does this node see the driver's store? A folder of the node's own in its place is the commonest mistake."""

import platform
import time
import uuid
from dataclasses import dataclass

import ray

from edc_ray.artifacts import Store, StoreError

SEE_SECONDS = 20.0  # a shared folder may show a new file late, or be away for a moment


class NotShared(OSError):
    """A node does not see the driver's store. No other unit would fare better there, so it ends the job."""

    hopeless = True

    def __init__(self, node: str, root: str, why: str) -> None:
        super().__init__(node, root, why)
        self.args = (node, root, why)  # what pickle gives back to __init__
        self.node, self.root, self.why = node, root, why

    def __str__(self) -> str:
        legal = "runtime.store must be a folder that all nodes share, or a URI"
        return f"node {self.node} does not see the store {self.root}: {self.why}; {legal}"


@dataclass(frozen=True, slots=True)
class Site:
    """A store that the driver has put a probe into."""

    root: str
    probe: str

    @classmethod
    def mark(cls, root: str) -> "Site":
        """The driver drops the probe at its end."""
        site = cls(root, f"probes/{uuid.uuid4().hex}")
        Store(root).put(site.probe, here().encode())
        return site

    def look(self, seconds: float = SEE_SECONDS) -> Store:
        """The store, seen from the node of this process.

        Raises:
            NotShared: names the node.
        """
        store, ends = Store(self.root), time.monotonic() + seconds
        while True:
            try:
                if store.exists(self.probe):
                    return store
                why = "the driver's probe is not there"
            except StoreError as error:
                why = str(error)
            if time.monotonic() >= ends:
                raise NotShared(here(), self.root, why)
            time.sleep(min(0.5, seconds))


def here() -> str:
    """This node, for a person: address, host and the beginning of Ray's id."""
    name = ray.get_runtime_context().get_node_id()[:8] if ray.is_initialized() else "-"
    return f"{ray.util.get_node_ip_address()} (host {platform.node()}, Ray node {name})"
