"""Ranges of weights: how wide a grid each output channel gets, searched for the least error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sq.errors import SqError
from sq.types.grid_protocol import Grid
from sq.types.problem import Model

# Elements of one range-search temporary, 4 MiB in float32: what stays in the cache is 1.7 times as
# fast as 16 MiB.
CHUNK = 2**20
Range = Literal["minmax", "mse", "hmse"]
# What gives h (G, O, I), the cost of a squared error of each weight, of all layers, and the draws
# it took.
Hessian = Callable[[Model, Tensor], tuple[dict[str, Tensor], int]]

G = TypeVar("G", bound=Grid)


@dataclass(frozen=True)
class Ranges:
    """Which ranges of a channel are tried, as shares of one that covers all of it, and by what they are judged.

    Parameters
    ----------
    range : "minmax" covers all of a channel; "mse" takes the range of least error sum |w -
    Q(w)|^norm, "hmse" that of
        least sum h (w - Q(w))^2
    norm : exponent of the error of "mse"
    steps : how many are tried
    widest, narrowest : the first and the last tried
    """

    range: Range
    norm: float
    steps: int
    widest: float
    narrowest: float

    def check(self, W: Tensor, h: Tensor | None) -> None:
        """Raise an `SqError` for weights that are not finite, or if `h` is missing or not asked for."""
        if not torch.isfinite(W).all():
            raise SqError("weights hold NaN or infinity: check the checkpoint")
        if (h is None) is (self.range == "hmse"):
            raise SqError(
                f"grid.range={self.range}: hmse, and no other range, takes what the network's outputs tell of each "
                "weight; of layers without a network, as in a benchmark, use range=mse"
            )

    def fit(
        self,
        W: Tensor,
        h: Tensor | None,
        spanned: Callable[[float | Tensor], G],
        places: Tensor | None = None,
    ) -> G:
        """Return, of the grids that are tried, the one that costs each channel least; the widest of them on a tie.

        Parameters
        ----------
        W : (G, O, I)
        h : (G, O, I), what a squared error of each weight costs, if the range asks for it
        spanned : ``spanned(factor) -> grid`` of that share, (..., G, O, 1), of the range that
        covers a channel
        places : (G, O, I), where each weight of a channel, as they were, stands in `W` and `h`, if
        these are sorted:
            sums are over weights as they were, so that sorting changes no result
        """
        if self.range == "minmax":
            return spanned(1.0)
        factors = torch.linspace(
            self.widest, self.narrowest, self.steps, dtype=W.dtype, device=W.device
        )
        errors, cost = [], self.cost(h)
        per_chunk = max(1, CHUNK // W.numel())
        for chunk in factors.split(per_chunk):
            grid = spanned(chunk.view(-1, 1, 1, 1))
            error = W - grid.nearest(W.expand(len(chunk), *W.shape))
            costs = cost(error)
            if places is not None:
                costs = costs.gather(-1, places.expand_as(costs))
            errors.append(costs.sum(-1, keepdim=True))
        return spanned(factors[torch.cat(errors).argmin(0)])

    def cost(self, h: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return what an error costs, element by element; it may be changed in place."""
        if h is not None:
            return lambda error: error.square_().mul_(h)
        # Three times as fast as pow; 0 stays 0 by way of -inf.
        return lambda error: error.abs_().log2_().mul_(self.norm).exp2_()


def importance(*, range: str, hessian: Hessian, **_: Any) -> Hessian | None:
    """Return what gives h of all layers if the range needs it; beside `fit` in grids (`hessian.weight_importance`)."""
    return hessian if range == "hmse" else None
