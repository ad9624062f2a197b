"""Uniform grids: equally spaced values, with a scale and a zero point for each channel or tensor.

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
        """Return `nearest` for one column (G, O) in NumPy, of a grid laid out (G, 1, O)."""
        scale, low, high = (t[:, 0].numpy() for t in (self.scale, self.low, self.high))

        def nearest(values: np.ndarray) -> np.ndarray:
            steps = np.rint(values / scale)
            np.minimum(np.maximum(steps, low, out=steps), high, out=steps)
            return np.multiply(steps, scale, out=steps)

        return nearest

    def encode(self, values: Tensor) -> Tensor:
        """Return the code of the grid value nearest to each of `values`: int32, 0 .. levels - 1."""
        steps = torch.div(values, self.scale).round_().clamp_(self.low, self.high)
        return (steps - self.low).to(torch.int32)

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
        """Return the distances to the next lower and higher value, each (G, O, I); inf if none."""
        down = torch.where(codes > 0, self.scale, torch.inf)
        up = torch.where(codes < self.levels - 1, self.scale, torch.inf)
        return down, up

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
        """Return the grid with each row's best scale for its codes, see `best_scale`."""
        scale = best_scale(self.units(codes), self.scale, W, H)
        return UniformGrid(scale, self.low, self.high, self.levels)

    def map(self, function: Callable[[Tensor], Tensor]) -> UniformGrid:
        """Return the grid with `function` applied to `scale`, `low` and `high`."""
        scale, low, high = function(self.scale), function(self.low), function(self.high)
        return UniformGrid(scale, low, high, self.levels)

    def parameters(self) -> int:
        """Return how many 32-bit numbers are stored beside the codes: scales and zero points."""
        return 2 * self.scale.numel()


def best_scale(k: Tensor, scale: Tensor, W: Tensor, H: Tensor) -> Tensor:
    """Return each row's scale s of least loss (w - s k) H (w - s k)^T, which is k H w / k H k.

    Parameters
    ----------
    k : (G, O, I), the units of the codes
    scale : (G, O, 1), kept for a row where the formula gives no positive number
    W : (G, O, I)
    H : (G, I, I)
    """
    kH = torch.bmm(k, H)
    best = (kH * W).sum(2, keepdim=True) / (kH * k).sum(2, keepdim=True)
    return torch.where(torch.isfinite(best) & (best > 0), best, scale)


def spanning(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> UniformGrid:
    """Return the grid of 2^bits values from `low` to `high`, where low <= 0 <= high.

    The two are tensors of one shape. With `symmetric`, which needs -low == high, the codes are
    around zero; otherwise the grid is affine.
    """
    levels = 2**bits
    span = high - low
    all_zero = span <= torch.finfo(span.dtype).tiny  # any scale represents zeros
    span = torch.where(all_zero, torch.ones_like(span), span)
    # Symmetric codes span [-2^(b-1), 2^(b-1) - 1]: with levels - 1, both ends round to a code.
    scale = span / (levels - 1)
    first = torch.full_like(scale, -(levels // 2)) if symmetric else torch.round(low / scale)
    return UniformGrid(scale, first, first + (levels - 1), levels)


def per_tensor(low: float, high: float, bits: int, symmetric: bool) -> UniformGrid:
    """Return the grid of a tensor of activations with values in [low, high], see `reach`.

    Its scale, low and high are 0-dimensional: they broadcast against activations of any layout.

    Raises
    ------
    SqError : `bits` outside 1 to 16, or 2 to 16 where the grid is signed and symmetric
    """
    signed = symmetric and low < 0
    if signed:
        kind, min_bits = "signed, symmetric", 2
    else:
        kind, min_bits = "unsigned" if low >= 0 else "affine", 1
    if not min_bits <= bits <= 16:
        raise SqError(
            f"{quantity(bits, 'bit')}: an activation grid ({kind}) takes {min_bits} to 16; "
            "set activation.bits"
        )
    lower, upper = (torch.tensor(end, dtype=torch.float32) for end in reach(low, high, symmetric))
    return spanning(lower, upper, bits, signed)


def reach(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """Return the range that a grid for values in [low, high] has to span, zero included.

    If `symmetric` it is [-a, a], unless no value is negative, as after ReLU: then it is [0, high].
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric and low < 0:
        high = max(-low, high)
        low = -high
    return low, high
