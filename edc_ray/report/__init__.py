"""What a sweep leaves for people: the final table, report.html, pictures, Parquet, best.yaml."""

from edc_ray.report.compare import compare
from edc_ray.report.files import open_claim, write, write_unfinished
from edc_ray.report.images import grid
from edc_ray.report.table import condensed, leaderboard, table

__all__ = ["compare", "condensed", "grid", "leaderboard", "open_claim", "table", "write", "write_unfinished"]
