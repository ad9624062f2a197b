"""Trained weights that are projected to the nearest grid values in each pass, for any grid.

    W' = nearest value to W of the grid  {s u : u a unit},    s learned for each channel

Gradients pass the projection unchanged (straight-through) and stop at weights beyond the grid.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sq.learning.learned_step import SCALE_FLOOR
from sq.network import geometry
from sq.types.problem import Grid, Layer


class Project(torch.autograd.Function):
    """W' with its derivatives by W and s.

    With v = W / s and u the nearest unit, the derivative by s is u - v within the grid and u beyond
    it. On a uniform grid these are the derivatives of LSQ, on levels those of POST.

    Source
    ------
    Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153, equations 2 and 3; Zhou et
    al. 2025 (ASQ and POST), arXiv 2504.17263, as its published code projects weights on levels.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        """Return W' of `W` (G, O, I), for the `grid` with `scale` (G, O, 1) in place of its own."""
        grid = rescaled(grid, scale)
        q = grid.nearest(W)
        low, high = grid.bounds()
        inside = W.clamp(low, high) == W
        by_scale = torch.where(inside, q - W, q) / scale
        ctx.save_for_backward(inside, by_scale)
        return q

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients by W and s."""
        inside, by_scale = ctx.saved_tensors
        return g * inside, (g * by_scale).sum(-1, keepdim=True), None


class ProjectedWeight(nn.Module):
    """The weight of one layer and the scales of its grid, to be trained.

    Parameters
    ----------
    layer : of the full-precision network; training starts from its weight
    grid : training starts from its scales. Published code starts at 2 mean|w| / sqrt(p); a fitted
        grid is our reading
    """

    def __init__(self, layer: Layer, grid: Grid):
        super().__init__()
        self.layer, self.initial_grid = layer, grid
        self.value = nn.Parameter(geometry.weight(layer.module).clone())
        self.scale = nn.Parameter(grid.scale.clone())

    @property
    def scale_gradient_factor(self) -> float:
        """Return the factor of the gradient of `scale`: 1 / sqrt(p n).

        Source
        ------
        Esser et al. 2020, arXiv 1902.08153, section 2.2: p is the largest unit, n the number of
        weights. Our reading: n counts the weights of one channel, since each has a scale, and p is
        the larger bound (8 for -8 to 7).
        """
        low, high = self.initial_grid.bounds()
        largest_unit = float((torch.maximum(-low, high) / self.initial_grid.scale).max())
        return 1 / math.sqrt(largest_unit * self.layer.inputs)

    def clamp_scale(self) -> None:
        """Keep scales above zero: at least `SCALE_FLOOR` of the first ones."""
        with torch.no_grad():
            torch.maximum(self.scale, SCALE_FLOOR * self.initial_grid.scale, out=self.scale)

    def is_floored(self) -> bool:
        """Tell whether a scale is at its lower limit."""
        return bool((self.scale <= SCALE_FLOOR * self.initial_grid.scale).any())

    def forward(self) -> Tensor:
        """Return W' in the shape of the layer's weight."""
        original = self.layer.module._parameters["weight"]
        assert original is not None
        weight = Project.apply(self.value, self.scale, self.initial_grid).reshape(original.shape)
        if weight.ndim == 4:
            # The layout that convolutions of channels-last inputs use.
            weight = weight.contiguous(memory_format=torch.channels_last)
        return weight

    def grid(self) -> Grid:
        """Return the grid with the learned scales."""
        return rescaled(self.initial_grid, self.scale.detach())

    def codes(self) -> Tensor:
        """Return the codes (G, O, I) int32 of the weight."""
        return self.grid().encode(self.value.detach())


def rescaled(grid: Grid, scale: Tensor) -> Grid:
    """Return `grid` with `scale` (G, O, 1) in place of its own."""
    return grid.scaled(scale / grid.scale)
