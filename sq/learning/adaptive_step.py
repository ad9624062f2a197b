"""Quantizers of layer inputs whose step size adapts to each sample by a small learned module (ASQ).

    x' = s_a clip(round(x / s_a), low, high),    s_a = sigma s beta(x),
    beta(x) = max(ReLU(W2 ReLU(W1 mean(x) + b1) + b2), 1e-8),    mean over positions

beta is one number per sample. It is learned while the network is trained (`quantizer=asq`) or, our
extension, with the weights of a solver left fixed (`quantizer=asq_ptq`). The released code
multiplies back by s_a, as here. A review of the paper multiplies back by s alone, which would give
the output a wrong scale.
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
from sq.learning.layout import inner_products_by_sample
from sq.learning.learned_step import RANGE_TOLERANCE, InputQuantizer
from sq.learning.schedules import PrecisionMix

Adaptive = bool | Literal["static"]  # whether steps adapt to each sample; "static": see `Adapter`

HIDDEN_FROM = 8  # channels from which there is a hidden layer
CHANNELS_PER_HIDDEN = 4  # channels for one hidden unit
MIN_BETA = 1e-8


class Adapter(nn.Module):
    """beta(x) of an input with `channels` channels; exactly 1 before anything is learned.

    Parameters
    ----------
    channels : of the input, at least 1
    seed : of the hidden layer's weights
    axis : of the channels, see `sq.network.geometry.channel_axis`
    static : beta is one learned number, whatever the input. This is the control experiment for
        adaptation: what an adapter learns moves the step some hundred times as fast as the gradient
        of LSQ does

    Source
    ------
    Zhou et al. 2025, Precision Neural Network Quantization via Learnable Adaptive Modules (ASQ),
    arXiv 2504.17263, as in its published code. There the last weights are drawn with a standard
    deviation of 0.01. Here they start at 0, so that learning starts exactly at the grid without an
    adapter: our reading.
    """

    def __init__(self, channels: int, seed: int, axis: int = 1, static: bool = False):
        super().__init__()
        self.axis, self.static = axis, static
        hidden = channels // CHANNELS_PER_HIDDEN
        with torch.random.fork_rng([]):  # of the CPU only, where the weights are drawn
            torch.manual_seed(seed)
            if channels >= HIDDEN_FROM:
                self.squeeze: nn.Linear | None = nn.Linear(channels, hidden)
                self.last = nn.Linear(hidden, 1)
            else:
                self.squeeze = None
                self.last = nn.Linear(channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.ones_(self.last.bias)

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that are learned."""
        if self.static:
            return [self.last.bias]
        return list(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Return beta (B,) of `x` (B, C, ...), or (B, ..., C) if the channel axis is the last.

        Raises
        ------
        SqError : `x` has no channels, or not as many as expected
        """
        channels = (self.squeeze or self.last).in_features
        if x.ndim < 2 or x.shape[self.axis] != channels:
            raise SqError(
                f"an adaptive step takes inputs (samples, {channels} channels, ...), got "
                f"{tuple(x.shape)}: choose a quantizer without adapters for this network"
            )
        features = x  # (B, C)
        if x.ndim > 2:
            features = x.movedim(self.axis, 1).flatten(2).mean(2)
        if self.squeeze is not None:
            features = self.squeeze(features).relu()
        return self.last(features).relu().clamp_min(MIN_BETA).squeeze(1)


@dataclass(frozen=True)
class AdaptiveGrid:
    """A grid of activations whose step an `adapter` sets for each sample."""

    grid: UniformGrid  # per tensor
    adapter: Adapter

    @property
    def levels(self) -> int:
        """Return the number of values in the grid of a sample."""
        return self.grid.levels

    def parameters(self) -> int:
        """Return the number of parameters of the grid and its adapter."""
        return self.grid.parameters() + self.adapter_parameters()

    def adapter_parameters(self) -> int:
        """Return the number of parameters of the adapter."""
        return sum(parameter.numel() for parameter in self.adapter.parameters())

    def nearest(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, ...) rounded to the nearest value of the grid of each sample."""
        scale = self.grid.scale.reshape(()) * _broadcast(self.adapter(x), x)
        low, high = self.grid.low.reshape(()), self.grid.high.reshape(())
        return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)

    @property
    def scale(self) -> Tensor:
        """Return the scale where beta is 1."""
        return self.grid.scale

    def map(self, function: Callable[[Tensor], Tensor]) -> AdaptiveGrid:
        """Return the grid with `function` applied to its tensors; the adapter moves along."""
        grid = self.grid.map(function)
        return AdaptiveGrid(grid, copy.deepcopy(self.adapter).to(grid.scale.device))


class AdaptiveInputQuantizer(InputQuantizer):
    """The quantizer of one layer's input, with a step that a learned adapter sets for each sample.

    Parameters
    ----------
    grid : to start from
    adapter : for the channels of the input
    """

    def __init__(self, grid: UniformGrid, adapter: Adapter):
        super().__init__(grid)
        self.adapter = adapter

    def forward(self, x: Tensor, mix: PrecisionMix | None = None) -> Tensor:
        """Return `x` as the layer sees it; with a `mix`, a share stays in full precision."""
        if x.dtype == torch.bfloat16:  # from autocast; grids are float32
            x = x.float()
        with torch.autocast(x.device.type, enabled=False):
            scale = (self.sigma * self.scale).reshape(()) * self.adapter(x)
        q = AdaptiveQuantize.apply(x, scale, self.low, self.high)
        return q if mix is None else torch.lerp(x, q, mix.quantized(x))

    def grid(self) -> AdaptiveGrid:  # type: ignore[override]
        """Return the grid with all that was learned of it."""
        return AdaptiveGrid(super().grid(), copy.deepcopy(self.adapter).requires_grad_(False))


class AdaptiveQuantize(torch.autograd.Function):
    """x' with its derivatives by x and by the step s_a (B,) of each sample.

    Inside the range the gradient passes to x. By s_a it is weighted by round(v) - v inside, with v
    = x / s_a, by low below and by high above, and summed over the sample. The gradients by sigma, s
    and beta follow from the chain rule.

    Source
    ------
    Zhou et al. 2025 (ASQ), arXiv 2504.17263; Esser et al. 2020 (LSQ), arXiv 1902.08153, equations 2
    and 3.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return x'."""
        scale_of_x = _broadcast(scale, x)
        q = torch.div(x, scale_of_x).round_().clamp_(low, high).mul_(scale_of_x)
        ctx.low, ctx.high = float(low), float(high)
        ctx.save_for_backward(x, scale, q)
        return q

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Return the gradients by x and s_a."""
        x, scale, q = ctx.saved_tensors
        v = x / _broadcast(scale, x)
        # One pass, as in `sq.learning.learned_step`: g inside the range, else 0.
        low, high = ctx.low - RANGE_TOLERANCE, ctx.high + RANGE_TOLERANCE
        by_x = torch.ops.aten.hardtanh_backward(g, v, low, high)
        if not ctx.needs_input_grad[1]:
            return by_x, None, None, None
        by_q = inner_products_by_sample(g, q)
        by_scale = (by_q - inner_products_by_sample(by_x, x)) / scale
        return by_x, by_scale, None, None


def _broadcast(scale: Tensor, x: Tensor) -> Tensor:
    """Return `scale` (B,) in a shape that broadcasts with `x` (B, ...)."""
    return scale.view(-1, *[1] * (x.ndim - 1))


def adapter_parameters(grids: Iterable[object]) -> int:
    """Return the number of parameters of all adapters among `grids`."""
    return sum(grid.adapter_parameters() for grid in grids if isinstance(grid, AdaptiveGrid))
