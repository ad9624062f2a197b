"""Grids of any levels: a table that all channels of a layer share, times a scale for each channel.

value = scale * table[code],   code = 0 .. len(table) - 1,   table rising

The nearest level is found by bisection on the midpoints between levels. At inference a layer is its
codes, its table (the look-up table, LUT) and its scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sq.core.wording import quantity
from sq.errors import SqError
from sq.grid.range_search import Ranges
from sq.grid.uniform_grid import best_scale

# one bit holds no sign beside a magnitude; more than 8 make tables that no cache line holds
BITS = (2, 8)


@dataclass(frozen=True)
class LevelGrid:
    """Values ``scale * level`` for the levels of `table` (L,), in rising order; `scale` > 0, (G, O, 1)."""

    scale: Tensor
    table: Tensor

    @property
    def levels(self) -> int:
        """Return how many values there are."""
        return len(self.table)

    @cached_property
    def middles(self) -> Tensor:
        """Return what lies in the middle between neighbouring levels, (L - 1,); a tie takes the lower one."""
        return (self.table[1:] + self.table[:-1]) / 2

    def nearest(self, values: Tensor) -> Tensor:
        """Return the grid value nearest to each of `values` (G, O, any)."""
        codes = self.encode(values)
        # By index_select, which takes an eighth of the time of `table[codes]`.
        return self.table.index_select(0, codes.view(-1)).view(codes.shape).mul_(self.scale)

    def on_numpy(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return `nearest` as a function of one column (G, O) in NumPy, for a grid laid out (G, 1, O)."""
        scale, table, middles = self.scale[:, 0].numpy(), self.table.numpy(), self.middles.numpy()

        def nearest(values: np.ndarray) -> np.ndarray:
            found = table.take(middles.searchsorted(values / scale))
            return np.multiply(found, scale, out=found)

        return nearest

    def encode(self, values: Tensor) -> Tensor:
        """Return the code, int32 in 0 .. levels - 1, of the grid value nearest to each of `values`."""
        return torch.bucketize((values / self.scale).contiguous(), self.middles, out_int32=True)

    def units(self, codes: Tensor) -> Tensor:
        """Return the levels."""
        return self.table[codes]

    def decode(self, codes: Tensor) -> Tensor:
        """Return ``scale * table[codes]``."""
        return self.scale * self.table[codes]

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value, each (G, O, 1)."""
        return self.scale * self.table[0], self.scale * self.table[-1]

    def steps(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far below and above each code's value its neighbours are, (G, O, I); inf where none is."""
        # before, between and after levels
        gaps = torch.nn.functional.pad(self.table.diff(), (1, 1), value=torch.inf)
        return self.scale * gaps[codes], self.scale * gaps[1:][codes]

    def gap(self, values: Tensor) -> Tensor:
        """Return how far the two values around each of `values` are apart, (G, O, any)."""
        within = torch.bucketize(
            (values / self.scale).contiguous(), self.table[1:-1], out_int32=True
        )
        return self.scale * self.table.diff()[within]

    def half_step(self) -> Tensor:
        """Return half the widest gap, (G, O, 1)."""
        return self.scale * (self.table.diff().max() / 2)

    def scaled(self, factor: Tensor) -> LevelGrid:
        """Return the grid with its scale times `factor`."""
        return LevelGrid(self.scale * factor, self.table)

    def refit(self, W: Tensor, H: Tensor, codes: Tensor) -> LevelGrid:
        """Return the grid with each row's scale at the least loss for its codes, see `best_scale`; levels stay."""
        return LevelGrid(best_scale(self.units(codes), self.scale, W, H), self.table)

    def map(self, function: Callable[[Tensor], Tensor]) -> LevelGrid:
        """Return the grid with `function` applied to `scale`; the table follows to its device and precision."""
        scale = function(self.scale)
        return LevelGrid(scale, self.table.to(scale))

    def parameters(self) -> int:
        """Return how many 32-bit numbers are stored beside the codes: a scale a channel, and the table."""
        return self.scale.numel() + len(self.table)


def fit(W: Tensor, table: Tensor, h: Tensor | None, ranges: Ranges) -> LevelGrid:
    """Return the grid of a `table` with the scale that `ranges` finds for each output channel.

    The range that covers a channel takes its largest weight to the outermost level. Others may be
    wider: where levels are far apart, the largest weight can lie better below that level than on
    it.

    Parameters
    ----------
    W : (G, O, I)
    table : (L,), rising, about as far below zero as above
    h : (G, O, I), if `ranges` asks for it

    Raises
    ------
    SqError : see `Ranges.check`
    """
    ranges.check(W, h)
    reach = W.abs().amax(-1, keepdim=True)
    # Where all is zero, any scale represents it.
    full = torch.where(reach > torch.finfo(W.dtype).tiny, reach, torch.ones_like(reach)) / float(
        table.abs().max()
    )
    own = table.to(W)
    places = None
    if W.device.type == "cpu":
        # Bisecting for one value after the other is a third of the work where they rise: each takes
        # the way of the one before it, which the processor foresees.
        W, order = W.sort(-1)
        h = h if h is None else h.gather(-1, order)
        places = order.argsort(-1)
    return ranges.fit(W, h, lambda factor: LevelGrid(full * factor, own), places)


def signed(magnitudes: Iterable[float], strict: bool = False) -> Tensor:
    """Return the levels 0 and +-m for all `magnitudes`, rising, float64; `strict` omits the smallest one below 0."""
    above = sorted(magnitudes)
    below = [-m for m in above[1 if strict else 0 :]]
    return torch.tensor([*reversed(below), 0.0, *above], dtype=torch.float64)


def check_bits(grid: str, bits: int) -> None:
    """Raise an `SqError` for bits that tables of levels are not made for."""
    if not BITS[0] <= bits <= BITS[1]:
        raise SqError(
            f"{quantity(bits, 'bit')}: grid={grid} takes {BITS[0]} to {BITS[1]}; use others, or grid=uniform"
        )
