"""Min-max: the grid spans all values."""

from __future__ import annotations

from sq.activation.histogram import Histogram
from sq.grid.uniform_grid import per_tensor
from sq.types.problem import Grid


def fit(histogram: Histogram, bits: int, *, symmetric: bool) -> Grid:
    """Fit a grid to the minimum and maximum. Nothing is clipped; an outlier makes steps wide.

    Parameters
    ----------
    bits : 1 to 16 (2 to 16 if signed and symmetric)
    symmetric : codes around zero, or from zero up if no value is negative; otherwise affine

    Raises
    ------
    SqError : `bits` outside its range

    Source
    ------
    Krishnamoorthi 2018, arXiv:1806.08342, section 2.
    """
    return per_tensor(histogram.low, histogram.high, bits, symmetric)
