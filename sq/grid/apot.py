"""APoT: sums of powers of two, in one table, times a scale for each output channel."""

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
    h : (G, O, I), the cost of a squared error of each weight, if range="hmse"
    range, norm, steps, shrink, grow, hessian : how the scales are chosen, see `level_grid.fit`

    Raises
    ------
    SqError : `bits` outside its range; or see `Ranges.check`

    Source
    ------
    Li et al. 2020 (APoT), arXiv:1909.13144, with two bits for each term as there: term i of n is 0
    or 2^-(i + j n), j = 0, 1, 2. Our reading for an odd number of bits of the magnitude: the last
    bit is a term 0 or 2^-2n, and the least power of the others is 2^-(i + 2 n + 1). Zero has two
    codes, of which one is not used. The paper trains the scales; searching for the range of least
    error is ours.
    """
    level_grid.check_bits("apot", bits)
    return level_grid.fit(W, table(bits), h, Ranges(range, norm, steps, grow, shrink))


def table(bits: int) -> Tensor:
    """Return the levels, rising, float64, in units of their largest power of two."""
    n, odd = divmod(bits - 1, 2)
    terms: list[tuple[float, ...]] = [
        (0.0, 2.0**-i, 2.0 ** -(i + n), 2.0 ** -(i + 2 * n + odd)) for i in range(n)
    ]
    if odd:
        terms.append((0.0, 2.0 ** (-2 * n)))
    sums = [sum(powers) for powers in itertools.product(*terms)]
    return level_grid.signed(total for total in sums if total > 0)
