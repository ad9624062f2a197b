"""KL: the grid spans the range of least Kullback-Leibler divergence (entropy calibration).

For each range, P is the histogram with all values outside moved into the outermost bins inside. Q
is the same after quantization: the values inside that round to one grid value, spread evenly over
those of its bins that are not empty in P. The range of least KL(P || Q) = sum P log(P / Q) is
chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.activation.histogram import Histogram
from sq.errors import SqError
from sq.grid.uniform_grid import UniformGrid, per_tensor, reach, spanning
from sq.runtime.cpu_threads import suited_to
from sq.solver.argmin import first_argmin
from sq.types.problem import Grid

CHUNK = 2**16  # elements of one temporary: 512 KiB in float64, which stays in the cache
# Share of a bin's width below which a value counts as the centre of the bin. Rounding errors are
# about 1e-10, and borders between codes are often exactly at centres: the code of such a bin must
# not depend on the last bits.
SNAP = 1e-6


def fit(histogram: Histogram, bits: int, *, symmetric: bool) -> Grid:
    """Fit a grid to the range of least KL divergence.

    A range is the part of [-T, T] that has values; on a signed, symmetric grid it is [-T, T]. Each
    edge of a bin on the longer side is tried as T, if the range holds at least as many bins as the
    grid has values.

    Parameters
    ----------
    histogram : of at least 2^bits bins; 8 times as many leave a choice
    bits : 1 to 16 (2 to 16 if signed and symmetric)
    symmetric : codes around zero, or from zero up if no value is negative; otherwise affine

    Raises
    ------
    SqError : `bits` outside its range, or more grid values than bins

    Source
    ------
    Migacz 2017, "8-bit Inference with TensorRT", GTC: 2048 bins of |x|, 128 levels. Our reading: Q
    is computed without the values that were moved, as in its pseudocode; a range is out if Q is 0
    where P is not; the bins of a level are those that the grid rounds to it; T cuts both sides of
    an affine range. The bin that holds zero counts no more than the mean of its neighbours, because
    every grid represents zero exactly: the zeros after a ReLU would otherwise dominate.
    """
    widest = per_tensor(histogram.low, histogram.high, bits, symmetric)
    if histogram.constant:
        return widest
    bins = len(histogram.counts)
    if bins < widest.levels:
        raise SqError(
            f"{bins} bins: KL needs at least 2^bits, {widest.levels}; "
            f"set activation.observe.bins={8 * widest.levels}"
        )
    counts = _without_zeros(histogram)
    low, high = reach(histogram.low, histogram.high, symmetric)
    signed = symmetric and low < 0
    lows, highs = _candidates(histogram, low, high, widest.levels)
    per_chunk = max(1, CHUNK // widest.levels)
    divergences = []
    with suited_to(CHUNK):
        for some_lows, some_highs in zip(
            lows.split(per_chunk), highs.split(per_chunk), strict=True
        ):
            grid = spanning(some_lows, some_highs, bits, signed)
            divergences.append(divergence(histogram, counts, some_lows, some_highs, grid))
    best = first_argmin(torch.cat(divergences))  # the widest of equals
    return per_tensor(float(lows[best]), float(highs[best]), bits, symmetric)


def _candidates(
    histogram: Histogram, low: float, high: float, levels: int
) -> tuple[Tensor, Tensor]:
    """Return the ends of the ranges tried, two (K, 1), the widest first."""
    edges = histogram.edges()
    T = edges[edges > 0] if histogram.high >= -histogram.low else -edges[edges < 0]
    T = T.sort(descending=True).values.unsqueeze(1)
    lows, highs = (-T).clamp(min=low), T.clamp(max=high)
    bins_inside = _bins_below(histogram, highs) - _bins_below(histogram, lows)
    enough = (bins_inside >= levels).squeeze(1)
    return lows[enough], highs[enough]


def divergence(
    histogram: Histogram, counts: Tensor, lows: Tensor, highs: Tensor, grid: UniformGrid
) -> Tensor:
    """Return KL(P || Q), (K,) float64, of each range from `lows` to `highs`.

    It is infinite where Q is 0 and P is not. The bins that round to one grid value are adjacent,
    and Q is the same in all of them that are not empty. With n values in all, m of them inside, and
    m_c of these in f_c bins that are not empty and round to grid value c,

        n KL = sum_bins P log P - sum_c P_c log(m_c / f_c) + n log(m / n),

    where P is in counts. Each sum is a difference of cumulative sums over the bins.

    Parameters
    ----------
    histogram : for the position of the bins
    counts : (bins,), used in place of those of the histogram
    lows, highs : (K, 1), with at least two bins in between
    grid : of each range, (K, 1)
    """
    cumulative = _cumulative(counts)
    cumulative_filled = _cumulative((counts > 0).to(counts.dtype))
    cumulative_plogp = _cumulative(torch.special.xlogy(counts, counts))
    start, stop = _bins_below(histogram, lows), _bins_below(histogram, highs)  # (K, 1)
    # Midpoints between grid values, in steps, (K, levels - 1).
    midpoints = grid.low + torch.arange(grid.levels - 1, dtype=counts.dtype) + 0.5
    inner = _bins_below(histogram, midpoints * grid.scale).clamp(start, stop)
    bounds = torch.cat([start, inner, stop], 1)  # of the bins of each grid value, (K, levels + 1)
    mass = cumulative[bounds].diff(dim=1)  # m_c, (K, levels)
    filled = cumulative_filled[bounds].diff(dim=1)  # f_c, (K, levels)
    P, total = mass.clone(), cumulative[-1]
    plogp = cumulative_plogp[stop] - cumulative_plogp[start]  # (K, 1)
    # Values outside are moved into the first and the last bin inside.
    below, above = cumulative[start], total - cumulative[stop]
    for bin_index, moved in ((start, below), (stop - 1, above)):
        count = counts[bin_index]
        new_count = count + moved
        plogp += torch.special.xlogy(new_count, new_count) - torch.special.xlogy(count, count)
        code = (bounds[:, 1:-1] <= bin_index).sum(1, keepdim=True)  # the one this bin rounds to
        P.scatter_add_(1, code, moved)
        filled.scatter_add_(1, code, ((count == 0) & (moved > 0)).to(filled.dtype))
    inside = mass.sum(1)  # m, (K,)
    cross = torch.special.xlogy(P, mass / filled.clamp(min=1)).sum(1)
    divergences = (plogp.squeeze(1) - cross) / total + (inside / total).log()
    return divergences.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)


def _cumulative(values: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, ... n of `values` (n,), (n + 1,)."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _bins_below(histogram: Histogram, values: Tensor) -> Tensor:
    """Return how many bins have their centre below each of `values`, int64."""
    bins = len(histogram.counts)
    width = (histogram.high - histogram.low) / bins
    position = (values - histogram.low) / width - 0.5  # a whole number at the centre of a bin
    nearest = position.round()
    position = torch.where((position - nearest).abs() < SNAP, nearest, position)
    return position.ceil().clamp(0, bins).long()


def _without_zeros(histogram: Histogram) -> Tensor:
    """Return the counts, with at most the mean of its neighbours in the bin that holds zero."""
    counts = histogram.counts.clone()
    if not histogram.low <= 0 <= histogram.high:
        return counts
    inner_edges = histogram.edges()[1:-1]
    zero = torch.zeros((), dtype=torch.float64)
    zero_bin = int(torch.searchsorted(inner_edges, zero, right=True))
    neighbours = [float(counts[i]) for i in (zero_bin - 1, zero_bin + 1) if 0 <= i < len(counts)]
    mean = sum(neighbours) / max(len(neighbours), 1)
    counts[zero_bin] = min(float(counts[zero_bin]), mean)
    return counts
