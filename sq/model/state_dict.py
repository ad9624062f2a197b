"""Read weights into a network, and say clearly when they do not fit."""

from __future__ import annotations

import hashlib
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from sq.config.data_paths import without_weights
from sq.core.file_content import mistaken_content
from sq.core.progress import say
from sq.core.wording import quantity
from sq.errors import SqError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
ARCHIVE = b"PK\x03\x04"  # how files that `torch.save` writes begin
SHOWN = 3  # names in a message
DEPTH = 3  # of dictionaries in each other, in which state dicts are looked for
# What torch.compile, FSDP and activation checkpointing put into the names of parameters, at any
# place.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What training scripts leave beside the tensors. It is not wanted, so stand-ins that do nothing are
# read for it.
BYSTANDERS = re.compile(
    r"(?:(?:__builtin__|builtins)\.)?(?:list|dict|set|tuple|int|float|bool|slice|range|object)|"
    r"argparse\.Namespace|collections\.Counter|_codecs\.encode|pathlib\.\w+|datetime\.\w+|"
    r"numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray|dtypes\.\w+)|"
    r"(omegaconf|yacs|pytorch_lightning|lightning|lightning_fabric)\.[\w.]+|typing\.Any|enum\.\w+"
)


# what torch.load may read, and which warnings are shown, is one state for all threads
_reading = threading.RLock()


class Inert:
    """Stands in for a class or function of a pickle: keeps the state it is given, does nothing."""

    def __init__(self, *_: Any):
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


@contextmanager
def standing_in(names: Iterable[str]) -> Iterator[None]:
    """Have `torch.load` read an `Inert` for each class or function of these `names`, in the block alone.

    One thread at a time: the first of two to end would take away what the second still needs.
    Threads of others that load a file meanwhile are given stand-ins too, so nothing is changed
    where there are no names.
    """
    harmless: list[Any] = [(Inert, name) for name in names]
    with _reading:
        if not harmless:
            yield
            return
        with torch.serialization.safe_globals(harmless):
            yield


@dataclass(frozen=True)
class Fit:
    """Tensors of a file, by the names that a network has for them, and what keeps them from fitting."""

    # of the dictionary in the file that holds them, "a.b" for one in another; "" for the file's own
    key: str
    prefix: str  # that all names have in the file
    tensors: dict[str, Tensor]
    outside: list[str]  # names in the file without the prefix
    problems: dict[str, list[str]] = field(default_factory=dict)  # names by what is wrong with them

    @property
    def averaged(self) -> bool:
        """Return whether key or prefix says that these are averages over training."""
        # not "semantic", nor "swap"
        parts = re.split(r"[^a-z]+", f"{self.key}.{self.prefix}".lower())
        return any(re.fullmatch(r"(model)?(ema|swa)(model)?|averag\w*", part) for part in parts)

    @property
    def label(self) -> str:
        """Return where in the file the tensors are."""
        parts = [
            self.key and f"under {self.key}",
            self.prefix and f"of names that begin with {self.prefix}",
        ]
        return " ".join(filter(None, parts)) or "at the top"


def load_into(net: nn.Module, path: Path) -> str:
    """Copy the tensors of the file at `path` into `net`; return the file's sha256.

    Inside of `sq.config.data_paths.architecture_alone`, nothing is read: the network stays as it
    was made.

    A .safetensors file, or one that `torch.save` wrote. The state dict may be an entry of a
    dictionary ("model", "state_dict", ...), and its names may have a prefix ("module.", "model.",
    "_orig_mod.", ...): those tensors are taken that fit the network, which is said. Where averages
    over training ("ema") fit beside the last weights, they are taken, as timm and ultralytics do.
    Tensors are converted to the type of the parameter they fill.

    Raises
    ------
    SqError : the file is missing, damaged, more than tensors, of another network, or holds what are
    no full-precision
        weights: NaN or infinity, codes of a quantized network, complex numbers, tensors without
        values
    """
    if without_weights():
        return ""
    stored = _read(path)
    fits = [
        fit
        for key, tensors in _state_dicts(stored)
        for fit in _fits(key, tensors, net.state_dict())
    ]
    if not fits:
        raise SqError(
            f"{path} holds no state dict, that is, tensors by name{_contents(stored)}: save the network's "
            "state_dict() alone, by torch.save(net.state_dict(), FILE)"
        )
    fit = _chosen(fits, path, type(net).__name__)
    own = net.state_dict()
    tensors = {
        name: _converted(tensor, own[name], f"{path}: {name}")
        for name, tensor in fit.tensors.items()
    }
    if broken := [
        name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()
    ]:
        raise SqError(
            f"{path} holds NaN or infinity in {', '.join(broken[:SHOWN])}: the checkpoint is unusable"
        )
    if rounded := [t.dtype for t in fit.tensors.values() if t.dtype == torch.float64]:
        say(f"{path}: {quantity(rounded, 'tensor')} in float64, rounded to the network's float32")
    net.load_state_dict(tensors, strict=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path) -> Any:
    if not path.is_file():
        raise SqError(
            f"no weights file at {path}: correct model.weights, or leave it out for the default"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise SqError(
            f"{path}: weights are read from {', '.join(SUFFIXES)} files: convert it, or rename it if it is one"
        )
    safe = _is_safetensors(path)
    kind = "safetensors file" if safe else "PyTorch checkpoint"
    if mistake := mistaken_content(path):
        raise SqError(f"{path} is not a whole {kind}: {mistake}: copy it again")
    return _safetensors(path) if safe else _torch(path)


def _is_safetensors(path: Path) -> bool:
    """Return whether the file at `path` is read as safetensors: by its content where that tells, else by its name."""
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise SqError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith((ARCHIVE, b"\x80\x02")):  # of today's files, and of those before PyTorch 1.6
        return False
    return head[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SqError(
            f"{path} is not a whole safetensors file ({error}): copy or train it again"
        ) from error


def _torch(path: Path) -> Any:
    try:
        # A pickle can hold code: it is never run. Of what is known to stand beside tensors, nothing
        # is wanted. A stream: of a path, the suffix would decide.
        with _reading, path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse and of quantized tensors
            with standing_in(name for name in _named(path) if BYSTANDERS.fullmatch(name)):
                return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they happen to decode to
        text = str(error)
        if "TorchScript" in text:
            raise SqError(
                f"{path} holds a TorchScript program, not weights alone: where it was made, write "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
            ) from error
        if found := re.search(r"GLOBAL (\S+)", text):
            raise SqError(
                f"{path} holds more than tensors ({found[1]}), and unpickling that could run foreign code: save the "
                "network's state_dict() alone, by torch.save(net.state_dict(), FILE)"
            ) from error
        # PyTorch's own advice, to load with weights_only=False, is what must not be done.
        said = [line for line in text.splitlines() if line.strip() and "weights_only" not in line]
        reason = (said or [type(error).__name__])[0]
        raise SqError(
            f"{path} is not a whole PyTorch checkpoint ({reason}): copy it again"
        ) from error


def _named(path: Path) -> list[str]:
    """Return the classes and functions that the checkpoint at `path` names, beyond those that torch allows.

    Old files, which are no archives, cannot be asked.
    """
    with path.open("rb") as stream:
        if stream.read(len(ARCHIVE)) != ARCHIVE or any(
            "constants.pkl" in name for name in ZipFile(path).namelist()
        ):
            return []
        stream.seek(0)
        return torch.serialization.get_unsafe_globals_in_checkpoint(stream)


def _state_dicts(
    stored: Any, key: str = "", depth: int = DEPTH
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dictionary of tensors by name in `stored`, with where it is."""
    if not isinstance(stored, dict):
        return
    if all(isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in stored.items()):
        yield key, dict(stored)
    elif depth:
        for name, value in stored.items():
            yield from _state_dicts(value, f"{key}.{name}" if key else str(name), depth - 1)


def _contents(stored: Any) -> str:
    """Return in words what a file holds that has no state dict."""
    if isinstance(stored, dict):
        names = [
            f"{name} ({type(value).__name__})" for name, value in list(stored.items())[-SHOWN:]
        ]
        return f" only, but a dictionary with {', '.join(names)}" if names else ""
    return f", but {type(stored).__name__}"


def _fits(key: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[Fit]:
    """Return how `tensors` fit the network's `own`, once for each prefix that may stand before its names."""
    plain = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    # Wherever the first parameters of the network end a name, what stands before may be a prefix.
    ends = [name for name in own if not _counter(name)][:SHOWN]
    prefixes = {
        name.removesuffix(end) for end in ends for name in plain if f".{name}".endswith(f".{end}")
    }
    return [_fit(key, prefix, plain, own) for prefix in sorted({"", *prefixes})]


def _fit(key: str, prefix: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Fit:
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    outside = [name for name in tensors if not name.startswith(prefix)]
    reshaped = [n for n, t in inside.items() if n in own and t.shape != own[n].shape]
    problems = {
        "missing": [name for name in own if name not in inside and not _counter(name)],
        "not in the network": [name for name in inside if name not in own],
        "of another shape": [f"{name} {tuple(inside[name].shape)}" for name in reshaped],
    }
    return Fit(
        key, prefix, inside, outside, {what: names for what, names in problems.items() if names}
    )


def _counter(name: str) -> bool:
    """Return whether a checkpoint may lack `name`, which old ones do."""
    return name.endswith("num_batches_tracked")


def _chosen(fits: list[Fit], path: Path, network: str) -> Fit:
    """Return the one of `fits` to take, and say which if there is anything to say.

    Raises
    ------
    SqError : none fits, or several do and none is to be preferred
    """
    fitting = [fit for fit in fits if not fit.problems]
    if not fitting:
        best = min(fits, key=lambda fit: sum(map(len, fit.problems.values())))
        detail = "; ".join(
            f"{len(names)} {what} ({_listed(names)})" for what, names in best.problems.items()
        )
        where = "" if best.label == "at the top" else f", looked for {best.label}"
        raise SqError(f"{path} holds weights of another network than {network}: {detail}{where}")
    averaged = [fit for fit in fitting if fit.averaged]
    choices = averaged if len(averaged) == 1 else fitting
    if len(choices) > 1:
        raise SqError(
            f"{path} holds several sets of weights that fit {network} ({_listed([fit.label for fit in choices])}): "
            "save the one you mean alone"
        )
    chosen = choices[0]
    parts = []
    if chosen.key or chosen.prefix:
        parts.append(f"weights are those {chosen.label}")
    if len(fitting) > 1:
        others = [fit.label for fit in fitting if fit is not chosen]
        parts.append(f"averages over training, not those {_listed(others)}")
    if chosen.outside:
        parts.append(
            f"{quantity(chosen.outside, 'other tensor')} left out ({_listed(chosen.outside)})"
        )
    if parts:
        say(f"{path}: {'; '.join(parts)}")
    return chosen


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _converted(tensor: Tensor, own: Tensor, what: str) -> Tensor:
    """Return `tensor` as one that can be copied into the network's `own`.

    Raises
    ------
    SqError : it is none of full-precision values; `what` begins the message
    """
    if tensor.is_meta:
        raise SqError(
            f"{what} has no values (it is on the device meta): save the network after its weights are loaded"
        )
    if tensor.is_quantized or (
        own.is_floating_point() and not (tensor.is_floating_point() or tensor.is_complex())
    ):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise SqError(
            f"{what} is stored as {kind}, as in a network that is quantized already: give weights in full precision"
        )
    if tensor.is_complex() and not own.is_complex():
        raise SqError(
            f"{what} holds complex numbers, the network's are real: give the weights of this network"
        )
    return (tensor.to_dense() if tensor.layout != torch.strided else tensor).detach().to(own.dtype)
