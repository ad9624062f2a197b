"""Reading of weights into a network, with clear messages when they do not fit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq.config.data_paths import without_weights
from sq.core.progress import say
from sq.core.wording import quantity
from sq.errors import SqError
from sq.model import weights_file

NAMED = 3  # names in a message
MAX_DEPTH = 3  # of nested dictionaries that are searched for state dicts
# Prefixes of parameter names from torch.compile, FSDP and activation checkpointing, anywhere in
# them.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


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
    content = weights_file.read(path)
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
