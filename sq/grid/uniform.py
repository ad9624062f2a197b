"""Uniform grids of weights: one scale and zero point for each output channel, fitted to its weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sq.errors import SqError
from sq.knobs import Count, Positive, Share
from sq.uniform import UniformGrid, spanning

CHUNK = 2**22  # elements of one range-search temporary: 16 MiB in float32


def fit(
    W: Tensor,
    bits: int,
    *,
    symmetric: bool,
    range: Literal["minmax", "mse"],
    norm: Positive,
    steps: Count,
    shrink: Share,
) -> UniformGrid:
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
        return spanning(low, high, bits, symmetric)
    factors = torch.linspace(1.0, shrink, steps, dtype=W.dtype, device=W.device)
    best = _search(W, low, high, factors, bits, symmetric, norm)
    return spanning(low * best, high * best, bits, symmetric)


def _search(W: Tensor, low: Tensor, high: Tensor, factors: Tensor, bits: int, symmetric: bool, norm: float) -> Tensor:
    """Return (G, O, 1): of `factors`, the range factor of least error; the largest one on a tie."""
    errors = []
    per_chunk = max(1, CHUNK // W.numel())
    for chunk in factors.split(per_chunk):
        factor = chunk.view(-1, 1, 1, 1)
        grid = spanning(low * factor, high * factor, bits, symmetric)
        error = (W - grid.nearest(W.expand(len(chunk), *W.shape))).abs_()
        power = error.log2_().mul_(norm).exp2_()  # three times as fast as pow; 0 stays 0 by way of -inf
        errors.append(power.sum(-1, keepdim=True))
    return factors[torch.cat(errors).argmin(0)]
