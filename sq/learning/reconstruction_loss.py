"""Squared errors of outputs against full precision, weighted by image or by element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sq.learning.layout import channels_last


class _WeightedSquares(torch.autograd.Function):
    """sum(w (y - target)^2) and its derivative by y, in two passes over y each."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        difference = y - target
        weighted = difference * weight
        ctx.save_for_backward(weighted)
        return torch.dot(channels_last(difference).reshape(-1), channels_last(weighted).reshape(-1))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (weighted,) = ctx.saved_tensors
        # In place: each step goes back only once.
        return weighted.mul_(2 * g), None, None


def squares(y: Tensor, target: Tensor, weight: Tensor, channels: int) -> Tensor:
    """Return ``weight * (y - target)^2``: sum over channels, mean over images and positions.

    Parameters
    ----------
    y, target : (B, C, ...) of convolutions, (B, ..., C) of linear layers. B may be a multiple of
        the number of images: the parts (windows, patches) of an image follow one another. Sums have
        the precision of `target`
    weight : (images,), or of the shape of `y`
    channels : C; it makes no difference on which axis they are
    """
    y = y.to(target.dtype)
    positions = y[0].numel() // channels
    if weight.ndim == 1:
        if len(weight) < len(y):
            weight = weight.repeat_interleave(len(y) // len(weight))
        weight = weight.view(-1, *[1] * (y.ndim - 1))
    return _WeightedSquares.apply(y, target, weight) / (len(y) * positions)
