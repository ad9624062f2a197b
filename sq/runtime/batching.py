"""How many images go through a network in one pass, and their layout in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_PASS = 256  # images in one forward pass at most, unless batch_size is set
# Elements of the images in one forward pass: activations have some tens of times as many.
ELEMENTS = 2**22


def images_per_pass(shape: Sequence[int], batch_size: int | None) -> int:
    """Return how many images (C, H, W) to run at a time; without a `batch_size`, by their size."""
    return batch_size or max(1, min(LARGEST_PASS, ELEMENTS // math.prod(shape)))


def split(x: Tensor, batch_size: int | None) -> tuple[Tensor, ...]:
    """Return images `x` (B, C, H, W) in parts of `images_per_pass` images."""
    return x.split(images_per_pass(x.shape[1:], batch_size))


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return images (B, C, H, W) on `device`, in channels-last layout."""
    if x.ndim != 4:
        return x.to(device)
    # Convolutions are up to twice as fast in this layout.
    return x.to(device, memory_format=torch.channels_last)
