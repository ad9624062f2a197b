"""Mean squared error: the grid spans the range of least error by clipping and rounding together.

Both errors of a range are integrated over the histogram, whose values are taken to be spread evenly
within a bin. For a grid of step s, with r(t) = t - Q(t) and k(t) = Q(t) / s, the integral from 0 is

    F(t) = int_0^t |r|^n = k(t) C + r(t) |r(t)|^n / (n + 1),   C = 2 (s / 2)^(n + 1) / (n + 1),

inside the range and outside. So the error in a bin is the difference of F at its edges. That is
exact for any step; a sum over the centres of the bins would be noise once steps are about as narrow
as bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.activation.histogram import Histogram
from sq.config.constraints import Count, Positive
from sq.grid.uniform_grid import UniformGrid, per_tensor, reach, spanning
from sq.runtime.cpu_threads import suited_to
from sq.solver.argmin import first_argmin
from sq.types.problem import Grid

CHUNK = 2**16  # elements of one temporary: 512 KiB in float64, which stays in the cache


def fit(histogram: Histogram, bits: int, *, symmetric: bool, norm: Positive, steps: Count) -> Grid:
    """Fit a grid to the range of least error sum |x - Q(x)|^norm over all values.

    Each end is tried at 1/steps, 2/steps, ... 1 of the minimum or maximum. If the grid is affine
    and values are on both sides of zero, the ends vary independently (steps^2 ranges); if it is
    signed and symmetric, they vary together.

    Parameters
    ----------
    bits : 1 to 16 (2 to 16 if signed and symmetric)
    symmetric : codes around zero, or from zero up if no value is negative; otherwise affine
    norm : exponent of the error
    steps : number of positions tried for each end

    Raises
    ------
    SqError : `bits` outside its range

    Source
    ------
    Frantar et al. 2022 (OBC), arXiv:2208.11580: one range per tensor, by squared error; Gordon et
    al. 2023 (EPTQ), arXiv:2309.11531, whose code tries hundredths of the range. Independent ends,
    and F, are ours.
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
    per_chunk = max(1, CHUNK // len(histogram.edges()))
    errors = []
    with suited_to(CHUNK):
        for some_lows, some_highs in zip(
            lows.split(per_chunk), highs.split(per_chunk), strict=True
        ):
            grid = spanning(some_lows.unsqueeze(1), some_highs.unsqueeze(1), bits, signed)
            errors.append(error(histogram, grid, norm))
    best = first_argmin(torch.cat(errors))  # the widest of equals
    return per_tensor(float(lows[best]), float(highs[best]), bits, symmetric)


def error(histogram: Histogram, grid: UniformGrid, norm: float) -> Tensor:
    """Return sum |x - Q(x)|^norm over all values, (K,) float64, for each of the grids (K, 1)."""
    edges = histogram.edges()
    steps = (edges / grid.scale).round_().clamp_(grid.low, grid.high)  # (K, edges)
    residual = edges - steps * grid.scale  # r at the edges
    whole_step = 2 * (grid.scale / 2) ** (norm + 1)  # C (n + 1)
    integral = (steps * whole_step + residual * residual.abs().pow_(norm)) / (norm + 1)  # F
    density = histogram.counts / edges.diff()
    return integral.diff(dim=1) @ density
