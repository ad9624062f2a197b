"""Uniform grids of weights: one scale and zero point for each output channel, fitted to its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sq.errors import SqError
from sq.knobs import Count, Positive, Share
from sq.types import Model
from sq.uniform import UniformGrid, spanning

CHUNK = 2**22  # elements of one range-search temporary: 16 MiB in float32


def fit(
    W: Tensor,
    bits: int,
    h: Tensor | None = None,
    *,
    symmetric: bool,
    range: Literal["minmax", "mse", "hmse"],
    norm: Positive,
    steps: Count,
    shrink: Share,
    hessian: Callable[[Model, Tensor], tuple[dict[str, Tensor], int]],
) -> UniformGrid:
    """Fit a uniform grid to each output channel of `W`.

    Parameters
    ----------
    W : (G, O, I)
    bits : 1 to 16 (2 to 16 if symmetric); the grid has 2^bits values
    h : (G, O, I), what a squared error of each weight costs, for range="hmse"; see `importance`
    symmetric : codes around a zero point at the middle, so that zero is exact and needs no storage;
        otherwise the range is [min(W, 0), max(W, 0)] of the channel (affine)
    range : "minmax" covers all of a channel; "mse" shrinks that range to the one of least error
        sum |w - Q(w)|^norm, "hmse" to that of least sum h (w - Q(w))^2
    norm : exponent of the error of "mse"; 2.4 in the code of OBC and GPTQ
    steps : how many ranges are tried, from `shrink` to 1 times the full one
    shrink : the smallest range tried, in (0, 1]
    hessian : what gives `h` of all layers, see `importance`

    Raises
    ------
    SqError : `bits` outside its range, or weights that are not finite; range="hmse" of weights without `h`

    Source
    ------
    The search follows Frantar et al. 2022 (OBC), arXiv:2208.11580, as described for its per-channel grids. "hmse" is
    the error of Gordon et al. 2023 (EPTQ), arXiv:2309.11531, over these ranges; they narrow a search down instead.
    """
    lowest = 2 if symmetric else 1
    if not lowest <= bits <= 16:
        kind = "symmetric" if symmetric else "affine"
        raise SqError(f"{bits} bits: a uniform grid ({kind}) takes {lowest} to 16")
    if not torch.isfinite(W).all():
        raise SqError("weights hold NaN or infinity: check the checkpoint")
    if (h is None) is (range == "hmse"):
        raise SqError(
            f"grid.range={range}: hmse, and no other range, takes what the network's outputs tell of each weight; of "
            "layers without a network, as in a benchmark, use range=mse"
        )
    low = W.amin(-1, keepdim=True).clamp(max=0)
    high = W.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if range == "minmax":
        return spanning(low, high, bits, symmetric)
    factors = torch.linspace(1.0, shrink, steps, dtype=W.dtype, device=W.device)
    best = _search(W, factors, lambda factor: spanning(low * factor, high * factor, bits, symmetric), _cost(h, norm))
    return spanning(low * best, high * best, bits, symmetric)


def importance(
    *, range: str, hessian: Callable[[Model, Tensor], tuple[dict[str, Tensor], int]], **_: Any
) -> Callable[[Model, Tensor], tuple[dict[str, Tensor], int]] | None:
    """Return what gives `h` of all layers, and the draws it took, if the range needs it; see `sq.importance`."""
    return hessian if range == "hmse" else None


def _cost(h: Tensor | None, norm: float) -> Callable[[Tensor], Tensor]:
    """Return what an error costs, element by element; both may change it in place."""
    if h is not None:
        return lambda error: error.square_().mul_(h)
    # Three times as fast as pow; 0 stays 0 by way of -inf.
    return lambda error: error.abs_().log2_().mul_(norm).exp2_()


def _search(
    W: Tensor, factors: Tensor, spanned: Callable[[Tensor], UniformGrid], cost: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return (G, O, 1): of `factors`, the one whose grid costs each channel least; the largest one on a tie."""
    errors = []
    per_chunk = max(1, CHUNK // W.numel())
    for chunk in factors.split(per_chunk):
        grid = spanned(chunk.view(-1, 1, 1, 1))
        error = W - grid.nearest(W.expand(len(chunk), *W.shape))
        errors.append(cost(error).sum(-1, keepdim=True))
    return factors[torch.cat(errors).argmin(0)]
