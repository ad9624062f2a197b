"""Percentile: the grid spans the bulk of what was seen; the rest is clipped."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Interval

from sq.activation.histogram import Histogram
from sq.grid.uniform_grid import per_tensor
from sq.types.problem import Grid

Percent = Annotated[float, Interval(gt=0, le=100)]


def fit(histogram: Histogram, bits: int, *, symmetric: bool, percentile: Percent) -> Grid:
    """Fit a grid to the share of values that `percentile` says.

    What is left out is split evenly between both ends, and taken from the upper end alone if
    nothing below zero was seen. Values are taken to lie evenly within a bin of the histogram.

    Parameters
    ----------
    bits : 1 to 16 (2 to 16 if signed and symmetric)
    symmetric : codes around zero, as far as the further of both ends, or from zero up if nothing
    below it was
        seen; otherwise affine
    percentile : of values kept, in (0, 100]; 100 is min-max

    Raises
    ------
    SqError : `bits` outside its range

    Source
    ------
    Wu et al. 2020, arXiv:2004.09602, section 5 (there of absolute values; ends apart are our
    reading).
    """
    low, high = histogram.low, histogram.high
    left_out = 1 - percentile / 100
    if low < 0:
        low, high = quantile(histogram, left_out / 2), quantile(histogram, 1 - left_out / 2)
    elif high > 0:
        high = quantile(histogram, 1 - left_out)
    if symmetric and histogram.low < 0:  # signed, even where the cut leaves nothing below zero
        high = max(abs(low), abs(high))
        low = -high
    return per_tensor(low, high, bits, symmetric)


def quantile(histogram: Histogram, share: float) -> float:
    """Return the value below which `share`, in [0, 1], of what was seen lies."""
    counted = np.concatenate([[0.0], histogram.counts.cumsum(0).numpy()])
    return float(np.interp(share * counted[-1], counted, histogram.edges().numpy()))
