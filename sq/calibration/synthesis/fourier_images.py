"""Images as sums of waves, so that gradients change them with the spectrum of natural images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sq.runtime import batching
from sq.types.problem import Model


class FourierImages:
    """Images as sums of waves; `waves` are the parameters that gradients change.

    They are initialised as noise whose spectrum falls as 1 / f^slope, around mid-grey.

    Parameters
    ----------
    model : gives the size and the span of the images
    images : number of images
    slope, grey, contrast : see `sq.calibration.synthesis.inversion.search`
    """

    def __init__(
        self,
        model: Model,
        images: int,
        random: torch.Generator,
        *,
        slope: float,
        grey: float,
        contrast: float,
    ):
        self.device = next(model.net.parameters()).device
        channels, self.height, self.width = model.input
        self.low, self.high = (
            torch.tensor(values, device=self.device).view(-1, 1, 1) for values in model.span
        )
        # White noise that all channels share, and white noise of each channel. The squares of
        # their `shares` add up to 1, so that their sum has a standard deviation of 1 as well.
        self.waves = []
        for noise_channels in (1, channels):
            noise = torch.randn(images, noise_channels, self.height, self.width, generator=random)
            self.waves.append(noise.to(self.device).requires_grad_())
        self.shares = grey**0.5, (1 - grey) ** 0.5
        lowest = 1 / max(self.height, self.width)  # frequency; the mean counts as the longest wave
        rows, columns = torch.fft.fftfreq(self.height)[:, None], torch.fft.fftfreq(self.width)[None]
        weights = torch.hypot(rows, columns).clamp_min(lowest) ** -slope
        # White noise with these weights has a standard deviation of `contrast` (Parseval).
        weights *= contrast / weights.square().mean().sqrt()
        # Of a real image rfft2 computes these frequencies only; the others are their conjugates.
        self.weights = weights[:, : self.width // 2 + 1].to(self.device)

    def images(self) -> Tensor:
        """Return the images (B, C, H, W) as inputs of the network."""
        (shared, channel), (shared_share, channel_share) = self.waves, self.shares
        noise = shared_share * shared + channel_share * channel
        spectrum = torch.fft.rfft2(noise) * self.weights
        pixels = 0.5 + torch.fft.irfft2(spectrum, s=(self.height, self.width))  # black 0, white 1
        x = self.low + (self.high - self.low) * Bounded.apply(pixels)
        return batching.to_device(x, self.device)


class Bounded(torch.autograd.Function):
    """Values clamped to [0, 1], with gradients for values outside that lead back inside.

    Gradients that lead further outside are dropped, as in projected gradient descent. With `clamp`
    alone a value outside would have no gradient, and never change again.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Clamp values of any shape."""
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient, 0 where a step against it would lead further outside."""
        (values,) = ctx.saved_tensors
        outwards = ((values > 1) & (gradient < 0)) | ((values < 0) & (gradient > 0))
        return gradient.masked_fill(outwards, 0.0)


def augmented(x: Tensor, random: torch.Generator, *, jitter: float, flips: float) -> Tensor:
    """Return images x (B, C, H, W) after one random cyclic shift, and maybe a flip, of all of them.

    Parameters
    ----------
    jitter : largest shift, as a share of the height and of the width
    flips : probability of a horizontal flip
    """
    shifts = []
    for side in x.shape[2:]:
        largest = round(jitter * side)
        shifts.append(int(torch.randint(-largest, largest + 1, (), generator=random)))
    if any(shifts):
        x = x.roll(shifts, (2, 3))
    flip = float(torch.rand((), generator=random)) < flips
    return x.flip(3) if flip else x
