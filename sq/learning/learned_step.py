"""Quantizers of layer inputs whose step size is learned (LSQ), with full precision mixed in.

    x' = x + m (Q(x) - x),    Q(x) = sigma s clip(round(x / (sigma s)), low, high)

m is the quantized share of x: one number (1 quantizes all), or a mask of 0 and 1. Gradients pass
the rounding unchanged (straight-through) and stop at clipped elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.grid.uniform_grid import UniformGrid
from sq.learning.layout import inner_product
from sq.learning.schedules import PrecisionMix
from sq.network import residual_adds
from sq.types.problem import Grid

# Least value of a learned factor of a scale: an optimizer step that is too long must not turn the
# signs of weights or inputs.
SCALE_FLOOR = 1e-3
# Values this close to the end of a range, in steps, count as inside.
RANGE_TOLERANCE = 1e-4


class InputQuantizer(nn.Module):
    """The quantizer of one layer's input: a grid with a learned factor `sigma` of its scale."""

    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, grid: UniformGrid):
        super().__init__()
        self.levels = grid.levels
        for name in ("scale", "low", "high"):
            self.register_buffer(name, getattr(grid, name).clone())
        self.sigma = nn.Parameter(torch.ones_like(grid.scale))

    def forward(self, x: Tensor, mix: PrecisionMix | None = None) -> Tensor:
        """Return `x` as the layer sees it; without a `mix`, all of it is quantized."""
        if x.dtype == torch.bfloat16:  # from autocast; grids are float32
            x = x.float()
        scale = self.sigma * self.scale
        share = 1.0 if mix is None else mix.quantized(x)
        if isinstance(share, Tensor):
            return _QuantizeMasked.apply(x, scale, self.low, self.high, share)
        if share == 0:
            return x
        return _QuantizeShare.apply(x, scale, self.low, self.high, share)

    def grid(self) -> UniformGrid:
        """Return the grid with the learned factor in its scale."""
        return UniformGrid(self.scale * self.sigma.detach(), self.low, self.high, self.levels)


class _QuantizeShare(torch.autograd.Function):
    """x' for one share m of all elements, with its derivatives by x and the scale.

    Written out, they take a third of the passes over x that autograd would. With g the gradient by
    x', the gradient by Q(x) is m g. Inside the range it passes to x, and its factor for the scale
    is Q(x) / s - x / s. Outside it stops, and the factor is Q(x) / s (LSQ, equation 3). So the
    gradient by the scale is a difference of two inner products.

    Source
    ------
    Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153, equations 2 and 3.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, share: float
    ) -> Tensor:
        q = _quantize(ctx, x, scale, low, high)
        ctx.share = share
        return q if share == 1 else torch.lerp(x, q, share)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        # The share is a factor of the sums: that saves a pass over g.
        by_x, by_scale = _gradients(ctx, g)
        if by_scale is not None:
            by_scale = by_scale * ctx.share
        if ctx.share != 1:
            by_x = torch.lerp(g, by_x, ctx.share)
        return by_x, by_scale, None, None, None


class _QuantizeMasked(torch.autograd.Function):
    """x' for a mask m of 0 and 1, with its derivatives by x and the scale; see `_QuantizeShare`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, mask: Tensor
    ) -> Tensor:
        q = _quantize(ctx, x, scale, low, high)
        ctx.mask = mask
        return torch.lerp(x, q, mask)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        by_q = g * ctx.mask
        by_x, by_scale = _gradients(ctx, by_q)
        # Elements in full precision pass their gradient: g - by_q.
        return by_x.add_(g).sub_(by_q), by_scale, None, None, None


def _quantize(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return Q(x), and keep in `ctx` what `_gradients` needs."""
    q = torch.div(x, scale).round_().clamp_(low, high).mul_(scale)
    ctx.scale = scale
    ctx.low = float((low - RANGE_TOLERANCE) * scale)
    ctx.high = float((high + RANGE_TOLERANCE) * scale)
    ctx.save_for_backward(x, q if ctx.needs_input_grad[1] else None)
    return q


def _gradients(ctx: Any, by_q: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the gradients by x and by the scale that follow from the one by Q(x)."""
    x, q = ctx.saved_tensors
    # One pass: by_q inside the range, else 0.
    by_x = torch.ops.aten.hardtanh_backward(by_q, x, ctx.low, ctx.high)
    if not ctx.needs_input_grad[1]:
        return by_x, None
    by_scale = (inner_product(by_q, q) - inner_product(by_x, x)) / ctx.scale
    return by_x, by_scale


def check_inputs(grids: Mapping[str, Grid]) -> dict[str, UniformGrid]:
    """Return the grids of layer inputs, after a check that their scales can be learned.

    Raises
    ------
    SqError : a grid is not uniform, or belongs to a residual addition
    """
    operands = [name for name in grids if residual_adds.is_side(name)]
    if operands:
        raise SqError(
            f"{len(operands)} operands of additions have grids, but learned quantizers take only "
            "inputs of layers: set activation.observe.adds=false, or quantizer=sensiquant"
        )
    return {name: _uniform(grid, name) for name, grid in grids.items()}


def _uniform(grid: Grid, name: str) -> UniformGrid:
    if not isinstance(grid, UniformGrid):
        raise SqError(
            f"{name}: inputs are learned on uniform grids, got {type(grid).__name__}; change "
            "activation"
        )
    return grid
