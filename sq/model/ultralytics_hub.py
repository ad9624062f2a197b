"""The weights ultralytics publishes: fetched once, and their tensors read without running what else the file holds.

The files are pickles of whole networks. Here every class they name is replaced by one that only
keeps what it is given, so the tensors can be had, by name, and no code of the file or of
ultralytics is run.
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
from sq.model.state_dict import Inert, load_into, standing_in

RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
PATIENCE = 30  # seconds without an answer


def load_published(net: nn.Module, name: str) -> tuple[str, tuple[str, ...]]:
    """Copy the published weights of the network `name` into `net`; return the file's sha256 and its `class_names`.

    Raises
    ------
    SqError : the file is not here yet and cannot be fetched; it is not what it should be
    """
    if without_weights():
        return "", ()
    path = fetch(f"{name}.pt")
    network = _network(path)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / f"{name}.safetensors"
        save_file(_tensors(network, path), plain)
        load_into(net, plain)
    return hashlib.sha256(path.read_bytes()).hexdigest(), class_names(network)


def fetch(file: str) -> Path:
    """Return where `file` of the release lies, in torch's folder of checkpoints; download it if it is not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / file
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            files.replacing(path) as part,
            urlopen(f"{RELEASE}/{file}", timeout=PATIENCE) as answer,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(answer, target)
    except OSError as error:
        raise SqError(
            f"model.weights=null: {RELEASE}/{file} cannot be fetched ({error}): put the file at {path}, "
            "or give model.weights=PATH of a state dict"
        ) from error
    return path


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors, by name, of the network that the file at `path` pickles.

    Raises
    ------
    SqError : the file holds no network, or cannot be read without running code
    """
    return _tensors(_network(path), path)


def class_names(network: Any) -> tuple[str, ...]:
    """Return the names of a pickled network's classes in the order of its outputs, () where it does not tell them."""
    names = network.state.get("names") if isinstance(network, Inert) else None
    if isinstance(names, dict):
        names = (
            [names[number] for number in range(len(names))]
            if names.keys() == set(range(len(names)))
            else None
        )
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _network(path: Path) -> Any:
    """Return what the file at `path` pickles as its network, with stand-ins for all classes."""
    try:
        with standing_in(torch.serialization.get_unsafe_globals_in_checkpoint(path)):
            stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they happen to decode to
        # torch's own advice, to load with weights_only=False, is what must not be done.
        said = [
            line for line in str(error).splitlines() if line.strip() and "weights_only" not in line
        ]
        reason = (said or [type(error).__name__])[0]
        raise SqError(
            f"{path} cannot be read as published weights ({reason}): delete it, to fetch it again"
        ) from error
    stored = stored if isinstance(stored, dict) else {}
    # the moving average of training, where there is one
    return stored.get("ema") or stored.get("model")


def _tensors(network: Any, path: Path) -> dict[str, Tensor]:
    found = _walk(network, "") if isinstance(network, Inert) else {}
    if not found:
        raise SqError(
            f"{path} holds no network under 'ema' or 'model': delete it, to fetch it again"
        )
    return found


def _walk(module: Inert, prefix: str) -> dict[str, Tensor]:
    """Return parameters and buffers of a pickled module and of those in it, as `state_dict` names them."""
    passing = module.state.get("_non_persistent_buffers_set") or ()
    own = {**module.state.get("_parameters", {}), **module.state.get("_buffers", {})}
    found = {
        f"{prefix}{name}": tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in own.items()
        if isinstance(tensor, Tensor) and name not in passing
    }
    for name, part in module.state.get("_modules", {}).items():
        if isinstance(part, Inert):
            found |= _walk(part, f"{prefix}{name}.")
    return found
