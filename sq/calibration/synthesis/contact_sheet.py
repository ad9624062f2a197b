"""A contact sheet: many images in one picture, as a person sees them."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor

from sq.types.images import Calibration
from sq.types.problem import Model

MOST = 64  # images shown: the first ones
# pixels of the shorter side of an image on the sheet, at least where it is smaller: whole multiples
# of it
SIDE = 96
GAP = 4  # pixels of white around each


def draw(model: Model, batch: Calibration) -> bytes:
    """Return a PNG of the first images of `batch`, (C, H, W) as the network takes them, row by row in their order."""
    x = batch.x[:MOST].cpu()
    low, high = (torch.tensor(own).view(-1, 1, 1) for own in model.span)
    pixels = ((x - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    scale = max(1, SIDE // min(x.shape[2:]))
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    out = io.BytesIO()
    Image.fromarray(tile(pixels).permute(1, 2, 0).numpy()).save(out, "png")
    return out.getvalue()


def tile(x: Tensor) -> Tensor:
    """Return (3, H', W') uint8: images x (B, C, H, W) uint8, of 1 or 3 channels, in a grid about as high as wide."""
    count, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    page = torch.full(
        (3, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP), 255, dtype=torch.uint8
    )
    for number, image in enumerate(x.expand(count, 3, height, width) if channels == 1 else x):
        row, column = divmod(number, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        page[:, top : top + height, left : left + width] = image
    return page
