"""Uniform grid of weights: a scale and a zero point for each output channel."""

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
    h : (G, O, I), the cost of a squared error of each weight, if range="hmse"
    symmetric : codes around a zero point in the middle, so that zero is exact and needs no storage;
        otherwise the range is [min(W, 0), max(W, 0)] of the channel (affine)
    range : "minmax" takes the full range of a channel; "mse" the smaller range of least error sum
        |w - Q(w)|^norm, "hmse" that of least sum h (w - Q(w))^2
    norm : exponent of the error of "mse"; 2.4 in the code of OBC and GPTQ
    steps : number of ranges tried, from `shrink` to 1 times the full one
    shrink : the smallest range tried, in (0, 1]
    hessian : computes `h` for all layers, see `sq.hessian.weight_importance`

    Raises
    ------
    SqError : `bits` outside its range; or see `Ranges.check`

    Source
    ------
    The search is that of Frantar et al. 2022 (OBC), arXiv:2208.11580, for per-channel grids. "hmse"
    is the error of Gordon et al. 2023 (EPTQ), arXiv:2309.11531, over these ranges; their own search
    narrows down instead.
    """
    kind, min_bits = ("symmetric", 2) if symmetric else ("affine", 1)
    if not min_bits <= bits <= 16:
        raise SqError(f"{quantity(bits, 'bit')}: a uniform grid ({kind}) takes {min_bits} to 16")
    ranges = Ranges(range, norm, steps, 1.0, shrink)
    ranges.check(W, h)
    low = W.amin(-1, keepdim=True).clamp(max=0)
    high = W.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    return ranges.fit(W, h, lambda factor: spanning(low * factor, high * factor, bits, symmetric))
