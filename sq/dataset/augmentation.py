"""Training images moved and mirrored at random, a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.types.problem import Model


def move(x: Tensor, pixels: int, black: Tensor, generator: torch.Generator) -> Tensor:
    """Return images moved by up to so many `pixels`, each way by chance, black where nothing comes in.

    The same as a crop at random from images with a black border (He et al. 2016, arXiv 1512.03385,
    section 4.2).

    Parameters
    ----------
    x : (B, C, H, W)
    black : (C,), what the network takes a black pixel as
    generator : on the CPU, of what is drawn
    """
    B, C, H, W = x.shape
    wide = black.to(x).view(1, C, 1, 1).expand(B, C, H + 2 * pixels, W + 2 * pixels).clone()
    wide[:, :, pixels : pixels + H, pixels : pixels + W] = x
    down, right = (
        torch.randint(2 * pixels + 1, (2, B, 1), generator=generator).to(x.device)
    ).unbind()
    rows, columns = (
        down + torch.arange(H, device=x.device),
        right + torch.arange(W, device=x.device),
    )
    images = torch.arange(B, device=x.device)
    # (B, H, W, C)
    picked = wide.permute(0, 2, 3, 1)[images[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def mirror(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) of which about half are turned left to right."""
    turned = torch.rand(len(x), generator=generator).to(x.device) < 0.5
    return torch.where(turned.view(-1, 1, 1, 1), x.flip(3), x)


class Augment:
    """What is done to the images of a step."""

    def __init__(self, model: Model, move: int, mirror: bool):
        lowest = model.span[0]
        self.move, self.mirror = move, mirror
        self.black = torch.tensor(lowest if len(lowest) > 1 else lowest * model.input[0])

    def __call__(self, x: Tensor, draw: torch.Generator) -> Tensor:
        """Return the images (B, C, H, W) of a step, moved and mirrored, channels last in memory."""
        x = move(x, self.move, self.black, draw) if self.move else x
        x = mirror(x, draw) if self.mirror else x
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
