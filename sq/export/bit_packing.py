"""Packing of codes of a few bits into bytes, lowest bit first."""

from __future__ import annotations

import torch
from torch import Tensor

# Codes packed at a time; a multiple of 8, so that chunks end with a byte. While it is packed, each
# bit takes 8 bytes of memory.
CHUNK_CODES = 2**20


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return `codes`, integers in 0 .. 2^bits - 1 of any shape, as (bytes,) uint8."""
    chunks = [_pack_chunk(chunk, bits) for chunk in codes.reshape(-1).split(CHUNK_CODES)]
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.uint8)


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes (count,) int32 in `data` (bytes,) uint8."""
    codes = torch.empty(count, dtype=torch.int32, device=data.device)
    for start in range(0, count, CHUNK_CODES):
        length = min(CHUNK_CODES, count - start)
        first_byte, byte_count = start * bits // 8, -(-length * bits // 8)
        chunk = data[first_byte : first_byte + byte_count]
        codes[start : start + length] = _unpack_chunk(chunk, bits, length)
    return codes


def _pack_chunk(codes: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(bits, device=codes.device)
    stream = (codes.reshape(-1, 1) >> shifts & 1).flatten()  # one element per bit
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8))
    weights = 1 << torch.arange(8, device=codes.device)
    return (stream.view(-1, 8) * weights).sum(1).to(torch.uint8)


def _unpack_chunk(data: Tensor, bits: int, count: int) -> Tensor:
    shifts = torch.arange(8, device=data.device)
    stream = (data.int().unsqueeze(1) >> shifts & 1).flatten()[: count * bits]
    weights = 1 << torch.arange(bits, device=data.device)
    return (stream.view(count, bits) * weights).sum(1).to(torch.int32)
