"""One condensed set looked at: arms that differ in one thing, the same seeds and vectors for each."""

from edc_ray.diagnosis.found import Line, lines, rows, seen, table, wanted, write
from edc_ray.diagnosis.looks import LOOKS, Look, Statement, looks

__all__ = ["LOOKS", "Line", "Look", "Statement", "lines", "looks", "rows", "seen", "table", "wanted", "write"]
