"""Soft rounding: the codes of one layer as values that can be learned, with their scale and bias.

    W~ = sigma s (base + h(alpha) gap),    h(alpha) = clip(1.2 sigmoid(alpha) - 0.1, 0, 1)

`base` is the lower of the two grid values that a weight may take, in units of the scale s. `gap` is
the distance to the upper one: 1 everywhere on uniform grids. h = 0 takes the lower value, h = 1 the
upper. A regulariser drives every h to 0 or 1. In the end h is rounded at 1/2, where alpha = 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sq.types.problem import Grid, Layer

# The roundings that weights are computed with: h between 0 and 1; 0 or 1 with the gradient of soft
# h (straight-through); or 0 or 1 without a gradient.
Forward = Literal["soft", "hard", "fixed"]
# The sigmoid is stretched to (GAMMA, ZETA), so that h reaches 0 and 1.
ZETA, GAMMA = 1.1, -0.1


def soft(alpha: Tensor) -> Tensor:
    """Return h(alpha), in [0, 1]."""
    return (alpha.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse(h: Tensor) -> Tensor:
    """Return the alpha of least size with h(alpha) = `h`, for `h` in [0, 1]."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def regulariser(h: Tensor, beta: float) -> Tensor:
    """Return sum(1 - |2 h - 1|^beta), which is 0 exactly where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


class SoftRounding(nn.Module):
    """The learned values of one layer, starting from given codes and their grid.

    Parameters
    ----------
    layer : of the full-precision network
    W : (G, O, I), its weight
    grid : of these weights
    codes : (G, O, I), to start from; each is one of the two codes that its weight may take
    hold : h starts where W lies between its two values, but at least this far from 1/2 on the side
        of its code; in (0, 0.5)

    Source
    ------
    Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv
    2004.10568, equations 21 to 24; scale and bias after Gordon et al. 2023 (EPTQ), arXiv
    2309.11531. Ours: the start from a solver's codes, and rounding between neighbours that are not
    one step apart.
    """

    base: Tensor
    gap: Tensor | None  # None where it is 1 everywhere: saves a product in every step
    lower: Tensor
    codes_before: Tensor
    scale: Tensor

    def __init__(self, layer: Layer, W: Tensor, grid: Grid, codes: Tensor, hold: float):
        super().__init__()
        self.layer, self._grid = layer, grid
        units = W / grid.scale
        below_weight = (units >= grid.units(codes)) & (codes < grid.levels - 1)
        is_lower = below_weight | (codes <= 0)  # the code is the lower of the two
        lower = torch.where(is_lower, codes, codes - 1)
        base = grid.units(lower)
        gap = grid.units(lower + 1) - base
        h = ((units - base) / gap).clamp(0, 1)
        h = torch.where(is_lower, h.clamp(max=0.5 - hold), h.clamp(min=0.5 + hold))
        self.register_buffer("base", base.clone())
        self.register_buffer("lower", lower.clone())
        self.register_buffer("codes_before", codes.clone())
        self.register_buffer("scale", grid.scale.clone())
        self.register_buffer("gap", None if bool((gap == 1).all()) else gap)
        self.alpha = nn.Parameter(inverse(h))
        self.sigma = nn.Parameter(torch.ones_like(grid.scale))
        bias = layer.module.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())  # type: ignore[operator]

    def weight(self, h: Tensor) -> Tensor:
        """Return the weight for roundings `h` (G, O, I), in the shape of the module's weight."""
        original = self.layer.module._parameters["weight"]
        assert original is not None
        units = self.base + h if self.gap is None else torch.addcmul(self.base, h, self.gap)
        weight = (units * (self.sigma * self.scale)).reshape(original.shape)
        if weight.ndim == 4:
            # The layout that convolutions of channels-last inputs use.
            weight = weight.contiguous(memory_format=torch.channels_last)
        return weight

    def h(self, forward: Forward) -> Tensor:
        """Return the roundings (G, O, I): see `Forward`."""
        if forward == "fixed":
            return self.up()
        h = soft(self.alpha)
        if forward == "soft":
            return h
        return h + (self.up() - h).detach()

    def up(self) -> Tensor:
        """Return 1 where a weight is rounded up, else 0."""
        return (self.alpha.detach() > 0).to(self.alpha.dtype)

    def codes(self) -> Tensor:
        """Return the codes (G, O, I) int32 after rounding h to 0 or 1."""
        return self.lower + self.up().to(torch.int32)

    def grid(self) -> Grid:
        """Return the grid of `codes`, with the learned factor in its scale."""
        return self._grid.scaled(self.sigma.detach())

    def flipped(self) -> int:
        """Return the number of codes that differ from those at the start."""
        return int((self.codes() != self.codes_before).sum())
