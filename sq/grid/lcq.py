"""LCQ: levels that are equally spaced once compressed, by a companding function that is fitted to a layer's weights.

    level j = a g^-1(j / s),    j = 0 .. s = 2^(bits - 1) - 1,    and the same below zero

g takes [0, 1] to itself and is piecewise linear: over interval k of K equal ones it rises by softmax(theta)_k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sq import levels
from sq.knobs import Count, Positive, Share, Whole
from sq.levels import LevelGrid
from sq.ranges import Hessian, Range, Ranges, importance

__all__ = ["fit", "importance", "table"]

BINS = 2048  # of the magnitudes that theta is fitted to: a tenth of the gap between levels at 8 bits


def fit(
    W: Tensor,
    bits: int,
    h: Tensor | None = None,
    *,
    intervals: Count,
    rounds: Whole,
    iterations: Whole,
    rate: Positive,
    range: Range,
    norm: Positive,
    steps: Count,
    shrink: Share,
    grow: Positive,
    hessian: Hessian,
) -> LevelGrid:
    """Fit one companding function to all of `W`, and a scale to each of its output channels.

    The two are fitted in turn, the function at first the identity (a uniform grid), and the best pair is returned.

    Parameters
    ----------
    W : (G, O, I)
    bits : 2 to 8; 2^bits - 1 levels, which at 2 bits are -1, 0 and 1 whatever the function
    h : (G, O, I), what a squared error of each weight costs, for range="hmse"; see `sq.importance`
    intervals : of the function, K
    rounds : of function and scales in turn; 0 leaves the levels equally spaced
    iterations : steps of Adam over theta in a round
    rate : its learning rate
    range, norm : what scales, and the function, are judged by; see `sq.ranges.Ranges`
    steps : how many ranges are tried, from `grow` to `shrink` times the one whose outermost level is the largest weight
    shrink : the smallest range tried, in (0, 1]
    grow : the largest
    hessian : what gives `h` of all layers

    Raises
    ------
    SqError : `bits` outside its range, or what `Ranges.check` raises

    Source
    ------
    Yamamoto 2021 (LCQ), arXiv:2103.07156, for the function. It is trained there with the network, and its input rounded
    once compressed; fitting theta to the weights alone, a scale a channel and the nearest level are our reading of it
    without training.
    """
    levels.check_bits("lcq", bits)
    ranges = Ranges(range, norm, steps, grow, shrink)
    theta = torch.zeros(intervals, dtype=torch.float64)
    found: list[tuple[float, LevelGrid]] = []
    for turn in torch.arange(rounds + 1 if bits > 2 else 1).tolist():
        if turn:
            seen = _magnitudes(W, h, found[-1][1], ranges)
            theta = _descend(theta, 2 ** (bits - 1) - 1, seen, iterations, rate)
        grid = levels.fit(W, table(bits, theta), h, ranges)
        found.append((float(ranges.cost(h)(W - grid.nearest(W)).sum()), grid))
    return min(found, key=lambda one: one[0])[1]


def table(bits: int, theta: Tensor) -> Tensor:
    """Return the levels (2^bits - 1,) of a function with parameters `theta` (K,), rising, from -1 to 1."""
    above = expanded(2 ** (bits - 1) - 1, theta)
    return torch.cat((-above[1:].flip(0), above))


def expanded(s: int, theta: Tensor) -> Tensor:
    """Return g^-1(j / s), j = 0 .. s, with derivatives by theta; both ends are exact."""
    shares = theta.softmax(0)
    starts = shares.cumsum(0) - shares  # of each interval, compressed
    y = torch.linspace(0, 1, s + 1, dtype=theta.dtype)[1:-1]
    k = torch.searchsorted(starts.detach(), y, right=True) - 1
    # Gathered, not indexed: its derivative takes half the time.
    inner = (k + ((y - starts.gather(0, k)) / shares.gather(0, k)).clamp(0, 1)) / len(theta)
    return torch.cat((y.new_zeros(1), inner, y.new_ones(1)))


class _Magnitudes(NamedTuple):
    """A histogram of |W| / scale."""

    u: Tensor  # (BINS,), the middle of each bin
    cost: Tensor  # (BINS,), of an error of 1 in each, 1 in all
    norm: float  # exponent of the error


def _magnitudes(W: Tensor, h: Tensor | None, grid: LevelGrid, ranges: Ranges) -> _Magnitudes:
    norm = 2.0 if h is not None else ranges.norm
    place = (W.abs() / grid.scale * BINS).long().clamp_(max=BINS - 1).flatten()
    cost = (grid.scale.double() ** norm * (torch.ones_like(W) if h is None else h)).flatten()
    total = torch.zeros(BINS, dtype=torch.float64, device=W.device).index_add_(0, place, cost).cpu()
    # Shares of the whole, so that units of weights and of h do not matter to Adam.
    share = total / total.sum() if float(total.sum()) > 0 else total
    return _Magnitudes((torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS, share, norm)


def _descend(theta: Tensor, s: int, seen: _Magnitudes, iterations: int, rate: float) -> Tensor:
    """Return the theta of least cost sum cost |u - nearest level|^norm that Adam comes across."""
    theta = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=rate)
    best, kept = float("inf"), theta.detach().clone()
    for _ in range(iterations + 1):
        with torch.enable_grad():
            above = expanded(s, theta)
        own = above.detach()
        nearest = torch.bucketize(seen.u, (own[1:] + own[:-1]) / 2)
        error = own[nearest] - seen.u
        lost = seen.cost * error.abs() ** seen.norm
        if float(lost.sum()) < best:
            best, kept = float(lost.sum()), theta.detach().clone()
        # The derivative by each level, written out: by autograd this would take as long as all else here.
        slope = torch.where(error == 0, 0, seen.norm * lost / error)
        by_level = torch.bincount(nearest, slope, minlength=s + 1)
        (theta.grad,) = torch.autograd.grad(above, theta, by_level)
        optimizer.step()
    return kept
