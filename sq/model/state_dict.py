"""Reading of weights into a network, with clear messages when they do not fit."""

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
ZIP_MAGIC = b"PK\x03\x04"  # the first bytes of a file of `torch.save`
PICKLE_MAGIC = b"\x80\x02"  # of one from before PyTorch 1.6
NAMED = 3  # names in a message
MAX_DEPTH = 3  # of nested dictionaries that are searched for state dicts
# Prefixes of parameter names from torch.compile, FSDP and activation checkpointing, anywhere in
# them.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
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


@dataclass(frozen=True)
class Candidate:
    """Tensors of a file under the network's names, and the problems that keep them from fitting."""

    key: str  # path of the dictionary in the file, "a.b" if nested; "" for the file's own
    prefix: str  # of all names in the file
    tensors: dict[str, Tensor]
    others: list[str]  # names in the file without the prefix
    problems: dict[str, list[str]] = field(default_factory=dict)  # names by kind of problem

    @property
    def averaged(self) -> bool:
        """Return whether key or prefix name an average over training."""
        # Whole words only: not "semantic", nor "swap".
        parts = re.split(r"[^a-z]+", f"{self.key}.{self.prefix}".lower())
        return any(re.fullmatch(r"(model)?(ema|swa)(model)?|averag\w*", part) for part in parts)

    @property
    def label(self) -> str:
        """Return where in the file the tensors are, for messages."""
        parts: list[str] = []
        if self.key:
            parts.append(f"under {self.key}")
        if self.prefix:
            parts.append(f"of names that begin with {self.prefix}")
        return " ".join(parts) or "at the top"

    @property
    def problem_count(self) -> int:
        """Return the number of names with a problem."""
        return sum(map(len, self.problems.values()))


def load_into(net: nn.Module, path: Path) -> str:
    """Copy the tensors of the file at `path` into `net`; return the file's sha256.

    Within `sq.config.data_paths.architecture_alone`, nothing is read and the network stays as it
    is.

    The file is a .safetensors file, or one of `torch.save`. The state dict may be an entry of a
    dictionary ("model", "state_dict", ...), and its names may have a prefix ("module.", "model.",
    "_orig_mod.", ...). The tensors that fit the network are taken, and the choice is logged. If
    averages over training ("ema") and the last weights both fit, the averages are taken, as in timm
    and ultralytics. Tensors are converted to the type of the parameter they fill.

    Raises
    ------
    SqError : the file is missing, damaged, more than tensors, of another network, or without
        full-precision weights: NaN or infinity, codes of a quantized network, complex numbers,
        tensors without values
    """
    if without_weights():
        return ""
    content = _read(path)
    parameters = net.state_dict()
    candidates: list[Candidate] = []
    for key, tensors in _state_dicts(content):
        candidates += _candidates(key, tensors, parameters)
    if not candidates:
        raise SqError(
            f"{path} holds no state dict, that is, tensors by name{_description(content)}: save "
            "the network's state_dict() alone, by torch.save(net.state_dict(), FILE)"
        )
    chosen = _choose(candidates, path, type(net).__name__)
    converted: dict[str, Tensor] = {}
    for name, tensor in chosen.tensors.items():
        converted[name] = _converted(tensor, parameters[name], f"{path}: {name}")
    _check_finite(converted, path)
    rounded = [t.dtype for t in chosen.tensors.values() if t.dtype == torch.float64]
    if rounded:
        say(f"{path}: {quantity(rounded, 'tensor')} in float64, rounded to the network's float32")
    net.load_state_dict(converted, strict=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    not_finite: list[str] = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            not_finite.append(name)
    if not_finite:
        raise SqError(
            f"{path} holds NaN or infinity in {', '.join(not_finite[:NAMED])}: the checkpoint is "
            "unusable"
        )


def _read(path: Path) -> Any:
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


def _state_dicts(
    content: Any, key: str = "", depth: int = MAX_DEPTH
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the path and the tensors of every state dict in `content`."""
    if not isinstance(content, dict):
        return
    if all(isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in content.items()):
        yield key, dict(content)
    elif depth:
        for name, value in content.items():
            yield from _state_dicts(value, f"{key}.{name}" if key else str(name), depth - 1)


def _description(content: Any) -> str:
    """Return what a file without a state dict holds, for a message."""
    if not isinstance(content, dict):
        return f", but {type(content).__name__}"
    if not content:
        return ""
    entries = list(content.items())[-NAMED:]
    names = [f"{name} ({type(value).__name__})" for name, value in entries]
    return f" only, but a dictionary with {', '.join(names)}"


def _candidates(
    key: str, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> list[Candidate]:
    """Return `tensors` as candidates for the network's `parameters`, one per possible prefix."""
    unwrapped = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    # Where a name ends like one of the first parameters of the network, its beginning may be a
    # prefix.
    first_parameters = [name for name in parameters if not _may_be_missing(name)][:NAMED]
    prefixes = {""}
    for parameter in first_parameters:
        for name in unwrapped:
            if f".{name}".endswith(f".{parameter}"):
                prefixes.add(name.removesuffix(parameter))
    return [_candidate(key, prefix, unwrapped, parameters) for prefix in sorted(prefixes)]


def _candidate(
    key: str, prefix: str, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> Candidate:
    inside: dict[str, Tensor] = {}
    others: list[str] = []
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            inside[name.removeprefix(prefix)] = tensor
        else:
            others.append(name)
    missing = [name for name in parameters if name not in inside and not _may_be_missing(name)]
    unknown: list[str] = []
    reshaped: list[str] = []
    for name, tensor in inside.items():
        if name not in parameters:
            unknown.append(name)
        elif tensor.shape != parameters[name].shape:
            reshaped.append(f"{name} {tuple(tensor.shape)}")
    problems = {
        "missing": missing,
        "not in the network": unknown,
        "of another shape": reshaped,
    }
    nonempty = {kind: names for kind, names in problems.items() if names}
    return Candidate(key, prefix, inside, others, nonempty)


def _may_be_missing(name: str) -> bool:
    """Return whether old checkpoints lack the entry `name`."""
    return name.endswith("num_batches_tracked")


def _choose(candidates: list[Candidate], path: Path, network: str) -> Candidate:
    """Return the candidate to load, and log the choice if there was one.

    Raises
    ------
    SqError : none fits, or several do and none is to be preferred
    """
    fitting = [candidate for candidate in candidates if not candidate.problems]
    if not fitting:
        raise _misfit(candidates, path, network)
    # Averages are better than the last weights; two kinds of averages are a choice of the user.
    averaged = [candidate for candidate in fitting if candidate.averaged]
    choices = averaged if len(averaged) == 1 else fitting
    if len(choices) > 1:
        labels = _shortened([candidate.label for candidate in choices])
        raise SqError(
            f"{path} holds several sets of weights that fit {network} ({labels}): save the one you "
            "mean alone"
        )
    chosen = choices[0]
    facts: list[str] = []
    if chosen.key or chosen.prefix:
        facts.append(f"weights are those {chosen.label}")
    if len(fitting) > 1:
        unused = [candidate.label for candidate in fitting if candidate is not chosen]
        facts.append(f"averages over training, not those {_shortened(unused)}")
    if chosen.others:
        facts.append(
            f"{quantity(chosen.others, 'other tensor')} left out ({_shortened(chosen.others)})"
        )
    if facts:
        say(f"{path}: {'; '.join(facts)}")
    return chosen


def _misfit(candidates: list[Candidate], path: Path, network: str) -> SqError:
    """Return the error if no candidate fits; it describes the one with the fewest problems."""
    # Prefixes that do not belong give many problems, the right one few.
    best = min(candidates, key=lambda candidate: candidate.problem_count)
    details = [
        f"{len(names)} {kind} ({_shortened(names)})" for kind, names in best.problems.items()
    ]
    where = "" if best.label == "at the top" else f", looked for {best.label}"
    return SqError(
        f"{path} holds weights of another network than {network}: {'; '.join(details)}{where}"
    )


def _shortened(names: list[str]) -> str:
    """Return the first of `names`, for a message."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _converted(tensor: Tensor, parameter: Tensor, what: str) -> Tensor:
    """Return `tensor` in a form that can be copied into the network's `parameter`.

    Raises
    ------
    SqError : it does not hold full-precision values; `what` begins the message
    """
    if tensor.is_meta:
        raise SqError(
            f"{what} has no values (it is on the device meta): save the network after its weights "
            "are loaded"
        )
    is_real = tensor.is_floating_point() or tensor.is_complex()
    if tensor.is_quantized or (parameter.is_floating_point() and not is_real):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise SqError(
            f"{what} is stored as {kind}, as in a network that is quantized already: give weights "
            "in full precision"
        )
    if tensor.is_complex() and not parameter.is_complex():
        raise SqError(
            f"{what} holds complex numbers, the network's are real: give the weights of this "
            "network"
        )
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.detach().to(parameter.dtype)
