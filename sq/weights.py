"""Read weights into a network, and say clearly when they do not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from sq.errors import SqError


def load_into(net: nn.Module, path: Path) -> str:
    """Copy the tensors of the safetensors file at `path` into `net`; return the file's sha256.

    Tensors stored in half precision are widened to the type of the parameter they fill.

    Raises
    ------
    SqError : the file is missing, damaged, of another network, or holds NaN or infinity
    """
    tensors = _read(path)
    own = net.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    foreign = [name for name in tensors if name not in own]
    reshaped = [f"{n} {tuple(tensors[n].shape)}" for n in tensors if n in own and tensors[n].shape != own[n].shape]
    if missing or foreign or reshaped:
        parts = {"missing": missing, "not in the network": foreign, "of another shape": reshaped}
        detail = "; ".join(f"{len(v)} {k} ({', '.join(v[:3])}{', ...' * (len(v) > 3)})" for k, v in parts.items() if v)
        raise SqError(f"{path} holds weights of another network than {type(net).__name__}: {detail}")
    broken = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
    if broken:
        raise SqError(f"{path} holds NaN or infinity in {', '.join(broken[:3])}: the checkpoint is unusable")
    net.load_state_dict(tensors, strict=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise SqError(f"no weights file at {path}: correct model.weights, or leave it null for the packaged weights")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise SqError(f"{path} is not a whole safetensors file ({error}): copy or train it again") from error
