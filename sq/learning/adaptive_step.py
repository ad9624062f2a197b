"""Inputs of layers on a grid whose step adapts to each sample, through a small module that is learned (ASQ).

    x' = s_a clip(round(x / s_a), low, high),    s_a = sigma s beta(x),
    beta(x) = max(ReLU(W2 ReLU(W1 mean(x) + b1) + b2), 1e-8),    mean over positions

beta is one number for each sample. It is learned as the network is trained (`quantizer=asq`) or, an
extension of ours, with the weights left as a solver has them (`quantizer=asq_ptq`). The released
code goes back by s_a as it went there; a review of the paper goes back by s alone, which would make
the output's scale wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.grid.uniform_grid import UniformGrid
from sq.learning.learned_step import EDGE, Input
from sq.learning.schedules import Mix

NARROW = 8  # channels below which there is no hidden layer
Adaptive = bool | Literal["static"]  # steps adapt to each sample, or not; or as `Adapter` has it
SQUEEZE = 4  # channels for one unit of the hidden layer
LEAST = 1e-8


class Adapter(nn.Module):
    """beta(x) of an input of so many `channels`; exactly 1 before anything is learned.

    Parameters
    ----------
    channels : of the input, at least 1
    seed : of the hidden layer's weights
    axis : of channels, see `sq.network.geometry.channel_axis`
    static : beta is one learned number, whatever the input: the control that says what adapting is
    worth, for what
        an adapter learns moves the step some hundred times as fast as LSQ's own gradient does

    Source
    ------
    Zhou et al. 2025, Precision Neural Network Quantization via Learnable Adaptive Modules (ASQ),
    arXiv 2504.17263, as its published code has it. There the last weights are drawn with a
    deviation of 0.01; here they start at 0, so that learning starts exactly where a grid without an
    adapter stands: our reading.
    """

    def __init__(self, channels: int, seed: int, axis: int = 1, static: bool = False):
        super().__init__()
        self.axis, self.static = axis, static
        inner = channels // SQUEEZE
        with torch.random.fork_rng([]):  # of the CPU alone: that is where it is drawn
            torch.manual_seed(seed)
            self.squeeze = nn.Linear(channels, inner) if channels >= NARROW else None
            self.last = nn.Linear(inner if self.squeeze else channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.ones_(self.last.bias)

    def trained(self) -> list[nn.Parameter]:
        """Return what is learned of it."""
        return [self.last.bias] if self.static else [*self.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        """Return beta (B,) of `x` (B, C, ...), or (B, ..., C) where its axis of channels is the last.

        Raises
        ------
        SqError : `x` has no channels, or not as many as expected
        """
        own = self.squeeze or self.last
        if x.ndim < 2 or x.shape[self.axis] != own.in_features:
            raise SqError(
                f"an adaptive step takes inputs (samples, {own.in_features} channels, ...), got {tuple(x.shape)}: "
                "choose a quantizer without adapters for this network"
            )
        means = x.movedim(self.axis, 1).flatten(2).mean(2) if x.ndim > 2 else x
        hidden = means if self.squeeze is None else self.squeeze(means).relu()
        return self.last(hidden).relu().clamp_min(LEAST).squeeze(1)


@dataclass(frozen=True)
class AdaptiveGrid:
    """A grid of activations whose step an `adapter` sets for each sample."""

    grid: UniformGrid  # per tensor
    adapter: Adapter

    @property
    def levels(self) -> int:
        """Return how many values a sample's grid has."""
        return self.grid.levels

    def parameters(self) -> int:
        """Return how many numbers describe the grid, those of the adapter among them."""
        return self.grid.parameters() + self.learned()

    def learned(self) -> int:
        """Return how many numbers the adapter has."""
        return sum(own.numel() for own in self.adapter.parameters())

    def nearest(self, x: Tensor) -> Tensor:
        """Return the nearest value to each of `x` (B, C, ...), of its sample's grid."""
        scale = self.grid.scale.reshape(()) * _spread(self.adapter(x), x)
        low, high = self.grid.low.reshape(()), self.grid.high.reshape(())
        return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)

    @property
    def scale(self) -> Tensor:
        """Return the scale where beta is 1."""
        return self.grid.scale

    def map(self, function: Callable[[Tensor], Tensor]) -> AdaptiveGrid:
        """Return the grid with `function` applied to its tensors; the adapter follows to their device."""
        moved = self.grid.map(function)
        return AdaptiveGrid(moved, copy.deepcopy(self.adapter).to(moved.scale.device))


class AdaptiveInput(Input):
    """The quantizer of what one layer is fed, its step adapted to each sample by a module that is learned too.

    Parameters
    ----------
    grid : to start from
    adapter : of the input's channels
    """

    def __init__(self, grid: UniformGrid, adapter: Adapter):
        super().__init__(grid)
        self.adapter = adapter

    def forward(self, x: Tensor, mix: Mix | None = None) -> Tensor:
        """Return `x` as the layer sees it; of a `mix`, its share stays in full precision."""
        x = x.float() if x.dtype == torch.bfloat16 else x  # autocast: a grid is of float32
        with torch.autocast(x.device.type, enabled=False):
            scale = (self.sigma * self.scale).reshape(()) * self.adapter(x)
        q = Adapted.apply(x, scale, self.low, self.high)
        return q if mix is None else torch.lerp(x, q, mix.quantized(x))

    def grid(self) -> AdaptiveGrid:  # type: ignore[override]
        """Return the grid with all that was learned of it."""
        return AdaptiveGrid(super().grid(), copy.deepcopy(self.adapter).requires_grad_(False))


class Adapted(torch.autograd.Function):
    """x' with its derivatives by x and s_a (B,), of each sample.

    Inside of the range the gradient passes on to x; by s_a it is weighed by round(v) - v there, v =
    x / s_a, by low below and by high above, and summed over the sample. What sigma, s and beta get
    follows by the chain rule.

    Source
    ------
    Zhou et al. 2025 (ASQ), arXiv 2504.17263; Esser et al. 2020 (LSQ), arXiv 1902.08153, equations 2
    and 3.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return x'."""
        wide = _spread(scale, x)
        q = torch.div(x, wide).round_().clamp_(low, high).mul_(wide)
        ctx.low, ctx.high = float(low), float(high)
        ctx.save_for_backward(x, scale, q)
        return q

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Return the gradients by x and s_a."""
        x, scale, q = ctx.saved_tensors
        v = x / _spread(scale, x)
        # In one pass, as `sq.learning.learned_step` does it: g inside of the range, to whose ends
        # an `EDGE` belongs, else 0.
        passed = torch.ops.aten.hardtanh_backward(g, v, ctx.low - EDGE, ctx.high + EDGE)
        by_scale = (_inner(g, q) - _inner(passed, x)) / scale if ctx.needs_input_grad[1] else None
        return passed, by_scale, None, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the sums (B,) of a * b over each sample, in one pass where both have their channels last in memory."""
    if a.ndim == 4:
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.bmm(a.reshape(len(a), 1, -1), b.reshape(len(b), -1, 1)).flatten()


def _spread(scale: Tensor, x: Tensor) -> Tensor:
    """Return `scale` (B,) in a shape that goes with `x` (B, ...)."""
    return scale.view(-1, *[1] * (x.ndim - 1))


def learned(grids: Iterable[object]) -> int:
    """Return how many numbers the adapters among `grids` have."""
    return sum(grid.learned() for grid in grids if isinstance(grid, AdaptiveGrid))
