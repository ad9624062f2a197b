"""Inputs of layers on a grid whose scale is learned, with full precision mixed in.

    x' = x + m (Q(x) - x),    Q(x) = sigma s clip(round(x / (sigma s)), low, high)

m is one number, 1 where all is quantized, or 0 and 1 drawn for each element. Gradients pass a
rounding as if it were not there (straight-through), and a clipping not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.grid.uniform_grid import UniformGrid
from sq.learning.schedules import Mix
from sq.network import residual_adds
from sq.types.problem import Grid

# of what learned scales may shrink to: a step too long must not turn the signs of weights or inputs
FLOOR = 1e-3
EDGE = 1e-4  # of a step: the ends of a range belong to it


class Input(nn.Module):
    """The quantizer of what one layer is fed: its grid, and a learned factor `sigma` of the grid's scale."""

    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, grid: UniformGrid):
        super().__init__()
        self.levels = grid.levels
        for name in ("scale", "low", "high"):
            self.register_buffer(name, getattr(grid, name).clone())
        self.sigma = nn.Parameter(torch.ones_like(grid.scale))

    def forward(self, x: Tensor, mix: Mix | None = None) -> Tensor:
        """Return `x` as the layer sees it; quantized throughout where there is no `mix`."""
        x = x.float() if x.dtype == torch.bfloat16 else x  # autocast: a grid is of float32
        m = 1.0 if mix is None else mix.quantized(x)
        if isinstance(m, float) and m == 0:
            return x
        return _Quantize.apply(x, self.sigma * self.scale, self.low, self.high, m)

    def grid(self) -> UniformGrid:
        """Return the grid with the learned factor in its scale."""
        return UniformGrid(self.scale * self.sigma.detach(), self.low, self.high, self.levels)


class _Quantize(torch.autograd.Function):
    """x' with its derivatives by x and s, written out: a third of the passes over x that autograd would take.

    With g the gradient by x', m g is the one by Q(x). Inside of the range it passes on to x and,
    for the scale, is weighed by Q(x) / s - x / s; outside it stops, and is weighed by Q(x) / s
    alone (LSQ, equation 3). The sums over elements come from two inner products, because Q(x) = x +
    (x' - x) / m.

    Source
    ------
    Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153, equations 2 and 3.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, m: float | Tensor
    ) -> Tensor:
        q = torch.div(x, scale).round_().clamp_(low, high).mul_(scale)
        ctx.m, ctx.scale = m, scale
        ctx.range = float((low - EDGE) * scale), float((high + EDGE) * scale)
        ctx.save_for_backward(x, q if ctx.needs_input_grad[1] else None)
        return q if isinstance(m, float) and m == 1 else torch.lerp(x, q, m)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, q = ctx.saved_tensors
        m, one = ctx.m, isinstance(ctx.m, float)
        by_q = g if one else g * m  # one number is multiplied with sums, later
        # by_q inside of the range, else 0: one pass
        passed = torch.ops.aten.hardtanh_backward(by_q, x, *ctx.range)
        by_scale = None
        if ctx.needs_input_grad[1]:
            by_scale = (_inner(by_q, q) - _inner(passed, x)) / ctx.scale * (m if one else 1.0)
        if one:
            return passed if m == 1 else torch.lerp(g, passed, m), by_scale, None, None, None
        return passed.add_(g).sub_(by_q), by_scale, None, None, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a * b, in one pass where both have their channels last in memory."""
    if a.ndim == 4:
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


def check_inputs(grids: Mapping[str, Grid]) -> dict[str, UniformGrid]:
    """Return the grids of what layers are fed, if they can be learned.

    Raises
    ------
    SqError : a grid that is not uniform, or is of a residual addition
    """
    if sums := [name for name in grids if residual_adds.is_side(name)]:
        raise SqError(
            f"{len(sums)} operands of additions have grids, and learned quantizers know inputs of layers alone: set "
            "activation.observe.adds=false, or quantizer=sensiquant"
        )
    return {name: _uniform(grid, name) for name, grid in grids.items()}


def _uniform(grid: Grid, name: str) -> UniformGrid:
    if not isinstance(grid, UniformGrid):
        raise SqError(
            f"{name}: inputs are learned on uniform grids, got {type(grid).__name__}; change activation"
        )
    return grid
