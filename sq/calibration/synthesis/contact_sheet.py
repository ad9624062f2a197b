"""Contact sheet: the generated images in one picture, for people to look at."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor

from sq.types.images import Calibration
from sq.types.problem import Model

MAX_IMAGES = 64  # the first ones are shown
# Smaller images are enlarged by the largest whole factor for which their shorter side, in pixels,
# is at most this.
ENLARGED_SIDE = 96
GAP = 4  # white pixels around each image


def draw(model: Model, batch: Calibration) -> bytes:
    """Return a PNG of the first images of `batch`, row by row."""
    x = batch.x[:MAX_IMAGES].cpu()  # (B, C, H, W), as inputs of the network
    low, high = (torch.tensor(values).view(-1, 1, 1) for values in model.span)
    # Black is 0 and white is 255, whatever span the network expects.
    pixels = ((x - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    scale = max(1, ENLARGED_SIDE // min(x.shape[2:]))
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    out = io.BytesIO()
    Image.fromarray(tile(pixels).permute(1, 2, 0).numpy()).save(out, "png")
    return out.getvalue()


def tile(x: Tensor) -> Tensor:
    """Return images x (B, C, H, W) in one about square page (3, H', W').

    Both are uint8, and C is 1 or 3.
    """
    count, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    page = torch.full((3, *size), 255, dtype=torch.uint8)
    if channels == 1:
        x = x.expand(count, 3, height, width)
    for number, image in enumerate(x):
        row, column = divmod(number, columns)
        top = GAP + row * (height + GAP)
        first = GAP + column * (width + GAP)
        page[:, top : top + height, first : first + width] = image
    return page
