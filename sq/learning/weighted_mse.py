"""How far outputs are from those of full precision: sums of squares, weighed by image or by element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Squares(torch.autograd.Function):
    """sum(w (y - wanted)^2) and its derivative by y, in two passes over y each."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        apart = y - wanted
        weighed = apart * weight
        ctx.save_for_backward(weighed)
        return torch.dot(*(_flat(t) for t in (apart, weighed)))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (weighed,) = ctx.saved_tensors
        return weighed.mul_(2 * g), None, None  # in place: a step goes back once


def squares(y: Tensor, wanted: Tensor, weight: Tensor, channels: int) -> Tensor:
    """Return the mean over images and positions of ``weight * (y - wanted)^2``, summed over channels.

    Parameters
    ----------
    y, wanted : (B, C, ...) of convolutions, (B, ..., C) of linear layers; B may be a multiple of
    the number of images,
        the parts of each one after the other (windows, patches). Sums are of the precision of
        `wanted`
    weight : (images,) of each image, or of the shape of `y`
    channels : C; the axis that they are on makes no difference
    """
    y, positions = y.to(wanted.dtype), y[0].numel() // channels
    if weight.ndim == 1:
        weight = weight.repeat_interleave(len(y) // len(weight)) if len(weight) < len(y) else weight
    shaped = weight.view(-1, *[1] * (y.ndim - 1)) if weight.ndim == 1 else weight
    return _Squares.apply(y, wanted, shaped) / (len(y) * positions)


def _flat(x: Tensor) -> Tensor:
    return (x.movedim(1, -1) if x.ndim > 2 else x).reshape(-1)
