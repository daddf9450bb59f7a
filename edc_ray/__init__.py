"""Dataset condensation (EDC) that runs in one process or on a Ray cluster.

    condensed = edc_ray.condense(images, labels, ipc=10)
    print(edc_ray.evaluate(condensed, student="resnet18", test=(test_images, test_labels)))
    condensed = edc_ray.load(condensed.path)

See `edc_ray.library`, which is imported when one of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edc_ray.library import Condensed, Evaluated, condense, evaluate, load

__all__ = ["Condensed", "Evaluated", "condense", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edc_ray import library

    return getattr(library, name)
