"""A file of tensors and what is known of them, which tells when a byte of it is not as it was written.

It is a safetensors file with one tensor of each type and, as one more, a compressed text that says
what lies where: so a hundred layers cost no hundred headers. Its metadata hold the format's version
and the hash of all the rest.
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
TEXT = "layout"
HEADER = 2**16  # bytes of the safetensors header at most: there are four tensors
LARGEST = 2**22  # bytes of the text, uncompressed, at most

Layout = dict[str, Any]


def write(file: Path, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    """Write `layout`, plain values, and flat `tensors` by name, whole or not at all.

    Raises
    ------
    SqError : the folder cannot be written, or the disk is full
    """
    from safetensors.torch import save

    text = zlib.compress(json.dumps(layout, separators=(",", ":"), allow_nan=False).encode(), 9)
    every = {name: own.detach().cpu().contiguous() for name, own in tensors.items() if own.numel()}
    every[TEXT] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    # One entry: safetensors writes several in any order, and the same network should be the same
    # file.
    files.write_bytes(file, save(every, {FORMAT: f"{VERSION} {_hash(every)}"}), "outputs")


def read(file: Path) -> tuple[Layout, dict[str, Tensor]]:
    """Return what `write` was given; tensors that had no number are not there.

    Raises
    ------
    SqError : there is no such file, or it is damaged, no file of this kind, or of another version
    """
    from safetensors.torch import load

    try:
        data = file.read_bytes()
    except OSError as error:
        raise SqError(
            f"{file} cannot be read ({error.strerror}): name a file that export=packed has written"
        ) from error
    try:
        about = _metadata(data)
        if FORMAT not in about:
            raise SqError(f"{file} is no network that export=packed has written: name one that is")
        version, _, wanted = about[FORMAT].partition(" ")
        if version != str(VERSION):
            raise SqError(
                f"{file} is of version {version[:20]} of the format, and this sq reads version {VERSION}: export the "
                "network again, or use the sq it was written with"
            )
        tensors = load(data)
        if _hash(tensors) != wanted:
            raise ValueError("its content is not what was written")
        opened = zlib.decompressobj()
        layout = json.loads(opened.decompress(tensors.pop(TEXT).numpy().tobytes(), LARGEST))
        if not isinstance(layout, dict) or not opened.eof:
            raise ValueError("its layout is not whole")
    except SqError:
        raise
    except Exception as error:  # whatever its bytes lead a reader to
        raise SqError(
            f"{file} is damaged ({_reason(error)[:160]}): copy it again, or export the network again"
        ) from error
    return layout, tensors


def _reason(error: Exception) -> str:
    """Return what was found: in our own words alone, or with the kind of error that a library raised."""
    return str(error) if type(error) is ValueError else one_line(error)


def _metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file, looked at before anything in it is believed."""
    if len(data) < 8:
        raise ValueError("it ends early")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(HEADER, len(data) - 8):
        raise ValueError(f"its header would take {length} bytes")
    header = json.loads(data[8 : 8 + length])
    about = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("it says nothing of itself")
    return about


def _hash(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        own = tensors[name]
        sha.update(
            f"{name} {own.dtype} {tuple(own.shape)}\n".encode()
            + own.reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return sha.hexdigest()
