"""Range search: how wide the grid of each output channel is, by the least quantization error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sq.errors import SqError
from sq.types.grid_protocol import Grid
from sq.types.problem import Model

# Elements of one temporary of the search: 4 MiB in float32, which stay in the cache. With 16 MiB
# the search takes 1.7 times as long.
CHUNK_ELEMENTS = 2**20
Range = Literal["minmax", "mse", "hmse"]
# hessian(model, images) -> h (G, O, I) by layer name, the cost of a squared error of each weight,
# and the number of random draws it took.
Hessian = Callable[[Model, Tensor], tuple[dict[str, Tensor], int]]

G = TypeVar("G", bound=Grid)


@dataclass(frozen=True)
class Ranges:
    """Which multiples of a channel's full range are tried, and by what error they are compared.

    Parameters
    ----------
    range : "minmax" takes the full range; "mse" the range of least error sum |w - Q(w)|^norm;
        "hmse" that of least sum h (w - Q(w))^2
    norm : exponent of the error of "mse"
    steps : number of ranges tried, evenly spaced
    widest, narrowest : the first and the last of them
    """

    range: Range
    norm: float
    steps: int
    widest: float
    narrowest: float

    def check(self, W: Tensor, h: Tensor | None) -> None:
        """Raise an `SqError` if weights are not finite, or `h` is missing or not needed."""
        if not torch.isfinite(W).all():
            raise SqError("weights hold NaN or infinity: check the checkpoint")
        if self.range == "hmse" and h is None:
            raise SqError(
                "grid.range=hmse needs a network: it weighs errors by the curvature of outputs; "
                "for single layers, as in a benchmark, use range=mse"
            )
        if self.range != "hmse" and h is not None:
            raise SqError(f"grid.range={self.range} takes no importance of weights; use range=hmse")

    def fit(
        self,
        W: Tensor,
        h: Tensor | None,
        make_grid: Callable[[float | Tensor], G],
        inverse_order: Tensor | None = None,
    ) -> G:
        """Return the grid with the range of least cost for each channel; the widest on a tie.

        Parameters
        ----------
        W : (G, O, I)
        h : (G, O, I), the cost of a squared error of each weight, if the range asks for it
        make_grid : ``make_grid(factor) -> grid`` for `factor` (..., G, O, 1) times the full range
        inverse_order : (G, O, I), if `W` and `h` are sorted: the index of each weight of the
            original order in them. Costs are summed in the original order, so that sorting does not
            change the result
        """
        if self.range == "minmax":
            return make_grid(1.0)
        factors = torch.linspace(
            self.widest, self.narrowest, self.steps, dtype=W.dtype, device=W.device
        )
        cost = self.cost(h)
        channel_costs = []
        for chunk in factors.split(max(1, CHUNK_ELEMENTS // W.numel())):
            grid = make_grid(chunk.view(-1, 1, 1, 1))
            error = W - grid.nearest(W.expand(len(chunk), *W.shape))  # (chunk, G, O, I)
            costs = cost(error)
            if inverse_order is not None:
                costs = costs.gather(-1, inverse_order.expand_as(costs))
            channel_costs.append(costs.sum(-1, keepdim=True))
        best = torch.cat(channel_costs).argmin(0)  # (G, O, 1)
        return make_grid(factors[best])

    def cost(self, h: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return the function of an error's cost, by element; it may overwrite the error."""
        if h is not None:
            return lambda error: error.square_().mul_(h)
        # |e|^norm = 2^(norm log2 |e|), three times as fast as pow; log2(0) = -inf gives 0.
        return lambda error: error.abs_().log2_().mul_(self.norm).exp2_()


def importance(*, range: str, hessian: Hessian, **_: Any) -> Hessian | None:
    """Return `hessian` if the range needs h, None otherwise.

    Grids have this function beside `fit`, see `sq.hessian.weight_importance`.
    """
    return hessian if range == "hmse" else None
