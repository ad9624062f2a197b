"""Uniform grids: equally spaced values, a scale and a zero point for each channel or tensor.

value = scale * (code - zero),   code = 0 .. 2^bits - 1,   low = -zero
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sq.core.wording import quantity
from sq.errors import SqError


@dataclass(frozen=True)
class UniformGrid:
    """Values ``scale * k`` for the integers k of [low, high]; `scale` > 0, all three (G, O, 1)."""

    scale: Tensor
    low: Tensor
    high: Tensor
    levels: int

    def nearest(self, values: Tensor) -> Tensor:
        """Return the grid value nearest to each of `values` (G, O, any); halves round to even."""
        return torch.div(values, self.scale).round_().clamp_(self.low, self.high).mul_(self.scale)

    def on_numpy(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return `nearest` as a function of one column (G, O) in NumPy, for a grid laid out (G, 1, O)."""
        scale, low, high = (t[:, 0].numpy() for t in (self.scale, self.low, self.high))

        def nearest(values: np.ndarray) -> np.ndarray:
            steps = np.rint(values / scale)
            np.minimum(np.maximum(steps, low, out=steps), high, out=steps)
            return np.multiply(steps, scale, out=steps)

        return nearest

    def encode(self, values: Tensor) -> Tensor:
        """Return the code, int32 in 0 .. levels - 1, of the grid value nearest to each of `values`."""
        return (torch.div(values, self.scale).round_().clamp_(self.low, self.high) - self.low).to(
            torch.int32
        )

    def units(self, codes: Tensor) -> Tensor:
        """Return the integers ``codes + low``."""
        return codes.to(self.scale.dtype) + self.low

    def decode(self, codes: Tensor) -> Tensor:
        """Return ``scale * (codes + low)``."""
        return self.scale * self.units(codes)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value, each (G, O, 1)."""
        return self.scale * self.low, self.scale * self.high

    def steps(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far below and above each code's value its neighbours are, (G, O, I); inf where none is."""
        down = torch.where(codes > 0, self.scale, torch.inf)
        return down, torch.where(codes < self.levels - 1, self.scale, torch.inf)

    def gap(self, values: Tensor) -> Tensor:
        """Return the distance between neighbouring values, (G, O, 1), the same everywhere."""
        return self.scale

    def half_step(self) -> Tensor:
        """Return half the distance between neighbouring values, (G, O, 1)."""
        return self.scale / 2

    def scaled(self, factor: Tensor) -> UniformGrid:
        """Return the grid with its scale times `factor`."""
        return UniformGrid(self.scale * factor, self.low, self.high, self.levels)

    def refit(self, W: Tensor, H: Tensor, codes: Tensor) -> UniformGrid:
        """Return the grid with each row's scale at the least loss for its codes, see `best_scale`."""
        return UniformGrid(
            best_scale(self.units(codes), self.scale, W, H), self.low, self.high, self.levels
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> UniformGrid:
        """Return the grid with `function` applied to `scale`, `low` and `high`."""
        return UniformGrid(
            function(self.scale), function(self.low), function(self.high), self.levels
        )

    def parameters(self) -> int:
        """Return how many 32-bit numbers are stored beside the codes: a scale and a zero a channel."""
        return 2 * self.scale.numel()


def best_scale(k: Tensor, scale: Tensor, W: Tensor, H: Tensor) -> Tensor:
    """Return each row's scale of least loss (w - s k) H (w - s k)^T for its units k: k H w / k H k.

    A row keeps its own `scale` where this is not a positive number.
    """
    product = torch.bmm(k, H)
    found = (product * W).sum(2, keepdim=True) / (product * k).sum(2, keepdim=True)
    return torch.where(torch.isfinite(found) & (found > 0), found, scale)


def spanning(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> UniformGrid:
    """Return the grid of 2^bits values from `low` to `high`, both of any one shape, low <= 0 <= high.

    With `symmetric`, for which -low == high, codes stand around zero; otherwise the grid is affine.
    """
    levels = 2**bits
    span = high - low
    empty = span <= torch.finfo(span.dtype).tiny  # all is zero: any scale represents it
    span = torch.where(empty, torch.ones_like(span), span)
    # Symmetric codes span [-2^(b-1), 2^(b-1) - 1]: dividing by levels - 1 keeps both ends in reach.
    scale = span / (levels - 1)
    lowest = torch.full_like(scale, -(levels // 2)) if symmetric else torch.round(low / scale)
    return UniformGrid(scale, lowest, lowest + (levels - 1), levels)


def per_tensor(low: float, high: float, bits: int, symmetric: bool) -> UniformGrid:
    """Return the grid of a whole tensor of activations whose values lie in [low, high]; see `reach`.

    Its scale, low and high have no axes, so they broadcast against activations of any layout.

    Raises
    ------
    SqError : `bits` outside 1 to 16, or 2 to 16 where the grid is signed and symmetric
    """
    signed = symmetric and low < 0
    lowest = 2 if signed else 1
    if not lowest <= bits <= 16:
        kind = "signed, symmetric" if signed else "unsigned" if low >= 0 else "affine"
        raise SqError(
            f"{quantity(bits, 'bit')}: an activation grid ({kind}) takes {lowest} to 16; set activation.bits"
        )
    lower, upper = (torch.tensor(end, dtype=torch.float32) for end in reach(low, high, symmetric))
    return spanning(lower, upper, bits, signed)


def reach(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """Return the range that a grid for values in [low, high] has to span: it holds zero, so that zero is exact.

    It is [-a, a] if `symmetric`, but for values of which none is below zero, as after ReLU: those
    take [0, high].
    """
    low, high = min(low, 0.0), max(high, 0.0)
    return (-max(-low, high), max(-low, high)) if symmetric and low < 0 else (low, high)
