"""Uniform grids of weights: one scale and zero point for each output channel, fitted to its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.config.constraints import Count, Positive, Share
from sq.core.wording import quantity
from sq.errors import SqError
from sq.grid.range_search import Hessian, Range, Ranges, importance
from sq.grid.uniform_grid import UniformGrid, spanning

__all__ = ["fit", "importance"]


def fit(
    W: Tensor,
    bits: int,
    h: Tensor | None = None,
    *,
    symmetric: bool,
    range: Range,
    norm: Positive,
    steps: Count,
    shrink: Share,
    hessian: Hessian,
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
    SqError : `bits` outside its range, or weights that are not finite; range="hmse" of weights
    without `h`

    Source
    ------
    The search follows Frantar et al. 2022 (OBC), arXiv:2208.11580, as described for its per-channel
    grids. "hmse" is the error of Gordon et al. 2023 (EPTQ), arXiv:2309.11531, over these ranges;
    they narrow a search down instead.
    """
    lowest = 2 if symmetric else 1
    if not lowest <= bits <= 16:
        kind = "symmetric" if symmetric else "affine"
        raise SqError(f"{quantity(bits, 'bit')}: a uniform grid ({kind}) takes {lowest} to 16")
    ranges = Ranges(range, norm, steps, 1.0, shrink)
    ranges.check(W, h)
    low = W.amin(-1, keepdim=True).clamp(max=0)
    high = W.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    return ranges.fit(W, h, lambda factor: spanning(low * factor, high * factor, bits, symmetric))
