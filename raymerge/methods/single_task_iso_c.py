"""Iso-C of every expert alone: what flattening costs where there is nothing to merge."""

from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method
from raymerge.methods.iso_c import iso_c, iso_c_factorise

# Iso-C with T = 1. Source: Marczak et al. 2025, arXiv:2502.04959, Figure 9.
METHOD = Method(
    name="single-task-iso-c",
    title="Iso-C, single task",
    source="arXiv:2502.04959",
    alpha=Alpha(search=Interval(0.1, 3.0, 0.1), paper=AlphaGrid(3.0, 30)),
    kind="single-task",
    matrices="svd",
    merge=iso_c,
    factorise=iso_c_factorise,
)
