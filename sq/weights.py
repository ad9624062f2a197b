"""Read weights into a network, and say clearly when they do not fit."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq.data import without_weights
from sq.errors import SqError


def load_into(net: nn.Module, path: Path) -> str:
    """Copy the tensors of the .safetensors, .pth or .pt file at `path` into `net`; return the file's sha256.

    Inside of `sq.data.architecture_alone`, nothing is read: the network stays as it was made.

    Tensors stored in half precision are widened to the type of the parameter they fill. A "state_dict" around
    the tensors and a "module." before every name, which training scripts leave, are taken off.

    Raises
    ------
    SqError : the file is missing, damaged, more than tensors, of another network, or holds NaN or infinity
    """
    if without_weights():
        return ""
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
    readers = {".safetensors": _safetensors, ".pth": _torch, ".pt": _torch}
    if not path.is_file():
        raise SqError(f"no weights file at {path}: correct model.weights, or leave it out for the default")
    if path.suffix not in readers:
        raise SqError(
            f"{path}: weights are read from {', '.join(readers)} files: convert it, or rename it if it is one"
        )
    tensors = readers[path.suffix](path)
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise SqError(f"{path} is not a whole safetensors file ({error}): copy or train it again") from error


def _torch(path: Path) -> dict[str, Tensor]:
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)  # a pickle can hold code: never run it
    except Exception as error:  # damaged bytes raise whatever they happen to decode to
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise SqError(
                f"{path} holds more than tensors ({found[1]}), and unpickling that could run foreign code: "
                "save the network's state_dict() alone"
            ) from error
        # PyTorch's own advice, to load with weights_only=False, is what must not be done.
        said = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
        reason = (said or [type(error).__name__])[0]
        raise SqError(f"{path} is not a whole PyTorch checkpoint ({reason}): copy it again") from error
    if isinstance(stored, dict) and isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    if not isinstance(stored, dict) or not all(isinstance(n, str) and torch.is_tensor(t) for n, t in stored.items()):
        raise SqError(f"{path} holds no state dict, that is, tensors by name: save the network's state_dict() alone")
    return dict(stored)
