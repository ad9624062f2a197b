"""Published weights of ultralytics: downloaded once, and read without running code of the file.

The files are pickles of whole networks. Every class in them is replaced by a stand-in that only
keeps its state. So the tensors can be read by name, and no code of the file or of ultralytics is
run.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sq.config.data_paths import without_weights
from sq.core import files
from sq.errors import SqError
from sq.model.state_dict import load_into
from sq.model.weights_file import StandIn, reason_of, standing_in

RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
TIMEOUT = 30  # seconds without a response


def load_published(net: nn.Module, name: str) -> tuple[str, tuple[str, ...]]:
    """Copy the published weights of network `name` into `net`; return sha256 and class names.

    Raises
    ------
    SqError : the file is not here yet and cannot be downloaded, or it has another content
    """
    if without_weights():
        return "", ()
    path = fetch(f"{name}.pt")
    network = _network(path)
    # By way of a file, so that `load_into` checks it like any other.
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / f"{name}.safetensors"
        save_file(_tensors(network, path), plain)
        load_into(net, plain)
    return hashlib.sha256(path.read_bytes()).hexdigest(), class_names(network)


def fetch(file: str) -> Path:
    """Return the path of `file` in torch's checkpoint folder; download it if it is missing."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / file
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            files.replacing(path) as part,
            urlopen(f"{RELEASE}/{file}", timeout=TIMEOUT) as response,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(response, target)
    except OSError as error:
        raise SqError(
            f"model.weights=null: {RELEASE}/{file} cannot be fetched ({error}): put the file at "
            f"{path}, or give model.weights=PATH of a state dict"
        ) from error
    return path


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name of the network pickled in the file at `path`.

    Raises
    ------
    SqError : the file holds no network, or cannot be read without running code
    """
    return _tensors(_network(path), path)


def class_names(network: Any) -> tuple[str, ...]:
    """Return the class names of a pickled network in the order of its outputs, or ()."""
    names = network.state.get("names") if isinstance(network, StandIn) else None
    if isinstance(names, dict):
        numbers = range(len(names))
        if names.keys() != set(numbers):
            return ()
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _network(path: Path) -> Any:
    """Return the network pickled in the file at `path`, with stand-ins for all classes."""
    try:
        with standing_in(torch.serialization.get_unsafe_globals_in_checkpoint(path)):
            stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        raise SqError(
            f"{path} cannot be read as published weights ({reason_of(error)}): delete it, to fetch "
            "it again"
        ) from error
    if not isinstance(stored, dict):
        return None
    # The moving average of training, if there is one.
    return stored.get("ema") or stored.get("model")


def _tensors(network: Any, path: Path) -> dict[str, Tensor]:
    tensors_by_name = _collect(network, "") if isinstance(network, StandIn) else {}
    if not tensors_by_name:
        raise SqError(
            f"{path} holds no network under 'ema' or 'model': delete it, to fetch it again"
        )
    return tensors_by_name


def _collect(module: StandIn, prefix: str) -> dict[str, Tensor]:
    """Return parameters and buffers of a pickled module and its submodules, as in a state dict."""
    not_persistent = module.state.get("_non_persistent_buffers_set") or ()
    entries = {**module.state.get("_parameters", {}), **module.state.get("_buffers", {})}
    tensors_by_name: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if isinstance(entry, Tensor) and name not in not_persistent:
            contiguous = entry.detach().clone(memory_format=torch.contiguous_format)
            tensors_by_name[f"{prefix}{name}"] = contiguous
    for name, submodule in module.state.get("_modules", {}).items():
        if isinstance(submodule, StandIn):
            tensors_by_name |= _collect(submodule, f"{prefix}{name}.")
    return tensors_by_name
