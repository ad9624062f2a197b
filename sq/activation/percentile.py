"""Percentile: the grid spans most of the values; outliers are clipped."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Interval

from sq.activation.histogram import Histogram
from sq.grid.uniform_grid import per_tensor
from sq.types.problem import Grid

Percent = Annotated[float, Interval(gt=0, le=100)]


def fit(histogram: Histogram, bits: int, *, symmetric: bool, percentile: Percent) -> Grid:
    """Fit a grid to a share of the values.

    The clipped share is split evenly between both ends; if no value is negative, only the upper end
    is clipped. Values are taken to be spread evenly within a bin of the histogram.

    Parameters
    ----------
    bits : 1 to 16 (2 to 16 if signed and symmetric)
    symmetric : codes around zero, up to the end further away, or from zero up if no value is
        negative; otherwise affine
    percentile : share of the values inside the range, in (0, 100]; 100 is min-max

    Raises
    ------
    SqError : `bits` outside its range

    Source
    ------
    Wu et al. 2020, arXiv:2004.09602, section 5 (there of absolute values; two ends are our
    reading).
    """
    low, high = histogram.low, histogram.high
    clipped = 1 - percentile / 100
    if low < 0:
        low, high = quantile(histogram, clipped / 2), quantile(histogram, 1 - clipped / 2)
    elif high > 0:
        high = quantile(histogram, 1 - clipped)
    if symmetric and histogram.low < 0:  # signed, even where the cut leaves nothing below zero
        high = max(abs(low), abs(high))
        low = -high
    return per_tensor(low, high, bits, symmetric)


def quantile(histogram: Histogram, share: float) -> float:
    """Return the value below which `share`, in [0, 1], of all values are."""
    cumulative = np.concatenate([[0.0], histogram.counts.cumsum(0).numpy()])
    return float(np.interp(share * cumulative[-1], cumulative, histogram.edges().numpy()))
