"""KL: the grid spans the range whose grid values tell most about the distribution (entropy calibration).

For each range, P is the histogram with all that lies outside moved into the outermost bins inside,
and Q is what is left of it after quantization: the mass inside that rounds to one grid value,
spread evenly over those of its bins that are not empty in P. The range of least KL(P || Q) = sum P
log(P / Q) wins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.activation.histogram import Histogram
from sq.errors import SqError
from sq.grid.uniform_grid import UniformGrid, per_tensor, reach, spanning
from sq.runtime.cpu_threads import suited_to
from sq.solver.argmin import first_least
from sq.types.problem import Grid

CHUNK = 2**16  # elements of one temporary: 512 KiB in float64, which stays in the cache
# Of a bin: what lies nearer to a centre is on it. Rounding is off by 1e-10, and borders of codes
# are often on centres exactly: which code such a bin has must not depend on the last bits.
SNAP = 1e-6


def fit(histogram: Histogram, bits: int, *, symmetric: bool) -> Grid:
    """Fit a grid to the range of least KL divergence.

    A range is what was seen of [-T, T]; on a signed, symmetric grid it is [-T, T]. Every T is tried
    that lies, on the longer side, at an edge of a bin, if the range holds at least as many bins as
    the grid has values.

    Parameters
    ----------
    histogram : of at least 2^bits bins; 8 times as many leave room to choose
    bits : 1 to 16 (2 to 16 if signed and symmetric)
    symmetric : codes around zero, or from zero up if nothing below it was seen; otherwise affine

    Raises
    ------
    SqError : `bits` outside its range, or more grid values than bins

    Source
    ------
    Migacz 2017, "8-bit Inference with TensorRT", GTC: 2048 bins of |x|, 128 levels. Our reading: Q
    is of the histogram without what was moved, as in its pseudocode; a range for which Q lacks what
    P has is out; the bins of a level are those that the grid rounds to it; T cuts both sides of an
    affine range. The bin that holds zero counts no more than the mean of its neighbours, because
    every grid keeps zero exactly: the zeros of a ReLU would otherwise decide alone.
    """
    widest = per_tensor(histogram.low, histogram.high, bits, symmetric)
    if histogram.constant:
        return widest
    bins = len(histogram.counts)
    if bins < widest.levels:
        raise SqError(
            f"{bins} bins: KL needs at least 2^bits, {widest.levels}; set activation.observe.bins={8 * widest.levels}"
        )
    counts = _without_zeros(histogram)
    low, high = reach(histogram.low, histogram.high, symmetric)
    edges = histogram.edges()
    tops = edges[edges > 0] if histogram.high >= -histogram.low else -edges[edges < 0]
    tops = tops.sort(descending=True).values.unsqueeze(1)
    lows, highs = (-tops).clamp(min=low), tops.clamp(max=high)
    enough = (
        _bins_below(histogram, highs) - _bins_below(histogram, lows) >= widest.levels
    ).squeeze(1)
    lows, highs = lows[enough], highs[enough]
    per_chunk = max(1, CHUNK // widest.levels)
    with suited_to(CHUNK):
        found = [
            divergence(
                histogram, counts, some, others, spanning(some, others, bits, symmetric and low < 0)
            )
            for some, others in zip(lows.split(per_chunk), highs.split(per_chunk), strict=True)
        ]
    best = first_least(torch.cat(found))  # the widest of equals
    return per_tensor(float(lows[best]), float(highs[best]), bits, symmetric)


def divergence(
    histogram: Histogram, counts: Tensor, lows: Tensor, highs: Tensor, grid: UniformGrid
) -> Tensor:
    """Return KL(P || Q), (K,) float64, for each of the ranges from `lows` to `highs`; infinite where Q lacks some.

    Bins that round to one grid value are neighbours, and Q is the same in all that are not empty.
    So with n values seen, m of them inside, and m_c of them in f_c bins that are not empty for grid
    value c,

        n KL = sum_bins P log P - sum_c P_c log(m_c / f_c) + n log(m / n),

    P counted in values, and every sum is a difference of running sums over the bins.

    Parameters
    ----------
    histogram : where bins lie
    counts : (bins,), in place of the histogram's own
    lows, highs : (K, 1); at least two bins lie between
    grid : of each range, (K, 1)
    """
    running, filled = _running(counts), _running((counts > 0).to(counts.dtype))
    entropy = _running(torch.special.xlogy(counts, counts))
    start, stop = _bins_below(histogram, lows), _bins_below(histogram, highs)
    # (K, levels - 1), in steps
    between = grid.low + torch.arange(grid.levels - 1, dtype=counts.dtype) + 0.5
    inner = _bins_below(histogram, between * grid.scale).clamp(start, stop)
    bounds = torch.cat([start, inner, stop], 1)  # of the bins of each grid value, (K, levels + 1)
    mass, full = running[bounds].diff(dim=1), filled[bounds].diff(dim=1)
    P, total = mass.clone(), running[-1]
    logs = entropy[stop] - entropy[start]
    for place, moved in ((start, running[start]), (stop - 1, total - running[stop])):
        own = counts[place]
        logs += torch.special.xlogy(own + moved, own + moved) - torch.special.xlogy(own, own)
        # the grid value that this bin rounds to
        cell = (bounds[:, 1:-1] <= place).sum(1, keepdim=True)
        P.scatter_add_(1, cell, moved)
        full.scatter_add_(1, cell, ((own == 0) & (moved > 0)).to(full.dtype))
    inside = mass.sum(1)
    found = logs.squeeze(1) - torch.special.xlogy(P, mass / full.clamp(min=1)).sum(1)
    return (found / total + (inside / total).log()).nan_to_num(
        nan=torch.inf, posinf=torch.inf, neginf=torch.inf
    )


def _running(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _bins_below(histogram: Histogram, values: Tensor) -> Tensor:
    """Return how many bins have their centre below each of `values`, int64."""
    bins = len(histogram.counts)
    width = (histogram.high - histogram.low) / bins
    place = (values - histogram.low) / width - 0.5
    nearest = place.round()
    place = torch.where((place - nearest).abs() < SNAP, nearest, place)
    return place.ceil().clamp(0, bins).long()


def _without_zeros(histogram: Histogram) -> Tensor:
    counts = histogram.counts.clone()
    if histogram.low <= 0 <= histogram.high:
        place = int(
            torch.searchsorted(
                histogram.edges()[1:-1], torch.zeros((), dtype=torch.float64), right=True
            )
        )
        beside = [float(counts[i]) for i in (place - 1, place + 1) if 0 <= i < len(counts)]
        counts[place] = min(float(counts[place]), sum(beside) / max(len(beside), 1))
    return counts
