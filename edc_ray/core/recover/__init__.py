"""Optimisation of the condensed images, group by group (method.md 3.2-3.5).

A group is the images that share batch statistics. Many groups go through one forward with moments per group;
no group depends on another, so the cut of the groups over processes changes no image, and the number of
groups in one forward changes them by float rounding only. Only where the running statistics are not reset
(B6) do groups follow on each other: then they are a `Chain`.
"""

from edc_ray.core.recover.chain import Chain
from edc_ray.core.recover.loop import State, begin, check, finished, synthesize
from edc_ray.core.recover.loss import crop_min, group_losses, logit_flatness, measured, random_crops
from edc_ray.core.recover.problem import Group, Problem, cut, local_picks, problem

__all__ = [
    "Chain", "Group", "Problem", "State", "begin", "check", "crop_min", "cut", "finished", "group_losses",
    "local_picks", "logit_flatness", "measured", "problem", "random_crops", "synthesize",
]  # fmt: skip
