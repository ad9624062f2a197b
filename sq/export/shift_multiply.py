"""Weights as they would be stored and computed with: codes of few bits beside a table, and shifts in place of products.

`Packed` is what a record counts the bytes of: each code in as many whole bits as its levels need,
the table, a scale for each channel. Where levels are powers of the square root of two (POST) or of
two (PoT), `Shifts` multiplies integers with them by shifts and additions, and by one constant once
for each output:

    sqrt(2)^-k = 2^-floor(k / 2) {1, 1 / sqrt(2)},   sum_i w_i x_i = 2^-m (E + O / sqrt(2))

E sums the inputs of weights with even k, O those with odd k, each shifted by m - floor(k / 2) bits
to the left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sq.config.constraints import FLOAT
from sq.errors import SqError
from sq.export import bit_packing
from sq.grid.level_grid import LevelGrid
from sq.network.resource_counts import code_bits

# bits after the point of the constant 1 / sqrt(2): as many as float32 has of it, so it is a table's
# own
POINT = 24
# the largest shift: with 8-bit inputs, 2^14 of them and `POINT`, sums stay within 63 bits
DEEPEST = 15


@dataclass(frozen=True)
class Packed:
    """The weights of one layer: `data` holds the codes one after the other, lowest bit first."""

    data: Tensor  # (bytes,) uint8
    bits: int  # of a code
    shape: tuple[int, ...]  # (G, O, I)
    table: Tensor  # (L,), levels in rising order
    scale: Tensor  # (G, O, 1)

    @property
    def bytes(self) -> int:
        """Return the bytes of codes, table and scales, these two in 32 bits."""
        return len(self.data) + (len(self.table) + self.scale.numel()) * FLOAT // 8

    def codes(self) -> Tensor:
        """Return the codes (G, O, I) int32."""
        return bit_packing.unpack(self.data, self.bits, math.prod(self.shape)).view(self.shape)

    def decode(self) -> Tensor:
        """Return the weights (G, O, I), by the table."""
        return self.scale * self.table[self.codes()]


def pack(codes: Tensor, grid: LevelGrid) -> Packed:
    """Return the weights that `codes` (G, O, I) of a `grid` name, packed.

    Raises
    ------
    SqError : codes that the grid does not have
    """
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < grid.levels:
        raise SqError(
            f"codes {int(codes.min())} to {int(codes.max())}: the grid has 0 to {grid.levels - 1}"
        )
    width = code_bits(grid)
    return Packed(bit_packing.pack(codes, width), width, tuple(codes.shape), grid.table, grid.scale)


@dataclass(frozen=True)
class Shifts:
    """A table of levels as signs, shifts and a mark: level = sign 2^-right {1, 1 / sqrt(2)}."""

    sign: Tensor  # (L,) int64, -1, 0 or 1
    right: Tensor  # (L,) int64, shift to the right
    odd: Tensor  # (L,) bool, times 1 / sqrt(2)

    def sums(self, codes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E and O (G, O, N) int64 of integers `x` (G, I, N) and weights by `codes` (G, O, I).

        They are in units of 2^-m, m the largest shift there is.
        """
        deepest, x = int(self.right.max()), x.long()
        even, odd = x.new_zeros(2, *codes.shape[:2], x.shape[2])
        # inputs of equal shifts are added first, so that each sum is shifted once
        for n in range(deepest + 1):
            for total, own in ((even, ~self.odd), (odd, self.odd)):
                signs = torch.where(own & (self.right == n), self.sign, 0)[codes]
                total += torch.bmm(signs, x) << (deepest - n)
        return even, odd

    def multiply(self, codes: Tensor, x: Tensor) -> tuple[Tensor, int]:
        """Return the product (G, O, N) of weights and integers `x` (G, I, N) as int64, and its bits after the point.

        Scales of weights and inputs, which are left out, come once for each output, as on any grid.
        """
        even, odd = self.sums(codes, x)
        return (even << POINT) + odd * round(math.sqrt(0.5) * 2**POINT), POINT + int(
            self.right.max()
        )


def shifts(table: Tensor) -> Shifts:
    """Return a table (L,) of levels, as they are in float32, as shifts.

    Raises
    ------
    SqError : a level that is not zero, and no power of the square root of two, from 1 down to
    2^-15.5
    """
    levels = table.float().double()
    size = levels.abs()
    k = torch.where(size > 0, (-2 * size.clamp_min(2.0**-99).log2()).round(), 0).long()
    right, odd = k // 2, (k % 2).bool()
    root = torch.tensor(math.sqrt(0.5), dtype=torch.float32).double()
    made = Shifts(levels.sign().long(), right, odd)
    back = made.sign * 2.0 ** -right.double() * torch.where(odd, root, 1.0)
    if not torch.equal(back, levels) or int(right.min()) < 0 or int(right.max()) > DEEPEST:
        raise SqError(
            "shifts are for levels 0 and +-sqrt(2)^-k, k = 0 .. 31: grid=post or pot of 2 to 5 bits"
        )
    return made
