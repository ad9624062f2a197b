"""Mean squared error: the grid spans the range that changes least of what was seen, clipping and rounding together.

Both errors of a range are integrated over the histogram, whose values are taken to lie evenly
within a bin. For a grid of step s, with r(t) = t - Q(t) and k(t) the integer that Q(t) is s times,
the integral from 0 is

    F(t) = int_0^t |r|^n = k(t) C + r(t) |r(t)|^n / (n + 1),   C = 2 (s / 2)^(n + 1) / (n + 1),

inside the range and outside, so the error in a bin is the difference of F at its edges: exact for
any step, where a sum over the bins' centres would be noise as soon as steps are not much wider than
bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.activation.histogram import Histogram
from sq.config.constraints import Count, Positive
from sq.grid.uniform_grid import UniformGrid, per_tensor, reach, spanning
from sq.runtime.cpu_threads import suited_to
from sq.solver.argmin import first_least
from sq.types.problem import Grid

CHUNK = 2**16  # elements of one temporary: 512 KiB in float64, which stays in the cache


def fit(histogram: Histogram, bits: int, *, symmetric: bool, norm: Positive, steps: Count) -> Grid:
    """Fit a grid to the range of least error sum |x - Q(x)|^norm over all that was seen.

    Each end is tried at 1/steps, 2/steps, ... 1 of the value seen there: both ends apart where the
    grid is affine and values lie on both sides of zero (steps^2 ranges), together where it is
    signed and symmetric.

    Parameters
    ----------
    bits : 1 to 16 (2 to 16 if signed and symmetric)
    symmetric : codes around zero, or from zero up if nothing below it was seen; otherwise affine
    norm : exponent of the error
    steps : positions tried for each end

    Raises
    ------
    SqError : `bits` outside its range

    Source
    ------
    Frantar et al. 2022 (OBC), arXiv:2208.11580: one range a tensor, by squared error; Gordon et al.
    2023 (EPTQ), arXiv:2309.11531, whose code tries hundredths of the range. Ends apart, and F, are
    ours.
    """
    widest = per_tensor(histogram.low, histogram.high, bits, symmetric)
    if histogram.constant:
        return widest
    low, high = reach(histogram.low, histogram.high, symmetric)
    signed = symmetric and low < 0
    factors = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    lows = low * factors if low < 0 else torch.zeros(1, dtype=torch.float64)
    highs = high * factors if high > 0 else torch.zeros(1, dtype=torch.float64)
    if not signed:
        lows, highs = (end.flatten() for end in torch.meshgrid(lows, highs, indexing="ij"))
    edges = histogram.edges()
    per_chunk = max(1, CHUNK // len(edges))
    with suited_to(CHUNK):
        errors = [
            error(histogram, spanning(some.unsqueeze(1), others.unsqueeze(1), bits, signed), norm)
            for some, others in zip(lows.split(per_chunk), highs.split(per_chunk), strict=True)
        ]
    best = first_least(torch.cat(errors))  # the widest of equals
    return per_tensor(float(lows[best]), float(highs[best]), bits, symmetric)


def error(histogram: Histogram, grid: UniformGrid, norm: float) -> Tensor:
    """Return sum |x - Q(x)|^norm over what was seen, for each of the grids (K, 1); (K,) float64."""
    edges = histogram.edges()
    steps = (edges / grid.scale).round_().clamp_(grid.low, grid.high)  # (K, edges)
    rest = edges - steps * grid.scale
    cell = 2 * (grid.scale / 2) ** (norm + 1)
    integral = (steps * cell + rest * rest.abs().pow_(norm)) / (norm + 1)
    density = histogram.counts / edges.diff()
    return integral.diff(dim=1) @ density
