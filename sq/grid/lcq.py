"""LCQ: levels that a companding function, fitted to a layer's weights, makes equally spaced.

    level j = a g^-1(j / s),    j = 0 .. s = 2^(bits - 1) - 1,    and the same below zero

g maps [0, 1] to itself and is piecewise linear: over interval k of K equal ones it rises by
softmax(theta)_k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sq.config.constraints import Count, Positive, Share, Whole
from sq.grid import level_grid
from sq.grid.level_grid import LevelGrid
from sq.grid.range_search import Hessian, Range, Ranges, importance

__all__ = ["fit", "importance", "table"]

# Of the histogram of |W| / scale: a bin is about a sixteenth of the gap between levels at 8 bits.
BINS = 2048


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

    The two are fitted in turn, starting from the identity (a uniform grid). The best pair is
    returned.

    Parameters
    ----------
    W : (G, O, I)
    bits : 2 to 8; 2^bits - 1 levels, which at 2 bits are -1, 0 and 1 whatever the function
    h : (G, O, I), the cost of a squared error of each weight, if range="hmse"
    intervals : of the function, K
    rounds : of fitting the function and the scales; 0 leaves the levels equally spaced
    iterations : steps of Adam over theta in a round
    rate : learning rate of Adam
    range, norm, steps, shrink, grow, hessian : how the scales are chosen, see `level_grid.fit`; the
        function minimises the same error

    Raises
    ------
    SqError : `bits` outside its range; or see `Ranges.check`

    Source
    ------
    Yamamoto 2021 (LCQ), arXiv:2103.07156, for the function. It is trained there with the network,
    and values are rounded after compression. Our reading of LCQ without training: theta is fitted
    to the weights alone, each channel has a scale, and weights take the nearest level.
    """
    level_grid.check_bits("lcq", bits)
    ranges = Ranges(range, norm, steps, grow, shrink)
    if bits == 2:  # the levels are -1, 0 and 1: there is no function to fit
        rounds = 0
    return _fit_in_turn(W, bits, h, ranges, intervals, rounds, iterations, rate)


def _fit_in_turn(
    W: Tensor,
    bits: int,
    h: Tensor | None,
    ranges: Ranges,
    intervals: int,
    rounds: int,
    iterations: int,
    rate: float,
) -> LevelGrid:
    """Return the best grid of `rounds` in which the function and then the scales are fitted."""
    theta = torch.zeros(intervals, dtype=torch.float64)
    grid = best = level_grid.fit(W, table(bits, theta), h, ranges)
    least = _total_cost(W, h, grid, ranges)
    for _ in range(rounds):
        histogram = _histogram(W, h, grid, ranges)
        theta = _fit_theta(theta, 2 ** (bits - 1) - 1, histogram, iterations, rate)
        grid = level_grid.fit(W, table(bits, theta), h, ranges)
        total = _total_cost(W, h, grid, ranges)
        if total < least:
            best, least = grid, total
    return best


def _total_cost(W: Tensor, h: Tensor | None, grid: LevelGrid, ranges: Ranges) -> float:
    return float(ranges.cost(h)(W - grid.nearest(W)).sum())


def table(bits: int, theta: Tensor) -> Tensor:
    """Return the levels (2^bits - 1,), rising from -1 to 1, for parameters `theta` (K,)."""
    above = expanded(2 ** (bits - 1) - 1, theta)
    return torch.cat((-above[1:].flip(0), above))


def expanded(s: int, theta: Tensor) -> Tensor:
    """Return g^-1(j / s), j = 0 .. s, differentiable by theta; its ends are exactly 0 and 1."""
    shares = theta.softmax(0)
    starts = shares.cumsum(0) - shares  # g at the start of each interval
    y = torch.linspace(0, 1, s + 1, dtype=theta.dtype)[1:-1]
    k = torch.searchsorted(starts.detach(), y, right=True) - 1  # the interval of each y
    # The derivative of `gather` takes half the time of that of indexing.
    within = ((y - starts.gather(0, k)) / shares.gather(0, k)).clamp(0, 1)
    inner = (k + within) / len(theta)
    return torch.cat((y.new_zeros(1), inner, y.new_ones(1)))


class _Histogram(NamedTuple):
    """A weighted histogram of u = |W| / scale."""

    u: np.ndarray  # (BINS,), the centre of each bin
    cost: np.ndarray  # (BINS,), the cost of an error of 1 in each bin; they add up to 1
    norm: float  # exponent of the error


def _histogram(W: Tensor, h: Tensor | None, grid: LevelGrid, ranges: Ranges) -> _Histogram:
    norm = 2.0 if h is not None else ranges.norm
    bins = (W.abs() / grid.scale * BINS).long().clamp_(max=BINS - 1).flatten()
    importance = torch.ones_like(W) if h is None else h
    cost = (grid.scale.double() ** norm * importance).flatten()
    total = torch.zeros(BINS, dtype=torch.float64, device=W.device).index_add_(0, bins, cost).cpu()
    # Normalised, so that the units of the weights and of h do not matter to Adam.
    share = total / total.sum() if float(total.sum()) > 0 else total
    return _Histogram((np.arange(BINS) + 0.5) / BINS, share.numpy(), norm)


def _fit_theta(
    theta: Tensor, s: int, histogram: _Histogram, iterations: int, rate: float
) -> Tensor:
    """Return the theta of least cost, sum cost |u - nearest level|^norm, among all steps of Adam.

    It is in NumPy, with derivatives written out: a step computes with a few hundred numbers, and
    PyTorch would take ten times as long to start so many operations.
    """
    adam = _Adam(theta.numpy().copy(), rate)
    least, best_theta = float("inf"), adam.value
    # edges[j] to edges[j + 1] are the bins that are nearest to level j
    edges = np.zeros(s + 2, dtype=np.int64)
    edges[-1] = BINS
    y = torch.linspace(0, 1, s + 1, dtype=theta.dtype)[1:-1].numpy()
    for _ in range(iterations + 1):
        levels, to_theta = _expanded(y, adam.value)
        edges[1:-1] = histogram.u.searchsorted((levels[1:] + levels[:-1]) / 2, side="right")
        nearest = np.repeat(np.arange(s + 1), np.diff(edges))  # (BINS,)
        error = levels[nearest] - histogram.u
        cost = histogram.cost * torch.from_numpy(np.abs(error)).pow_(histogram.norm).numpy()
        total = float(cost.sum())
        if total < least:
            least, best_theta = total, adam.value
        # d |e|^n / de = n |e|^n / e
        gradient = np.divide(
            histogram.norm * cost, error, out=np.zeros_like(cost), where=error != 0
        )
        adam.step(to_theta(np.bincount(nearest, gradient, minlength=s + 1)))
    return torch.from_numpy(best_theta)


def _expanded(
    y: np.ndarray, theta: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return the levels as `expanded` does, and the function that backpropagates through them.

    `y` (s - 1,) are the inner j / s. The function maps the gradient by levels to that by `theta`.
    """
    shares = torch.from_numpy(theta).softmax(0).numpy()
    starts = shares.cumsum() - shares
    k = starts.searchsorted(y, side="right") - 1
    within = (y - starts[k]) / shares[k]
    levels = np.concatenate(([0.0], (k + within.clip(0, 1)) / len(theta), [1.0]))

    def to_theta(by_level: np.ndarray) -> np.ndarray:
        K = len(theta)
        by_within = np.where((within >= 0) & (within <= 1), by_level[1:-1], 0) / K
        by_start = np.bincount(k, -by_within / shares[k], minlength=K)
        by_share = np.bincount(k, -by_within * (within / shares[k]), minlength=K) - by_start
        # A share also moves the starts of all later intervals.
        by_share += by_start[::-1].cumsum()[::-1]
        return shares * (by_share - (by_share * shares).sum())  # through softmax

    return levels, to_theta


class _Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with PyTorch's defaults.

    Each step makes a new `value` and does not write to the old one, so callers may keep it.
    """

    BETA1, BETA2, EPS = 0.9, 0.999, 1e-8

    def __init__(self, value: np.ndarray, rate: float):
        self.value, self.rate, self.steps = value, rate, 0
        self.mean, self.square = np.zeros_like(value), np.zeros_like(value)

    def step(self, gradient: np.ndarray) -> None:
        """Go one step against the gradient."""
        self.steps += 1
        self.mean += (gradient - self.mean) * (1 - self.BETA1)
        self.square = self.square * self.BETA2 + (1 - self.BETA2) * gradient * gradient
        spread = np.sqrt(self.square) / (1 - self.BETA2**self.steps) ** 0.5 + self.EPS
        self.value = self.value - self.rate / (1 - self.BETA1**self.steps) * self.mean / spread
