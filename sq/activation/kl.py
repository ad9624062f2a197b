"""KL: the grid spans the range whose grid values tell most about the distribution (entropy calibration).

For each range, P is the histogram with all that lies outside moved into the outermost bins inside, and Q is what
is left of it after quantization: the mass inside that rounds to one grid value, spread evenly over those of its bins
that are not empty in P. The range of least KL(P || Q) = sum P log(P / Q) wins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.errors import SqError
from sq.histogram import Histogram
from sq.types import Grid
from sq.uniform import UniformGrid, per_tensor, reach, spanning

CHUNK = 2**20  # elements of one temporary: 8 MiB in float64


def fit(histogram: Histogram, bits: int, *, symmetric: bool) -> Grid:
    """Fit a grid to the range of least KL divergence.

    Every range is tried that ends, on its longer side, at an edge of a bin, and holds at least as many bins as the
    grid has values. The other end moves by the same factor.

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
    Migacz 2017, "8-bit Inference with TensorRT", GTC: 2048 bins of |x|, 128 levels. Our reading: Q is of the
    histogram without what was moved, as in its pseudocode; a range for which Q lacks what P has is out; the bins of a
    level are those that the grid rounds to it; ranges of two sides. The bin that holds zero counts no more than the
    mean of its neighbours, because every grid keeps zero exactly: the zeros of a ReLU would otherwise decide alone.
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
    edges, centres = histogram.edges(), histogram.centres()
    tops = edges[edges > 0] if histogram.high >= -histogram.low else -edges[edges < 0]
    factors = (tops / tops.max()).sort(descending=True).values.unsqueeze(1)
    lows, highs = low * factors, high * factors
    enough = ((centres > lows) & (centres < highs)).sum(1) >= widest.levels
    lows, highs = lows[enough], highs[enough]
    per_chunk = max(1, CHUNK // bins)
    found = [
        divergence(counts, centres, some, others, spanning(some, others, bits, symmetric and low < 0))
        for some, others in zip(lows.split(per_chunk), highs.split(per_chunk), strict=True)
    ]
    best = torch.cat(found).argmin()  # the widest of equals
    return per_tensor(float(lows[best]), float(highs[best]), bits, symmetric)


def divergence(counts: Tensor, centres: Tensor, lows: Tensor, highs: Tensor, grid: UniformGrid) -> Tensor:
    """Return KL(P || Q), (K,) float64, for each of the ranges from `lows` to `highs`; infinite where Q lacks some.

    Parameters
    ----------
    counts, centres : (bins,) of the histogram
    lows, highs : (K, 1); at least one bin lies between
    grid : of each range, (K, 1)
    """
    inside = (centres > lows) & (centres < highs)
    kept = counts * inside
    first = inside.int().argmax(1, keepdim=True)
    last = first + inside.sum(1, keepdim=True) - 1
    running = counts.cumsum(0)
    P = kept.scatter_add(1, first, running[first] - counts[first])
    P = P.scatter_add_(1, last, running[-1] - running[last])
    codes = ((centres / grid.scale).round_().clamp_(grid.low, grid.high) - grid.low).long()
    zeros = torch.zeros(len(codes), grid.levels, dtype=counts.dtype)
    mass = zeros.scatter_add(1, codes, kept)
    filled = zeros.scatter_add(1, codes, (P > 0).to(counts.dtype))
    Q = (mass / filled.clamp(min=1)).gather(1, codes) * (P > 0)
    P, Q = P / P.sum(1, keepdim=True), Q / Q.sum(1, keepdim=True)
    terms = torch.where(P > 0, P * (P / Q).log(), 0.0)
    return terms.sum(1).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _without_zeros(histogram: Histogram) -> Tensor:
    counts = histogram.counts.clone()
    if histogram.low <= 0 <= histogram.high:
        place = int(torch.searchsorted(histogram.edges()[1:-1], torch.zeros((), dtype=torch.float64), right=True))
        beside = [float(counts[i]) for i in (place - 1, place + 1) if 0 <= i < len(counts)]
        counts[place] = min(float(counts[place]), sum(beside) / max(len(beside), 1))
    return counts
