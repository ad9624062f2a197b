"""APoT: sums of powers of two, a table and a scale for each output channel."""

from __future__ import annotations

import itertools

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
    range: Range,
    norm: Positive,
    steps: Count,
    shrink: Share,
    grow: Positive,
    hessian: Hessian,
) -> LevelGrid:
    """Fit signed sums of powers of two to each output channel of `W`.

    Parameters
    ----------
    W : (G, O, I)
    bits : 2 to 8; 2^bits - 1 levels: a sign, and bits - 1 for the magnitude
    h : (G, O, I), what a squared error of each weight costs, for range="hmse"; see
    `sq.hessian.weight_importance`
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
    Li et al. 2020 (APoT), arXiv:1909.13144, with two bits a term as there: of n terms, number i is
    0 or 2^-(i + j n), j = 0, 1, 2. Where the bits of the magnitude are odd in number, the one left
    over is a term 0 or 2^-2n, and the least power of the others is 2^-(i + 2 n + 1): our reading.
    Zero has two codes, of which one is not used. A search for the range of least error in place of
    trained scales is ours.
    """
    level_grid.check_bits("apot", bits)
    return level_grid.fit(W, table(bits), h, Ranges(range, norm, steps, grow, shrink))


def table(bits: int) -> Tensor:
    """Return the levels, rising, float64, in units of their largest power of two."""
    n, odd = divmod(bits - 1, 2)
    terms = [(0.0, 2.0**-i, 2.0 ** -(i + n), 2.0 ** -(i + 2 * n + odd)) for i in range(n)]
    rest = [(0.0, 2.0 ** (-2 * n))] if odd else []
    return level_grid.signed(
        total for chosen in itertools.product(*terms, *rest) if (total := sum(chosen)) > 0
    )
