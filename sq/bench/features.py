"""Synthetic feature maps for a layer whose network was never trained, with a realistic H.

The H of a trained network has four properties that matter to solvers; each is a setting here:

* channels are correlated, so that the spectrum of H decays (`decay`);
* neighbouring pixels are alike, so that the taps of a kernel correlate (`smoothness`);
* ReLU cuts at zero, so inputs have a mean, and H one large eigenvalue (`shift`: some channels are
  rarely active);
* channels differ in size, so that H's diagonal spans decades (`heterogeneity`).

The maps pass through the layer's own geometry (stride, padding, groups), as images do in
calibration.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from sq.config.constraints import Positive
from sq.errors import SqError


def maps(
    module: nn.Module,
    generator: Generator,
    *,
    positions: Positive,
    side: int,
    decay: float,
    smoothness: float,
    shift: float,
    heterogeneity: float,
) -> Tensor:
    """Draw inputs for `module`: (B, C, side, side), or (B, C) for a linear layer.

    Parameters
    ----------
    module : a 2-D convolution or a linear layer
    positions : output pixels for each column of the layer, at least: 2.0 makes the H of 4,608
        columns from 9,216
    side : pixels of a map's edge
    decay : channels are mixtures of latent ones whose variances fall as 1, 2^-decay, 3^-decay, ...;
        0 is white
    smoothness : standard deviation, in pixels, of the Gaussian that blurs latent maps; 0 leaves
        pixels independent
    shift : standard deviation of channels' means before ReLU, in standard deviations of a channel
    heterogeneity : standard deviation of the logarithm of a channel's size; 0 makes all channels
        alike

    Raises
    ------
    SqError : a setting below zero, or another kind of layer
    """
    if min(decay, smoothness, shift, heterogeneity) < 0 or side < 1:
        raise SqError("source.inputs: side is 1 or more; the others are 0 or more")
    channels, edge, pixels_per_map = _shape(module, side)
    inputs = module.get_parameter("weight")[0].numel()  # columns of the layer
    count = -(-int(positions * inputs + 1) // pixels_per_map)
    spectrum = torch.arange(1, channels + 1).pow(-decay / 2)
    mix = torch.randn(channels, channels, generator=generator) * spectrum
    mix /= mix.norm(dim=1, keepdim=True)  # every channel has variance 1
    mean = shift * torch.randn(channels, generator=generator)
    size = (heterogeneity * torch.randn(channels, generator=generator)).exp()
    latent = torch.randn(count, channels, edge, edge, generator=generator)
    mixed = torch.einsum("cl,blp->bcp", mix, _blur(latent, smoothness).flatten(2))
    x = (mixed + mean[:, None]).relu_().mul_(size[:, None])
    return x[:, :, 0] if isinstance(module, nn.Linear) else x.view(count, channels, edge, edge)


def _shape(module: nn.Module, side: int) -> tuple[int, int, int]:
    """Return the channels of a map, its edge in pixels, and the output pixels it gives."""
    if isinstance(module, nn.Linear):
        return module.in_features, 1, 1
    if not isinstance(module, nn.Conv2d):
        raise SqError(f"no inputs can be made up for a {type(module).__name__}")
    output = []  # height and width
    for padding, dilation, kernel, stride in _geometry(module):
        output.append((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    if min(output) < 1:
        raise SqError(
            f"source.inputs.side={side}: too few pixels for a kernel of {module.kernel_size}"
        )
    return module.in_channels, side, output[0] * output[1]


def heavy_tailed(shape: torch.Size, generator: Generator, *, tail: int) -> Tensor:
    """Draw weights from Student's t with `tail` degrees of freedom.

    Trained weights have more outliers than a normal distribution.
    """
    chi = torch.zeros(shape)
    for _ in range(tail):
        chi += torch.randn(shape, generator=generator).square_()
    return torch.randn(shape, generator=generator) * (tail / chi).sqrt_()


def _geometry(module: nn.Conv2d) -> list[tuple[int, int, int, int]]:
    """Return (padding of one edge, dilation, kernel, stride) along both axes."""
    padded = module._reversed_padding_repeated_twice  # left, right, top, bottom
    padding = (int(sum(padded[2:]) / 2), int(sum(padded[:2]) / 2))
    return list(zip(padding, module.dilation, module.kernel_size, module.stride, strict=True))


def _blur(x: Tensor, width: float) -> Tensor:
    """Blur maps (B, C, H, W) by a Gaussian `width` pixels wide, edges wrapped, variance kept."""
    edge = x.shape[-1]
    if width == 0 or edge == 1:
        return x
    pixels = torch.arange(edge)
    distance = torch.minimum(pixels, edge - pixels)  # to the first pixel, edges wrapped
    kernel = torch.exp(-0.5 * (distance / width).square())
    kernel = kernel / kernel.norm()  # independent pixels of variance 1 stay of variance 1
    circulant = kernel[(pixels[:, None] - pixels[None, :]) % edge]
    return torch.einsum("ih,bchw,jw->bcij", circulant, x, circulant)
