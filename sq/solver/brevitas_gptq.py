"""GPTQ as brevitas implements it: an outside peer, handed our H and our grid. The only file that imports brevitas.

Fairness, in both directions:

* H: brevitas would sum 2 X X^T / N itself; its buffer gets our H instead, damped already, and its
own
  damping is 0.
* Grid: brevitas' weight quantizer rounds, clamps and rescales as it always does, but its scale and
zero point
  are ours, constants. That spares it the statistics that its own quantizers would repeat for each
  column.
* Time: building its layer and copying H in is `prepare`; what the benchmark counts is the solve. A
layer
  without groups is a linear one to brevitas, whose columns it slices faster than a convolution's.
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

# brevitas warns so, and leaves the weights alone
GAVE_UP = "Failed to compute the inverse of the Hessian"

_alone = threading.Lock()


def solve(
    W: Tensor, H: Tensor, grid: Grid, *, order: Literal["natural", "act"], blocks: Count
) -> Tensor:
    """Minimise tr((W - Q) H (W - Q)^T) greedily over Q on the grid, by brevitas' GPTQ.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    grid : a uniform one
    order : "natural" takes columns as they stand; "act" by falling diagonal of H (act-order)
    blocks : into how many blocks the columns are split (brevitas' own default is 100)

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
    """Return a function, to be called once, that does what `solve` does after all is set up."""
    layer_of, optimizer = _brevitas()
    layer = layer_of(W, grid)
    update = optimizer(
        layer, "layer", order == "act", 1, False, blocks, device="same", dtype=W.dtype
    )
    update.H.copy_(H)

    def run() -> Tensor:
        # Layers are solved side by side, and what is caught are the warnings of all threads.
        with _alone, torch.no_grad(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            update.single_layer_update(percdamp=0.0)
        if any(GAVE_UP in str(warning.message) for warning in said):
            raise torch.linalg.LinAlgError("brevitas: H is not positive definite")
        return grid.encode(layer.weight.detach().reshape(W.shape))

    return run


class _Given(nn.Module):
    """Stands where a brevitas quantizer would compute its scale or zero point, and returns the one given."""

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: Any) -> Tensor:
        return self.value


def _brevitas() -> tuple[Callable[[Tensor, Grid], Any], Any]:
    """Return what makes a brevitas layer, and the class that solves it."""
    try:
        with _alone, warnings.catch_warnings():  # of packages that brevitas can do without
            warnings.simplefilter("ignore")
            from brevitas import nn as quantized
            from brevitas.graph.gptq import GPTQ
            from brevitas.quant.shifted_scaled_int import (
                ShiftedUint8WeightPerChannelFloat as Affine,
            )
    except ImportError as error:
        raise SqError(
            f"quantizer peer/brevitas_gptq needs brevitas ({error}): python -m pip install 'brevitas>=0.13.4'"
        ) from error

    def layer_of(W: Tensor, grid: Grid) -> Any:
        scale, low = _uniform(grid, W)
        G, O, I = W.shape
        bits = (grid.levels - 1).bit_length()
        knobs: dict[str, Any] = {"bias": False, "weight_quant": Affine, "weight_bit_width": bits}
        knobs |= {"device": W.device, "dtype": W.dtype}
        if G == 1:
            layer = quantized.QuantLinear(I, O, **knobs)
        else:
            layer = quantized.QuantConv1d(G * I, G * O, 1, groups=G, **knobs)
        layer.weight.data.copy_(W.reshape(layer.weight.shape))
        each = (G * O, *([1] * (layer.weight.ndim - 1)))
        # brevitas: code = round(w / scale + zero), clamped to 0 .. 2^bits - 1; ours: the same for
        # zero = -low.
        quantizer = layer.weight_quant.tensor_quant
        quantizer.int_scaling_impl = _Given(torch.ones((), dtype=W.dtype, device=W.device))
        quantizer.scaling_impl = _Given(scale.reshape(each))
        quantizer.zero_point_impl = _Given(-low.reshape(each))
        return layer.eval()

    return layer_of, GPTQ


def _uniform(grid: Any, W: Tensor) -> tuple[Tensor, Tensor]:
    """Return `scale` and `low` of a grid whose values are scale * (code + low) with codes from 0."""
    G, O, _ = W.shape
    codes = torch.arange(grid.levels, dtype=torch.int32, device=W.device).expand(G, O, -1)
    scale, low = getattr(grid, "scale", None), getattr(grid, "low", None)
    if scale is None or low is None or not torch.equal(grid.decode(codes), scale * (codes + low)):
        raise SqError(f"peer/brevitas_gptq takes uniform grids, which {type(grid).__name__} is not")
    return scale, low
