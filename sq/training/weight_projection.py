"""Weights that are trained while the network computes with the grid values nearest to them, for any grid.

    W' = nearest value to W of the grid  {s u : u a unit},    s learned for each channel

Gradients pass the projection as if it were not there (straight-through), and what lies beyond the
grid not at all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sq.learning.learned_step import FLOOR
from sq.network import geometry
from sq.types.problem import Grid, Layer


class Projected(torch.autograd.Function):
    """W' with its derivatives by W and s: with v = W / s and u its unit, u - v within the grid, u beyond it.

    On a uniform grid these are LSQ's, on levels those of POST.

    Source
    ------
    Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153, equations 2 and 3; Zhou et
    al. 2025 (ASQ and POST), arXiv 2504.17263, as its published code projects weights on levels.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        """Return W' of `W` (G, O, I), for the `grid` with `scale` (G, O, 1) in place of its own."""
        own = rescaled(grid, scale)
        q, (low, high) = own.nearest(W), own.bounds()
        inside = W.clamp(low, high) == W
        ctx.save_for_backward(inside, torch.where(inside, q - W, q) / scale)
        return q

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients by W and s."""
        inside, by_scale = ctx.saved_tensors
        return g * inside, (g * by_scale).sum(-1, keepdim=True), None


class Weight(nn.Module):
    """The weight of one layer and the scales of its grid, to be trained.

    Parameters
    ----------
    layer : of the full-precision network, whose weight it starts from
    grid : whose scales it starts from; published code starts at 2 mean|w| / sqrt(p), a fitted grid
    is our reading
    """

    def __init__(self, layer: Layer, grid: Grid):
        super().__init__()
        self.layer, self.first = layer, grid
        self.value = nn.Parameter(geometry.weight(layer.module).clone())
        self.scale = nn.Parameter(grid.scale.clone())

    @property
    def slower(self) -> float:
        """Return what the gradient of `scale` is multiplied with, 1 / sqrt(p n): p the largest unit, n the weights.

        Source
        ------
        Esser et al. 2020, arXiv 1902.08153, section 2.2; n is of a channel, as each has a scale,
        and p the larger end's size (8 for -8 to 7): our reading.
        """
        low, high = self.first.bounds()
        largest = float((torch.maximum(-low, high) / self.first.scale).max())
        return 1 / math.sqrt(largest * self.layer.inputs)

    def hold(self) -> None:
        """Keep scales above zero: at least at `FLOOR` of the first."""
        with torch.no_grad():
            torch.maximum(self.scale, FLOOR * self.first.scale, out=self.scale)

    def floored(self) -> bool:
        """Tell whether a scale is as low as it may be."""
        return bool((self.scale <= FLOOR * self.first.scale).any())

    def forward(self) -> Tensor:
        """Return W' in the shape of the layer's weight."""
        own = self.layer.module._parameters["weight"]
        assert own is not None
        made = Projected.apply(self.value, self.scale, self.first).reshape(own.shape)
        # Laid out as convolutions of channels-last inputs want it.
        return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made

    def grid(self) -> Grid:
        """Return the grid as it was learned."""
        return rescaled(self.first, self.scale.detach())

    def codes(self) -> Tensor:
        """Return the codes (G, O, I) int32 of the weight."""
        return self.grid().encode(self.value.detach())


def rescaled(grid: Grid, scale: Tensor) -> Grid:
    """Return `grid` with `scale` (G, O, 1) in place of its own."""
    return grid.scaled(scale / grid.scale)
