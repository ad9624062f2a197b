"""Forward passes that leave the images unchanged, whatever the network does to its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def forward(net: nn.Module, images: Tensor) -> Any:
    """Return the outputs of `net` for a copy of `images`.

    Networks may change their input in place (``x.mul_(2)``, or a first ``ReLU(inplace=True)``),
    but images are passed many times, through several networks, and may belong to the caller. So
    this function alone hands them to networks.

    Parameters
    ----------
    images : (B, ...); the copy has their memory layout, and gradients pass through it
    """
    return net(images.clone())
