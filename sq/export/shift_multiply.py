"""Weights as codes with a table of levels, and products by shifts and additions.

`Packed` stores each code in the whole bits that its levels need, the table, and a scale per
channel. If levels are powers of the square root of two (POST) or of two (PoT), `Shifts` multiplies
integers with them by shifts and additions, and by one constant once per output:

    sqrt(2)^-k = 2^-floor(k / 2) {1, 1 / sqrt(2)},   sum_i w_i x_i = 2^-m (E + O / sqrt(2))

E sums the inputs of weights with even k, O those with odd k, each shifted left by m - floor(k / 2)
bits.
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

# Fraction bits of the constant 1 / sqrt(2): as many as float32 has of it, so it equals the constant
# of the table.
CONSTANT_BITS = 24
# The largest shift: with 8-bit inputs, 2^14 of them and `CONSTANT_BITS`, sums stay within 63 bits.
MAX_SHIFT = 15


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
        """Return the bytes of codes, table and scales; table and scales have 32 bits."""
        return len(self.data) + (len(self.table) + self.scale.numel()) * FLOAT // 8

    def codes(self) -> Tensor:
        """Return the codes (G, O, I) int32."""
        return bit_packing.unpack(self.data, self.bits, math.prod(self.shape)).view(self.shape)

    def decode(self) -> Tensor:
        """Return the weights (G, O, I), by the table."""
        return self.scale * self.table[self.codes()]


def pack(codes: Tensor, grid: LevelGrid) -> Packed:
    """Return the packed weights of `codes` (G, O, I) on a `grid`.

    Raises
    ------
    SqError : the grid does not have these codes
    """
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < grid.levels:
        raise SqError(
            f"codes {int(codes.min())} to {int(codes.max())}: the grid has 0 to {grid.levels - 1}"
        )
    bits = code_bits(grid)
    return Packed(bit_packing.pack(codes, bits), bits, tuple(codes.shape), grid.table, grid.scale)


@dataclass(frozen=True)
class Shifts:
    """A table of levels as signs and shifts: level = sign 2^-right {1, 1 / sqrt(2)}."""

    sign: Tensor  # (L,) int64, -1, 0 or 1
    right: Tensor  # (L,) int64, shift to the right
    odd: Tensor  # (L,) bool, times 1 / sqrt(2)

    def sums(self, codes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums E and O (G, O, N) int64 of weights `codes` (G, O, I) and `x` (G, I, N).

        `x` are integers. The unit of the sums is 2^-m, m the largest shift of the table.
        """
        largest_shift, x = int(self.right.max()), x.long()
        even_sum, odd_sum = x.new_zeros(2, *codes.shape[:2], x.shape[2])
        # Inputs with equal shifts are added first, so that each sum is shifted once.
        for shift in range(largest_shift + 1):
            has_shift = self.right == shift
            even_signs = torch.where(~self.odd & has_shift, self.sign, 0)[codes]
            even_sum += torch.bmm(even_signs, x) << (largest_shift - shift)
            odd_signs = torch.where(self.odd & has_shift, self.sign, 0)[codes]
            odd_sum += torch.bmm(odd_signs, x) << (largest_shift - shift)
        return even_sum, odd_sum

    def multiply(self, codes: Tensor, x: Tensor) -> tuple[Tensor, int]:
        """Return the product (G, O, N) int64 of weights and integers `x`, and its fraction bits.

        Scales of weights and inputs are left out: they apply once per output, as on any grid.
        """
        even_sum, odd_sum = self.sums(codes, x)
        constant = round(math.sqrt(0.5) * 2**CONSTANT_BITS)
        product = (even_sum << CONSTANT_BITS) + odd_sum * constant
        return product, CONSTANT_BITS + int(self.right.max())


def shifts(table: Tensor) -> Shifts:
    """Return a table (L,) of float32 levels as shifts.

    Raises
    ------
    SqError : a level is neither zero nor a power of the square root of two from 1 down to 2^-15.5
    """
    levels = table.float().double()
    size = levels.abs()
    k = torch.where(size > 0, (-2 * size.clamp_min(2.0**-99).log2()).round(), 0).long()
    right, odd = k // 2, (k % 2).bool()
    root = torch.tensor(math.sqrt(0.5), dtype=torch.float32).double()
    result = Shifts(levels.sign().long(), right, odd)
    decoded = result.sign * 2.0 ** -right.double() * torch.where(odd, root, 1.0)
    if not torch.equal(decoded, levels) or int(right.min()) < 0 or int(right.max()) > MAX_SHIFT:
        raise SqError(
            "shifts are for levels 0 and +-sqrt(2)^-k, k = 0 .. 31: grid=post or pot of 2 to 5 bits"
        )
    return result
