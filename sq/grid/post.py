"""POST: zero and powers of sqrt(2), in one table, times a scale for each output channel."""

from __future__ import annotations

import math

from torch import Tensor

from sq.config.constraints import Count, Positive, Share
from sq.grid import level_grid
from sq.grid.level_grid import LevelGrid
from sq.grid.range_search import Hessian, Range, Ranges, importance

__all__ = ["fit", "importance", "table"]


def fit(
    W: Tensor,
    bits: int,
    h: Tensor | None = None,
    *,
    strict: bool,
    range: Range,
    norm: Positive,
    steps: Count,
    shrink: Share,
    grow: Positive,
    hessian: Hessian,
) -> LevelGrid:
    """Fit levels 0 and +-sqrt(2)^-k, k = 0 .. 2^(bits - 1) - 1, to each output channel of `W`.

    Parameters
    ----------
    W : (G, O, I)
    bits : 2 to 8; 2^bits + 1 levels, or 2^bits
    h : (G, O, I), the cost of a squared error of each weight, if range="hmse"
    strict : 2^bits levels, without the smallest one below zero, so that a code fits into `bits`;
        otherwise 2^bits + 1, as in the released code of POST, whose codes take one more bit
    range, norm, steps, shrink, grow, hessian : how the scales are chosen, see `level_grid.fit`

    Raises
    ------
    SqError : `bits` outside its range; or see `Ranges.check`

    Source
    ------
    Zhou et al. 2025 (ASQ and POST), arXiv:2504.17263. The base is the paper's; their released code
    has base 2 in place of its square root. They train the scales; searching for the range of least
    error is ours, and so is the choice of the level that `strict` leaves out.
    """
    level_grid.check_bits("post", bits)
    return level_grid.fit(W, table(bits, strict), h, Ranges(range, norm, steps, grow, shrink))


def table(bits: int, strict: bool) -> Tensor:
    """Return the levels, rising, float64."""
    magnitudes = []
    for k in range(2 ** (bits - 1)):
        # Odd powers are powers of two times one and the same rounded constant.
        odd_factor = math.sqrt(0.5) if k % 2 else 1.0
        magnitudes.append(2.0 ** -(k // 2) * odd_factor)
    return level_grid.signed(magnitudes, strict)
