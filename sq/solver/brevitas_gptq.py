"""GPTQ as brevitas implements it, given our H and our grid. The only file that imports brevitas.

The comparison is fair in both directions:

* H: brevitas would sum 2 X X^T / N itself. Its buffer gets our H instead, already damped, and its
  own damping is 0.
* Grid: brevitas' weight quantizer rounds, clamps and rescales as it always does, but its scale and
  zero point are ours, constants. That saves it the statistics that its own quantizers would repeat
  for each column.
* Time: building its layer and copying H in is `prepare`; the benchmark counts the solve only. A
  layer without groups is a linear one to brevitas, whose columns it slices faster than a
  convolution's.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sq.config.constraints import Count
from sq.errors import SqError
from sq.types.problem import Grid

# With this warning brevitas leaves the weights as they are.
NOT_INVERTIBLE = "Failed to compute the inverse of the Hessian"

# Layers are solved in parallel threads, and Python records the warnings of all threads together.
_lock = threading.Lock()


def solve(
    W: Tensor, H: Tensor, grid: Grid, *, order: Literal["natural", "act"], blocks: Count
) -> Tensor:
    """Minimise tr((W - Q) H (W - Q)^T) greedily over Q on the grid, by brevitas' GPTQ.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    grid : a uniform one
    order : "natural" keeps the order of the columns; "act" sorts them by falling diagonal of H
        (act-order)
    blocks : number of blocks the columns are split into (brevitas' default is 100)

    Returns
    -------
    codes : (G, O, I) int32

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite
    SqError : brevitas is not installed, or the grid is not uniform

    Source
    ------
    brevitas 0.13 (https://github.com/Xilinx/brevitas), its graph.gptq.GPTQ, called and not copied.
    """
    return prepare(W, H, grid, order=order, blocks=blocks)()


def prepare(
    W: Tensor, H: Tensor, grid: Grid, *, order: Literal["natural", "act"], blocks: Count
) -> Callable[[], Tensor]:
    """Return a function, to be called once, that does what `solve` does after the set-up."""
    make_layer, GPTQ = _brevitas()
    layer = make_layer(W, grid)
    act_order = order == "act"
    update = GPTQ(layer, "layer", act_order, 1, False, blocks, device="same", dtype=W.dtype)
    update.H.copy_(H)

    def run() -> Tensor:
        with _lock, torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            update.single_layer_update(percdamp=0.0)
        if any(NOT_INVERTIBLE in str(warning.message) for warning in caught):
            raise torch.linalg.LinAlgError("brevitas: H is not positive definite")
        return grid.encode(layer.weight.detach().reshape(W.shape))

    return run


class _Constant(nn.Module):
    """Returns a constant, in the place of a brevitas module that computes a scale or zero point."""

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: Any) -> Tensor:
        return self.value


def _brevitas() -> tuple[Callable[[Tensor, Grid], Any], Any]:
    """Return a function that builds a brevitas layer, and the class that solves it."""
    try:
        # The warnings are about optional packages of brevitas.
        with _lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from brevitas import nn as brevitas_nn
            from brevitas.graph.gptq import GPTQ
            from brevitas.quant.shifted_scaled_int import (
                ShiftedUint8WeightPerChannelFloat as Affine,
            )
    except ImportError as error:
        raise SqError(
            f"quantizer peer/brevitas_gptq needs brevitas ({error}): "
            "python -m pip install 'brevitas>=0.13.4'"
        ) from error

    def make_layer(W: Tensor, grid: Grid) -> Any:
        scale, low = _scale_and_low(grid, W)
        G, O, I = W.shape
        arguments: dict[str, Any] = {
            "bias": False,
            "weight_quant": Affine,
            "weight_bit_width": (grid.levels - 1).bit_length(),
            "device": W.device,
            "dtype": W.dtype,
        }
        if G == 1:
            layer = brevitas_nn.QuantLinear(I, O, **arguments)
        else:
            layer = brevitas_nn.QuantConv1d(G * I, G * O, 1, groups=G, **arguments)
        layer.weight.data.copy_(W.reshape(layer.weight.shape))
        per_channel = (G * O, *([1] * (layer.weight.ndim - 1)))
        # brevitas: code = round(w / scale + zero), clamped to 0 .. 2^bits - 1. Ours is the same
        # with zero = -low.
        quantizer = layer.weight_quant.tensor_quant
        quantizer.int_scaling_impl = _Constant(torch.ones((), dtype=W.dtype, device=W.device))
        quantizer.scaling_impl = _Constant(scale.reshape(per_channel))
        quantizer.zero_point_impl = _Constant(-low.reshape(per_channel))
        return layer.eval()

    return make_layer, GPTQ


def _scale_and_low(grid: Any, W: Tensor) -> tuple[Tensor, Tensor]:
    """Return `scale` and `low` of a grid whose values are scale * (code + low), codes from 0."""
    G, O, _ = W.shape
    codes = torch.arange(grid.levels, dtype=torch.int32, device=W.device).expand(G, O, -1)
    scale, low = getattr(grid, "scale", None), getattr(grid, "low", None)
    if scale is None or low is None or not torch.equal(grid.decode(codes), scale * (codes + low)):
        raise SqError(
            f"quantizer peer/brevitas_gptq needs a uniform grid, got {type(grid).__name__}"
        )
    return scale, low
