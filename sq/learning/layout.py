"""Channels-last views of tensors, and inner products that read each tensor once."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """Return a view (B, ..., C) of `x` (B, C, ...); a matrix stays as it is."""
    return x.movedim(1, -1) if x.ndim > 2 else x


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a * b over all elements."""
    a, b = _images_channels_last(a), _images_channels_last(b)
    return torch.dot(a.reshape(-1), b.reshape(-1))


def inner_products_by_sample(a: Tensor, b: Tensor) -> Tensor:
    """Return the sums (B,) of a * b over each sample."""
    a, b = _images_channels_last(a), _images_channels_last(b)
    rows = a.reshape(len(a), 1, -1)  # (B, 1, elements)
    columns = b.reshape(len(b), -1, 1)  # (B, elements, 1)
    return torch.bmm(rows, columns).flatten()


def _images_channels_last(x: Tensor) -> Tensor:
    # Feature maps are stored channels-last, so flattening this view copies nothing. Tokens (B, T,
    # C) have their channels last already.
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x
