"""A checksummed file of tensors and their layout.

It is a safetensors file with one tensor of each type and, as one more, a compressed text with the
layout: so a hundred layers need no hundred headers. Its metadata hold the version of the format and
the hash of everything else.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sq.core import files
from sq.errors import SqError, one_line

VERSION = 1
FORMAT = "sq packed"
LAYOUT_TENSOR = "layout"
MAX_HEADER = 2**16  # bytes of the safetensors header: there are four tensors
MAX_LAYOUT = 2**22  # bytes of the layout, uncompressed

Layout = dict[str, Any]


def write(file: Path, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    """Write `layout`, plain values, and flat `tensors` by name; the file is whole or not there.

    Raises
    ------
    SqError : the folder cannot be written, or the disk is full
    """
    from safetensors.torch import save

    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            stored[name] = tensor.detach().cpu().contiguous()
    text = json.dumps(layout, separators=(",", ":"), allow_nan=False).encode()
    stored[LAYOUT_TENSOR] = torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8)
    # One entry of metadata: safetensors writes several in any order, and the same network should
    # give the same file.
    metadata = {FORMAT: f"{VERSION} {_hash(stored)}"}
    files.write_bytes(file, save(stored, metadata), "outputs")


def read(file: Path) -> tuple[Layout, dict[str, Tensor]]:
    """Return the layout and tensors of a file; empty tensors are missing.

    Raises
    ------
    SqError : there is no such file, or it is damaged, of another kind, or of another version
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SqError(
            f"{file} cannot be read ({error.strerror}): name a file that export=packed has written"
        ) from error
    try:
        return _content(file, data)
    except SqError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise SqError(
            f"{file} is damaged ({_reason(error)[:160]}): copy it again, or export the network "
            "again"
        ) from error


def _content(file: Path, data: bytes) -> tuple[Layout, dict[str, Tensor]]:
    """Return the layout and tensors in the bytes of `file`."""
    from safetensors.torch import load

    metadata = _metadata(data)
    if FORMAT not in metadata:
        raise SqError(f"{file} is no network that export=packed has written: name one that is")
    version, _, checksum = metadata[FORMAT].partition(" ")
    if version != str(VERSION):
        raise SqError(
            f"{file} is of version {version[:20]} of the format, and this sq reads version "
            f"{VERSION}: export the network again, or use the sq it was written with"
        )
    tensors = load(data)
    if _hash(tensors) != checksum:
        raise ValueError("its content is not what was written")
    text = tensors.pop(LAYOUT_TENSOR).numpy().tobytes()
    decompressor = zlib.decompressobj()
    layout = json.loads(decompressor.decompress(text, MAX_LAYOUT))
    if not isinstance(layout, dict) or not decompressor.eof:
        raise ValueError("its layout is not whole")
    return layout, tensors


def _reason(error: Exception) -> str:
    """Return the message of our own errors, or type and message of a library's."""
    return str(error) if type(error) is ValueError else one_line(error)


def _metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file, after a check of its header."""
    if len(data) < 8:
        raise ValueError("it ends early")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"its header would take {length} bytes")
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("it has no metadata")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no text")
    return metadata


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of names, types, shapes and values of tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
