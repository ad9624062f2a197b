"""Grids of arbitrary levels: a table shared by all channels of a layer, times a scale per channel.

value = scale * table[code],   code = 0 .. len(table) - 1,   table rising

The nearest level is found by bisection on the midpoints between levels. At inference a layer is
stored as its codes, its table (look-up table, LUT) and its scales.
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

# One bit cannot hold a sign and a magnitude; the table of more than 8 bits is not a small LUT.
MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class LevelGrid:
    """Values ``scale * level`` for the levels of `table` (L,), rising; `scale` > 0 is (G, O, 1)."""

    scale: Tensor
    table: Tensor

    @property
    def levels(self) -> int:
        """Return how many values there are."""
        return len(self.table)

    @cached_property
    def middles(self) -> Tensor:
        """Return the midpoints between levels, (L - 1,); a value there takes the lower level."""
        return (self.table[1:] + self.table[:-1]) / 2

    def nearest(self, values: Tensor) -> Tensor:
        """Return the grid value nearest to each of `values` (G, O, any)."""
        codes = self.encode(values)
        # index_select takes an eighth of the time of `table[codes]`.
        levels = self.table.index_select(0, codes.view(-1)).view(codes.shape)
        return levels.mul_(self.scale)

    def on_numpy(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return `nearest` for one column (G, O) in NumPy, of a grid laid out (G, 1, O)."""
        scale, table, middles = self.scale[:, 0].numpy(), self.table.numpy(), self.middles.numpy()

        def nearest(values: np.ndarray) -> np.ndarray:
            levels = table.take(middles.searchsorted(values / scale))
            return np.multiply(levels, scale, out=levels)

        return nearest

    def encode(self, values: Tensor) -> Tensor:
        """Return the code of the grid value nearest to each of `values`: int32, 0 .. levels - 1."""
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
        """Return the distances to the next lower and higher value, each (G, O, I); inf if none."""
        # Infinite before the first level and after the last.
        gaps = torch.nn.functional.pad(self.table.diff(), (1, 1), value=torch.inf)
        return self.scale * gaps[codes], self.scale * gaps[1:][codes]

    def gap(self, values: Tensor) -> Tensor:
        """Return the distance of the two grid values around each of `values`, (G, O, any)."""
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
        """Return the grid with each row's best scale for its codes, see `best_scale`."""
        return LevelGrid(best_scale(self.units(codes), self.scale, W, H), self.table)

    def map(self, function: Callable[[Tensor], Tensor]) -> LevelGrid:
        """Return the grid with `function` applied to `scale`, and the table converted to match."""
        scale = function(self.scale)
        return LevelGrid(scale, self.table.to(scale))

    def parameters(self) -> int:
        """Return how many 32-bit numbers are stored beside the codes: the scales and the table."""
        return self.scale.numel() + len(self.table)


def fit(W: Tensor, table: Tensor, h: Tensor | None, ranges: Ranges) -> LevelGrid:
    """Return the grid of a `table` with the scale that `ranges` finds for each output channel.

    In the full range of a channel the largest weight is the outermost level. The ranges tried are
    from `grow` (`Ranges.widest`) to `shrink` (`Ranges.narrowest`) times the full range. Ranges
    above 1 are useful because the outer levels can be far apart: the largest weight may fit better
    below the outermost level than on it.

    Parameters
    ----------
    W : (G, O, I)
    table : (L,), rising, about as far below zero as above
    h : (G, O, I), the cost of a squared error of each weight, if `ranges` asks for it; the knob
        `hessian` of a grid computes it for all layers, see `sq.hessian.weight_importance`
    ranges : which scales are tried, and by what error they are compared

    Raises
    ------
    SqError : see `Ranges.check`
    """
    ranges.check(W, h)
    largest = W.abs().amax(-1, keepdim=True)
    # Any scale represents a channel of zeros.
    largest = torch.where(largest > torch.finfo(W.dtype).tiny, largest, torch.ones_like(largest))
    full_scale = largest / float(table.abs().max())
    table = table.to(W)
    inverse_order = None
    if W.device.type == "cpu":
        # Bisection takes a third of the time on sorted values: each one takes the same branches as
        # the one before it, so the CPU predicts them.
        W, order = W.sort(-1)
        if h is not None:
            h = h.gather(-1, order)
        inverse_order = order.argsort(-1)
    return ranges.fit(W, h, lambda factor: LevelGrid(full_scale * factor, table), inverse_order)


def signed(magnitudes: Iterable[float], strict: bool = False) -> Tensor:
    """Return the levels 0 and +-m for all `magnitudes`, rising, float64.

    `strict` omits the negative level next to 0.
    """
    above = sorted(magnitudes)
    below = [-m for m in above[1 if strict else 0 :]]
    return torch.tensor([*reversed(below), 0.0, *above], dtype=torch.float64)


def check_bits(grid: str, bits: int) -> None:
    """Raise an `SqError` for bits that grids of levels do not support."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise SqError(
            f"{quantity(bits, 'bit')}: grid={grid} takes {MIN_BITS} to {MAX_BITS}; "
            "set other bits, or grid=uniform"
        )
