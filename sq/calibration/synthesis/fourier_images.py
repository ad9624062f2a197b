"""What images are made on: waves that they are sums of, so that gradients change them as natural images differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sq.runtime import batching
from sq.types.problem import Model


class Canvas:
    """Images as sums of waves, with all that is to be moved by gradients in `waves`.

    They begin as noise whose spectrum falls as 1 / f^slope, around the middle of black and white.

    Parameters
    ----------
    model : whose images, of its size and span
    images : how many
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
            torch.tensor(own, device=self.device).view(-1, 1, 1) for own in model.span
        )
        # White noise, that all channels share and each has of its own; its standard deviation stays
        # that of the image.
        self.waves = [
            torch.randn(images, own, self.height, self.width, generator=random)
            .to(self.device)
            .requires_grad_()
            for own in (1, channels)
        ]
        self.shares = grey**0.5, (1 - grey) ** 0.5
        longest = 1 / max(self.height, self.width)  # the mean counts as the longest wave
        rows, columns = torch.fft.fftfreq(self.height)[:, None], torch.fft.fftfreq(self.width)[None]
        weights = torch.hypot(rows, columns).clamp_min(longest) ** -slope
        weights *= contrast / weights.square().mean().sqrt()
        self.weights = weights[:, : self.width // 2 + 1].to(self.device)

    def images(self) -> Tensor:
        """Return the images (B, C, H, W) as the network takes them."""
        shared, own = (share * wave for share, wave in zip(self.shares, self.waves, strict=True))
        grown = torch.fft.irfft2(
            torch.fft.rfft2(shared + own) * self.weights, s=(self.height, self.width)
        )
        return batching.to_device(
            self.low + (self.high - self.low) * Bounded.apply(0.5 + grown), self.device
        )


class Bounded(torch.autograd.Function):
    """Values cut to 0 and 1, which gradients can bring back: those that lead further out are dropped, as in projection.

    With `clamp` alone a value beyond would have no gradient, and never change again.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Cut values of any shape."""
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Let pass what a step down the gradient would do inside, or back towards it."""
        (values,) = ctx.saved_tensors
        outwards = ((values > 1) & (gradient < 0)) | ((values < 0) & (gradient > 0))
        return gradient.masked_fill(outwards, 0.0)


def moved(x: Tensor, random: torch.Generator, *, jitter: float, flips: float) -> Tensor:
    """Return images x (B, C, H, W), all moved by the same number of pixels, drawn at random, and maybe mirrored.

    Parameters
    ----------
    jitter : up to this share of the height and width; what leaves on one side enters on the other
    flips : probability of mirroring left and right
    """
    most = [round(jitter * side) for side in x.shape[2:]]
    by = [int(torch.randint(-far, far + 1, (), generator=random)) for far in most]
    x = x.roll(by, (2, 3)) if any(by) else x
    return x.flip(3) if float(torch.rand((), generator=random)) < flips else x
