"""One pass of a network over images, which stay as they are whatever the network does to its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def forward(net: nn.Module, images: Tensor) -> Any:
    """Return what `net` makes of a copy of `images`.

    Networks may change their input in place (``x.mul_(2)``, or a first ``ReLU(inplace=True)``).
    Images are passed many times, through several networks, and may be the caller's: they are handed
    over by this function alone.

    Parameters
    ----------
    images : (B, ...); the copy lies in memory as they do, and gradients pass through it
    """
    return net(images.clone())
