"""Soft rounding: the codes of one layer as numbers that can be learned, and the scale and bias that go with them.

    W~ = sigma s (base + h(alpha) gap),    h(alpha) = clip(1.2 sigmoid(alpha) - 0.1, 0, 1)

`base` is the lower of the two grid values a weight may take, in units of the scale s, and `gap`
what the one above is more: 1 throughout on uniform grids. h = 0 takes the lower, h = 1 the upper. A
regulariser drives every h to 0 or 1; what is left over is rounded at 1/2, where alpha = 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sq.types.problem import Grid, Layer

# Roundings as weights are computed with: in between 0 and 1; 0 or 1, with gradients as if they were
# in between (straight-through); or 0 or 1 without gradients.
Forward = Literal["soft", "hard", "fixed"]
# the sigmoid is stretched to (GAMMA, ZETA), so that h reaches both its ends
ZETA, GAMMA = 1.1, -0.1


def soft(alpha: Tensor) -> Tensor:
    """Return h(alpha), in [0, 1]."""
    return (alpha.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse(h: Tensor) -> Tensor:
    """Return the alpha of least size with h(alpha) = `h`, for `h` in [0, 1]."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def regulariser(h: Tensor, beta: float) -> Tensor:
    """Return sum(1 - |2 h - 1|^beta): 0 exactly where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


class Rounding(nn.Module):
    """What is learned of one layer, from where given codes and grid have it.

    Parameters
    ----------
    layer : of the full-precision network
    W : (G, O, I), its weight
    grid : of these weights
    codes : (G, O, I), to start from: each is one of the two its weight may take
    hold : h starts where W lies between its two values, but at least so far on its code's side of
    1/2, in (0, 0.5)

    Source
    ------
    Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv
    2004.10568, equations 21 to 24; scale and bias after Gordon et al. 2023 (EPTQ), arXiv
    2309.11531. Starting from a solver's codes is ours, and so is rounding between neighbours that
    are not one step apart.
    """

    base: Tensor
    gap: Tensor | None  # None where it is 1 throughout: a product less in every step
    lower: Tensor
    codes_before: Tensor
    scale: Tensor

    def __init__(self, layer: Layer, W: Tensor, grid: Grid, codes: Tensor, hold: float):
        super().__init__()
        self.layer, self._grid = layer, grid
        units = W / grid.scale
        # the code is the lower one
        below = ((units >= grid.units(codes)) & (codes < grid.levels - 1)) | (codes <= 0)
        lower = torch.where(below, codes, codes - 1)
        base = grid.units(lower)
        gap = grid.units(lower + 1) - base
        share = ((units - base) / gap).clamp(0, 1)
        sure = torch.where(below, share.clamp(max=0.5 - hold), share.clamp(min=0.5 + hold))
        for name, own in {
            "base": base,
            "lower": lower,
            "codes_before": codes,
            "scale": grid.scale,
        }.items():
            self.register_buffer(name, own.clone())
        self.register_buffer("gap", None if bool((gap == 1).all()) else gap)
        self.alpha = nn.Parameter(inverse(sure))
        self.sigma = nn.Parameter(torch.ones_like(grid.scale))
        bias = layer.module.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())  # type: ignore[operator]

    def weight(self, h: Tensor) -> Tensor:
        """Return the weight for roundings `h` (G, O, I), in the shape of the module's."""
        own = self.layer.module._parameters["weight"]
        assert own is not None
        units = self.base + h if self.gap is None else torch.addcmul(self.base, h, self.gap)
        made = (units * (self.sigma * self.scale)).reshape(own.shape)
        # Laid out as convolutions of channels-last inputs want it.
        return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made

    def h(self, forward: Forward) -> Tensor:
        """Return the roundings (G, O, I): see `Forward`."""
        if forward == "fixed":
            return self.up()
        h = soft(self.alpha)
        return h if forward == "soft" else h + (self.up() - h).detach()

    def up(self) -> Tensor:
        """Return 1 where a weight is rounded up, else 0."""
        return (self.alpha.detach() > 0).to(self.alpha.dtype)

    def codes(self) -> Tensor:
        """Return the codes (G, O, I) int32 that the roundings harden to."""
        return self.lower + self.up().to(torch.int32)

    def grid(self) -> Grid:
        """Return the grid of `codes`, with the learned factor in its scale."""
        return self._grid.scaled(self.sigma.detach())

    def flipped(self) -> int:
        """Return how many codes are not those it started from."""
        return int((self.codes() != self.codes_before).sum())
