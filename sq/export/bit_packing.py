"""Codes of a few bits each, one after the other in bytes, lowest bit first."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**20  # codes at a time, a multiple of 8: a bit takes eight bytes while it is moved


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return `codes`, integers in 0 .. 2^bits - 1 of any shape, as (bytes,) uint8."""
    parts = [_packed(part, bits) for part in codes.reshape(-1).split(CHUNK)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes (count,) int32 in `data` (bytes,) uint8."""
    made = torch.empty(count, dtype=torch.int32, device=data.device)
    for start in range(0, count, CHUNK):
        many = min(CHUNK, count - start)
        made[start : start + many] = _unpacked(
            data[start * bits // 8 :][: -(-many * bits // 8)], bits, many
        )
    return made


def _packed(codes: Tensor, bits: int) -> Tensor:
    places = torch.arange(bits, device=codes.device)
    stream = (codes.reshape(-1, 1) >> places & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8))
    weights = 1 << torch.arange(8, device=codes.device)
    return (stream.view(-1, 8) * weights).sum(1).to(torch.uint8)


def _unpacked(data: Tensor, bits: int, count: int) -> Tensor:
    places = torch.arange(8, device=data.device)
    stream = (data.int().unsqueeze(1) >> places & 1).flatten()[: count * bits]
    weights = 1 << torch.arange(bits, device=data.device)
    return (stream.view(count, bits) * weights).sum(1).to(torch.int32)
