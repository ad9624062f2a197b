"""POST: zero and powers of the square root of two, a table and a scale for each output channel."""

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
    h : (G, O, I), what a squared error of each weight costs, for range="hmse"; see
    `sq.hessian.weight_importance`
    strict : 2^bits levels, without the smallest one below zero, so that `bits` hold a code;
    otherwise 2^bits + 1, as in
        the released code of POST, whose codes take a bit more
    range, norm : see `sq.grid.range_search.Ranges`
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
    Zhou et al. 2025 (ASQ and POST), arXiv:2504.17263. Their released code has base 2 in place of
    its square root; this is the paper's. They train the scales; a search for the range of least
    error in place of that is ours, and so is which level `strict` leaves out.
    """
    level_grid.check_bits("post", bits)
    return level_grid.fit(W, table(bits, strict), h, Ranges(range, norm, steps, grow, shrink))


def table(bits: int, strict: bool) -> Tensor:
    """Return the levels, rising, float64; odd powers are those of two times the one number 1 / sqrt(2)."""
    magnitudes = [
        2.0 ** -(k // 2) * (math.sqrt(0.5) if k % 2 else 1.0) for k in range(2 ** (bits - 1))
    ]
    return level_grid.signed(magnitudes, strict)
