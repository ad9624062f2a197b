"""LCQ: levels that are equally spaced once compressed, by a companding function that is fitted to a layer's weights.

    level j = a g^-1(j / s),    j = 0 .. s = 2^(bits - 1) - 1,    and the same below zero

g takes [0, 1] to itself and is piecewise linear: over interval k of K equal ones it rises by
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

# of the magnitudes that theta is fitted to: a tenth of the gap between levels at 8 bits
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

    The two are fitted in turn, the function at first the identity (a uniform grid), and the best
    pair is returned.

    Parameters
    ----------
    W : (G, O, I)
    bits : 2 to 8; 2^bits - 1 levels, which at 2 bits are -1, 0 and 1 whatever the function
    h : (G, O, I), what a squared error of each weight costs, for range="hmse"; see
    `sq.hessian.weight_importance`
    intervals : of the function, K
    rounds : of function and scales in turn; 0 leaves the levels equally spaced
    iterations : steps of Adam over theta in a round
    rate : its learning rate
    range, norm : what scales, and the function, are judged by; see `sq.grid.range_search.Ranges`
    steps : how many ranges are tried, from `grow` to `shrink` times the one whose outermost level
    is the largest weight
    shrink : the smallest range tried, in (0, 1]
    grow : the largest
    hessian : what gives `h` of all layers

    Raises
    ------
    SqError : `bits` outside its range, or what `Ranges.check` raises

    Source
    ------
    Yamamoto 2021 (LCQ), arXiv:2103.07156, for the function. It is trained there with the network,
    and its input rounded once compressed; fitting theta to the weights alone, a scale a channel and
    the nearest level are our reading of it without training.
    """
    level_grid.check_bits("lcq", bits)
    ranges = Ranges(range, norm, steps, grow, shrink)
    theta = torch.zeros(intervals, dtype=torch.float64)
    found: list[tuple[float, LevelGrid]] = []
    for turn in torch.arange(rounds + 1 if bits > 2 else 1).tolist():
        if turn:
            seen = _magnitudes(W, h, found[-1][1], ranges)
            theta = _descend(theta, 2 ** (bits - 1) - 1, seen, iterations, rate)
        grid = level_grid.fit(W, table(bits, theta), h, ranges)
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

    u: np.ndarray  # (BINS,), the middle of each bin
    cost: np.ndarray  # (BINS,), of an error of 1 in each, 1 in all
    norm: float  # exponent of the error


def _magnitudes(W: Tensor, h: Tensor | None, grid: LevelGrid, ranges: Ranges) -> _Magnitudes:
    norm = 2.0 if h is not None else ranges.norm
    place = (W.abs() / grid.scale * BINS).long().clamp_(max=BINS - 1).flatten()
    cost = (grid.scale.double() ** norm * (torch.ones_like(W) if h is None else h)).flatten()
    total = torch.zeros(BINS, dtype=torch.float64, device=W.device).index_add_(0, place, cost).cpu()
    # Shares of the whole, so that units of weights and of h do not matter to Adam.
    share = total / total.sum() if float(total.sum()) > 0 else total
    return _Magnitudes((np.arange(BINS) + 0.5) / BINS, share.numpy(), norm)


def _descend(theta: Tensor, s: int, seen: _Magnitudes, iterations: int, rate: float) -> Tensor:
    """Return the theta of least cost sum cost |u - nearest level|^norm that Adam comes across.

    In NumPy, with the derivatives written out: a step computes with a few hundred numbers, and
    PyTorch would take ten times as long to start so many operations.
    """
    adam = _Adam(theta.numpy().copy(), rate)
    best, kept = float("inf"), adam.value
    ends = np.zeros(s + 2, dtype=np.int64)  # of the bins that each level is nearest to
    ends[-1] = BINS
    y = torch.linspace(0, 1, s + 1, dtype=theta.dtype)[1:-1].numpy()
    for _ in range(iterations + 1):
        above, to_theta = _expanded(y, adam.value)
        ends[1:-1] = seen.u.searchsorted((above[1:] + above[:-1]) / 2, side="right")
        nearest = np.repeat(np.arange(s + 1), np.diff(ends))
        error = above[nearest] - seen.u
        lost = seen.cost * torch.from_numpy(np.abs(error)).pow_(seen.norm).numpy()
        total = float(lost.sum())
        if total < best:
            best, kept = total, adam.value
        slope = np.divide(seen.norm * lost, error, out=np.zeros_like(lost), where=error != 0)
        adam.step(to_theta(np.bincount(nearest, slope, minlength=s + 1)))
    return torch.from_numpy(kept)


def _expanded(
    y: np.ndarray, theta: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return what `expanded` does, for levels at `y` inside, and what takes a derivative by them to that by `theta`."""
    shares = torch.from_numpy(theta).softmax(0).numpy()
    starts = shares.cumsum() - shares
    k = starts.searchsorted(y, side="right") - 1
    within = (y - starts[k]) / shares[k]
    above = np.concatenate(([0.0], (k + within.clip(0, 1)) / len(theta), [1.0]))

    def to_theta(by_level: np.ndarray) -> np.ndarray:
        by_within = np.where((within >= 0) & (within <= 1), by_level[1:-1], 0) / len(theta)
        by_start = np.bincount(k, -by_within / shares[k], minlength=len(theta))
        by_share = (
            np.bincount(k, -by_within * (within / shares[k]), minlength=len(theta)) - by_start
        )
        # a share moves the starts of all intervals behind it
        by_share += by_start[::-1].cumsum()[::-1]
        return shares * (by_share - (by_share * shares).sum())

    return above, to_theta


class _Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980), with PyTorch's defaults; `value` is replaced, never written to."""

    FIRST, SECOND, LEAST = 0.9, 0.999, 1e-8

    def __init__(self, value: np.ndarray, rate: float):
        self.value, self.rate, self.steps = value, rate, 0
        self.mean, self.square = np.zeros_like(value), np.zeros_like(value)

    def step(self, slope: np.ndarray) -> None:
        """Go one step against the derivative `slope`."""
        self.steps += 1
        self.mean += (slope - self.mean) * (1 - self.FIRST)
        self.square = self.square * self.SECOND + (1 - self.SECOND) * slope * slope
        spread = np.sqrt(self.square) / (1 - self.SECOND**self.steps) ** 0.5 + self.LEAST
        self.value = self.value - self.rate / (1 - self.FIRST**self.steps) * self.mean / spread
