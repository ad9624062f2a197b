"""Codes of a few bits each, one after the other in bytes, lowest bit first."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return `codes`, integers in 0 .. 2^bits - 1 of any shape, as (bytes,) uint8."""
    places = torch.arange(bits, device=codes.device)
    stream = (codes.reshape(-1, 1) >> places & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8))
    weights = 1 << torch.arange(8, device=codes.device)
    return (stream.view(-1, 8) * weights).sum(1).to(torch.uint8)


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes (count,) int32 in `data` (bytes,) uint8."""
    places = torch.arange(8, device=data.device)
    stream = (data.int().unsqueeze(1) >> places & 1).flatten()[: count * bits]
    weights = 1 << torch.arange(bits, device=data.device)
    return (stream.view(count, bits) * weights).sum(1).to(torch.int32)
