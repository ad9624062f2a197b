"""Uniform grids: equally spaced values, one scale and zero point for each output channel.

value = scale * (code - zero),   code = 0 .. 2^bits - 1,   low = -zero
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sq.errors import SqError
from sq.types import Count, Grid, Positive, Share

CHUNK = 2**22  # elements of one range-search temporary: 16 MiB in float32


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
        return (torch.div(values, self.scale).round_().clamp_(self.low, self.high) - self.low).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        """Return ``scale * (codes + low)``."""
        return self.scale * (codes.to(self.scale.dtype) + self.low)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value, each (G, O, 1)."""
        return self.scale * self.low, self.scale * self.high

    def steps(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far below and above each code's value its neighbours are, (G, O, I); inf where none is."""
        down = torch.where(codes > 0, self.scale, torch.inf)
        return down, torch.where(codes < self.levels - 1, self.scale, torch.inf)

    def refit(self, W: Tensor, H: Tensor, codes: Tensor) -> UniformGrid:
        """Return the grid with each row's scale at the least loss (w - s k) H (w - s k)^T for its integers k.

        That scale is k H w / k H k. A row keeps its own where this is not a positive number.
        """
        k = codes.to(W.dtype) + self.low
        product = torch.bmm(k, H)
        scale = (product * W).sum(2, keepdim=True) / (product * k).sum(2, keepdim=True)
        usable = torch.isfinite(scale) & (scale > 0)
        return UniformGrid(torch.where(usable, scale, self.scale), self.low, self.high, self.levels)

    def half_step(self) -> Tensor:
        """Return half the distance between neighbouring values, (G, O, 1)."""
        return self.scale / 2

    def map(self, function: Callable[[Tensor], Tensor]) -> UniformGrid:
        """Return the grid with `function` applied to `scale`, `low` and `high`."""
        return UniformGrid(function(self.scale), function(self.low), function(self.high), self.levels)

    def parameters(self) -> int:
        """Return how many 32-bit numbers are stored beside the codes: a scale and a zero a channel."""
        return 2 * self.scale.numel()


def fit(
    W: Tensor,
    bits: int,
    *,
    symmetric: bool,
    range: Literal["minmax", "mse"],
    norm: Positive,
    steps: Count,
    shrink: Share,
) -> Grid:
    """Fit a uniform grid to each output channel of `W`.

    Parameters
    ----------
    W : (G, O, I)
    bits : 1 to 16 (2 to 16 if symmetric); the grid has 2^bits values
    symmetric : codes around a zero point at the middle, so that zero is exact and needs no storage;
        otherwise the range is [min(W, 0), max(W, 0)] of the channel (affine)
    range : "minmax" covers all of a channel; "mse" shrinks that range to the one of least error
    norm : exponent of that error, sum |w - Q(w)|^norm; 2.4 in the code of OBC and GPTQ
    steps : how many ranges are tried, from `shrink` to 1 times the full one
    shrink : the smallest range tried, in (0, 1]

    Raises
    ------
    SqError : `bits` outside its range, or weights that are not finite

    Source
    ------
    The search follows Frantar et al. 2022 (OBC), arXiv:2208.11580, as described for its per-channel grids.
    """
    lowest = 2 if symmetric else 1
    if not lowest <= bits <= 16:
        kind = "symmetric" if symmetric else "affine"
        raise SqError(f"{bits} bits: a uniform grid ({kind}) takes {lowest} to 16")
    if not torch.isfinite(W).all():
        raise SqError("weights hold NaN or infinity: check the checkpoint")
    low = W.amin(-1, keepdim=True).clamp(max=0)
    high = W.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if range == "minmax":
        return _grid(low, high, bits, symmetric)
    factors = torch.linspace(1.0, shrink, steps, dtype=W.dtype, device=W.device)
    best = _search(W, low, high, factors, bits, symmetric, norm)
    return _grid(low * best, high * best, bits, symmetric)


def _grid(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> UniformGrid:
    levels = 2**bits
    span = high - low
    empty = span <= torch.finfo(span.dtype).tiny  # an all-zero channel: any scale represents it
    span = torch.where(empty, torch.ones_like(span), span)
    # Symmetric codes span [-2^(b-1), 2^(b-1) - 1]: dividing by levels - 1 keeps both ends in reach.
    scale = span / (levels - 1)
    lowest = torch.full_like(scale, -(levels // 2)) if symmetric else torch.round(low / scale)
    return UniformGrid(scale, lowest, lowest + (levels - 1), levels)


def _search(W: Tensor, low: Tensor, high: Tensor, factors: Tensor, bits: int, symmetric: bool, norm: float) -> Tensor:
    """Return (G, O, 1): of `factors`, the range factor of least error; the largest one on a tie."""
    errors = []
    per_chunk = max(1, CHUNK // W.numel())
    for chunk in factors.split(per_chunk):
        factor = chunk.view(-1, 1, 1, 1)
        grid = _grid(low * factor, high * factor, bits, symmetric)
        error = (W - grid.nearest(W.expand(len(chunk), *W.shape))).abs_()
        power = error.log2_().mul_(norm).exp2_()  # three times as fast as pow; 0 stays 0 by way of -inf
        errors.append(power.sum(-1, keepdim=True))
    return factors[torch.cat(errors).argmin(0)]
