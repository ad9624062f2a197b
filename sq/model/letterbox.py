"""Letterboxing: an image as a square for a detector, and detected boxes back on the image."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GREY = 114 / 255  # the border of training images of the YOLO family


def letterbox(image: Image.Image, size: int) -> Tensor:
    """Scale `image` to fit a square of `size` pixels, up or down, and centre it there on grey.

    Parameters
    ----------
    image : of any mode; read as RGB
    size : side of the square, pixels

    Returns
    -------
    (3, size, size) float32 in 0..1
    """
    height, width, top, left = _placement((image.height, image.width), size)
    # Pillow's bilinear filter is antialiased when it scales down.
    scaled = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    square = torch.full((3, size, size), GREY)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
    square[:, top : top + height, left : left + width] = pixels / 255
    return square


def undo(boxes: Tensor, shape: tuple[int, int], size: int) -> Tensor:
    """Return boxes in a letterboxed image as boxes in the image itself, clipped to it.

    Parameters
    ----------
    boxes : (n, 4): left, top, right, bottom, in pixels of the square
    shape : (height, width) of the image
    size : side of the square, pixels

    Returns
    -------
    (n, 4): the same, in pixels of the image
    """
    height, width, top, left = _placement(shape, size)
    # The two ratios of the resize differ if a side was rounded.
    ratio = boxes.new_tensor([shape[1] / width, shape[0] / height]).repeat(2)
    on_image = (boxes - boxes.new_tensor([left, top, left, top])) * ratio
    limits = boxes.new_tensor([shape[1], shape[0]]).repeat(2)
    return on_image.clamp(min=0).minimum(limits)


def _placement(shape: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Return (height, width, top, left) in the square, for an image of `shape` (height, width)."""
    ratio = size / max(shape)  # the longer side fills the square
    height = max(round(shape[0] * ratio), 1)
    width = max(round(shape[1] * ratio), 1)
    return height, width, (size - height) // 2, (size - width) // 2
