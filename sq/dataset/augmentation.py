"""Random shifts and flips of training images, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.types.problem import Model


def move(x: Tensor, pixels: int, black: Tensor, generator: torch.Generator) -> Tensor:
    """Return images shifted at random by up to `pixels` in each direction, with black borders.

    This is a random crop from images with a black border (He et al. 2016, arXiv 1512.03385, section
    4.2).

    Parameters
    ----------
    x : (B, C, H, W)
    black : (C,), the network's input value of a black pixel
    generator : on the CPU, for the shifts
    """
    B, C, H, W = x.shape
    border = black.to(x).view(1, C, 1, 1)
    padded = border.expand(B, C, H + 2 * pixels, W + 2 * pixels).clone()
    padded[:, :, pixels : pixels + H, pixels : pixels + W] = x
    offsets = torch.randint(2 * pixels + 1, (2, B, 1), generator=generator).to(x.device)
    top, left = offsets.unbind()
    rows = top + torch.arange(H, device=x.device)  # (B, H)
    columns = left + torch.arange(W, device=x.device)  # (B, W)
    images = torch.arange(B, device=x.device)[:, None, None]
    crops = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)  # from (B, H, W, C)


def mirror(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W), about half of them flipped left to right."""
    is_flipped = torch.rand(len(x), generator=generator).to(x.device) < 0.5
    return torch.where(is_flipped.view(-1, 1, 1, 1), x.flip(3), x)


class Augment:
    """The augmentation of the images of a step."""

    def __init__(self, model: Model, move: int, mirror: bool):
        self.move, self.mirror = move, mirror
        lowest = model.span[0]  # of each channel, or one of all
        if len(lowest) == 1:
            lowest = lowest * model.input[0]
        self.black = torch.tensor(lowest)

    def __call__(self, x: Tensor, draw: torch.Generator) -> Tensor:
        """Return the images (B, C, H, W) of a step shifted and flipped, channels-last in memory."""
        if self.move:
            x = move(x, self.move, self.black, draw)
        if self.mirror:
            x = mirror(x, draw)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
