"""A part of the report: text, tables and pictures, which the page and the files both show."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

HALF = "+- "  # before the name of a column: its half width
Rows = Sequence[Mapping[str, Any]]
DPI = 100


@dataclass(frozen=True, slots=True)
class Section:
    """tables: name -> rows, each a mapping of column to value. pictures: name -> PNG. captions: the lines
    before a picture, by its name.

    Names are those of the files. A column whose name ends in "%" has percentages; "+- NAME" is the half width
    of an interval, and stands in the cell of the column NAME.
    """

    title: str
    text: Sequence[str] = ()
    tables: Mapping[str, Rows] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)


@contextmanager
def drawing() -> Iterator[Any]:
    """Pyplot without a screen, in one style. Optuna sets the style of whatever is drawn after it, and warns
    that its pictures are experimental.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.exceptions import ExperimentalWarning

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of Matplotlib, about an axis with one trial
        plt.style.use("ggplot")
        plt.rcParams.update({"figure.constrained_layout.use": True, "figure.figsize": (6.4, 4)})
        try:
            yield plt
        finally:
            plt.close("all")


def png(figure: Any) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI, bbox_inches="tight")
    return sink.getvalue()
