"""Files of weights: their content, read without running code that a pickle may hold."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

from sq.core.file_content import mistaken_content
from sq.errors import SqError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
ZIP_MAGIC = b"PK\x03\x04"  # the first bytes of a file of `torch.save`
PICKLE_MAGIC = b"\x80\x02"  # of one from before PyTorch 1.6
# Classes and functions that training scripts save next to the tensors. They are not needed, so
# stand-ins without effect are loaded for them.
HARMLESS = re.compile(
    r"(?:(?:__builtin__|builtins)\.)?(?:list|dict|set|tuple|int|float|bool|slice|range|object)|"
    r"argparse\.Namespace|collections\.Counter|_codecs\.encode|pathlib\.\w+|datetime\.\w+|"
    r"numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray|dtypes\.\w+)|"
    r"(omegaconf|yacs|pytorch_lightning|lightning|lightning_fabric)\.[\w.]+|typing\.Any|enum\.\w+"
)

# The allowed classes of torch.load and the warning filters are global, for all threads.
_lock = threading.RLock()


class StandIn:
    """Replaces a class or function of a pickle: keeps its state, does nothing."""

    def __init__(self, *_: Any):
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


@contextmanager
def standing_in(names: Iterable[str]) -> Iterator[None]:
    """Let `torch.load` load a `StandIn` for each class or function in `names`, within the context.

    One thread at a time: the first of two to end would remove what the second still needs. Other
    code that loads a file meanwhile gets stand-ins too, so nothing changes if there are no names.
    """
    stand_ins: list[Any] = [(StandIn, name) for name in names]
    with _lock:
        if not stand_ins:
            yield
            return
        with torch.serialization.safe_globals(stand_ins):
            yield


def read(path: Path) -> Any:
    """Return the content of a file of weights."""
    if not path.is_file():
        raise SqError(
            f"no weights file at {path}: correct model.weights, or leave it out for the default"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise SqError(
            f"{path}: weights are read from {', '.join(SUFFIXES)} files: convert it, or rename it "
            "if it is one"
        )
    is_safetensors = _is_safetensors(path)
    kind = "safetensors file" if is_safetensors else "PyTorch checkpoint"
    mistake = mistaken_content(path)
    if mistake:
        raise SqError(f"{path} is not a whole {kind}: {mistake}: copy it again")
    return _read_safetensors(path) if is_safetensors else _read_torch(path)


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is in the safetensors format: by its content, or else by its name."""
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise SqError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
        return False
    # Its JSON header begins after 8 bytes of length.
    return head[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SqError(
            f"{path} is not a whole safetensors file ({error}): copy or train it again"
        ) from error


def _read_torch(path: Path) -> Any:
    """Return the content of a file of `torch.save`. A pickle can hold code: it is never run."""
    try:
        # As a stream: with a path, torch.load would go by its suffix.
        with _lock, path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sparse and quantized tensors
            harmless = [name for name in _globals(path) if HARMLESS.fullmatch(name)]
            with standing_in(harmless):
                return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        message = str(error)
        if "TorchScript" in message:
            raise SqError(
                f"{path} holds a TorchScript program, not weights alone: where it was made, write "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
            ) from error
        blocked = re.search(r"GLOBAL (\S+)", message)
        if blocked:
            raise SqError(
                f"{path} holds more than tensors ({blocked[1]}), and unpickling that could run "
                "foreign code: save the network's state_dict() alone, by "
                "torch.save(net.state_dict(), FILE)"
            ) from error
        raise SqError(
            f"{path} is not a whole PyTorch checkpoint ({reason_of(error)}): copy it again"
        ) from error


def reason_of(error: Exception) -> str:
    """Return the first useful line of an exception of `torch.load`.

    Its advice to load with weights_only=False is left out: that could run foreign code.
    """
    for line in str(error).splitlines():
        if line.strip() and "weights_only" not in line:
            return line
    return type(error).__name__


def _globals(path: Path) -> list[str]:
    """Return the classes and functions in a checkpoint, beyond those that torch allows.

    Old files, which are no archives, cannot be searched.
    """
    with path.open("rb") as stream:
        if stream.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return []
        if any("constants.pkl" in name for name in ZipFile(path).namelist()):  # TorchScript
            return []
        stream.seek(0)
        return torch.serialization.get_unsafe_globals_in_checkpoint(stream)
