"""A folder of results that later runs reuse: tensors and a note, named by a hash of all inputs.

An entry is never stale, because its name changes with anything it depends on. A problem with the
folder never fails a run: the result is computed again, and one line says so.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sq.core import files, plugins
from sq.core.progress import say
from sq.errors import one_line
from sq.types.problem import Model, digest

GIB = 2**30
LOCK_WAIT = 5.0  # seconds to wait for another run before a message says so
UNFINISHED = "unfinished"  # the subfolder for states of unfinished work, see `sq.storage.resume`
ABANDONED = 3600.0  # seconds after which a temporary file counts as left by a killed run
PACKAGE = Path(__file__).resolve().parents[1]

Tensors = dict[str, Tensor]
Note = dict[str, Any]  # what is stored beside the tensors, as JSON


@dataclass(frozen=True)
class Kind:
    """What entries of one kind hold, and what messages call them."""

    what: str  # "statistics"
    making: str  # "collecting them"
    names: Sequence[str]  # of the tensors, in their order
    # whether a note is one of this kind; may raise
    fits: Callable[[Note], bool] = lambda note: True


@dataclass(frozen=True)
class Store:
    """A folder of entries.

    Parameters
    ----------
    folder : where entries are stored; None stores none
    limit_gib : for all entries together. The least recently used ones are removed first; an entry
        that is larger is not stored
    origin : the config that a network was loaded by. It holds what the weights do not show, such as
        a setting of `forward`
    """

    folder: str | None
    limit_gib: float
    origin: Any = None

    def get_or_compute(
        self,
        key: str,
        kind: Kind,
        compute: Callable[[], tuple[Tensors, Note]],
        device: torch.device,
    ) -> tuple[Tensors, Note, bool]:
        """Return tensors and note of the entry `key`, and whether it was stored already.

        If several runs ask for a missing entry at once, one computes it and the others wait.

        Parameters
        ----------
        key : see `name`
        compute : returns tensors with the names of `kind`, in that order, and a note
        device : of the returned tensors if they were stored
        """
        if self.folder is None:
            tensors, note = compute()
            return tensors, note, False
        file = Path(self.folder) / f"{key}.safetensors"
        with _locked(file, kind):
            entry = _read(file, kind, device)
            if entry is not None:
                return *entry, True
            tensors, note = compute()
            _write(file, kind, tensors, note, int(self.limit_gib * GIB))
        return tensors, note, False


NOWHERE = Store(None, 1.0)  # stores nothing


def name(parts: Iterable[str]) -> str:
    """Return the name of an entry: a hash of `parts`, all that it depends on."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def describe(model: Model) -> tuple[list[str], list[str]]:
    """Return all that the outputs of a network depend on, to the last bit: code, and tensors."""
    # some buffers are not part of the state
    tensors = model.net.state_dict() | dict(model.net.named_buffers())
    modules = list(model.net.modules())
    sources = sorted({source(type(module)) for module in modules})  # type: ignore[arg-type] # hashable
    code = [*sources, repr(model.net), repr([module.training for module in modules])]
    return code, [repr([*tensors]), digest(tensors.values())]


def rounding(device: torch.device) -> str:
    """Return what the rounding of sums depends on: device, version of PyTorch, threads."""
    return f"{device.type} {torch.__version__} {torch.get_num_threads()}"


# Cached: the process runs the code that it read first, so a later edit must not change the hash.
@functools.cache
def source(kind: type | Callable[..., Any]) -> str:
    """Return the source code of the file that holds a class or function.

    It is "" where no source can be read, and for PyTorch's own, which its version identifies. For a
    plugin it is a hash of all its code, since its other files may be part of it.
    """
    if kind.__module__.startswith("torch."):
        return ""
    package = plugins.package_of(f"{kind.__module__}.")
    if package:
        return f"{kind.__module__}.{kind.__qualname__} of {plugins.digest(package)}"
    try:
        return inspect.getsource(inspect.getmodule(kind) or kind)
    except (OSError, TypeError):
        return ""


def code_hash() -> str:
    """Return a hash of every Python file of sq and of the allowed plugins, as 16 hex digits."""
    packages = sorted(plugins.allowed())
    if not packages:
        return _package_hash()
    parts = [_package_hash(), *((package, plugins.digest(package)) for package in packages)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@functools.cache  # as for `source`
def _package_hash() -> str:
    sha = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        sha.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return sha.hexdigest()[:16]


@contextmanager
def _locked(file: Path, kind: Kind) -> Iterator[None]:
    """Keep other runs from the entry `file` for the block; go on unlocked if locks do not work."""
    from filelock import FileLock, Timeout

    # One of 256 lock files, so that they do not pile up as entries come and go.
    lock = FileLock(file.parent / f"{file.name[:2]}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LOCK_WAIT)
        except Timeout:
            say(f"{kind.what}: another run is at work in {file.parent}; waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        say(f"{kind.what}: no lock in {file.parent} ({one_line(error)}); going on without")
    try:
        yield
    finally:
        lock.release()


def _read(file: Path, kind: Kind, device: torch.device) -> tuple[Tensors, Note] | None:
    """Return the entry `file`; None, with a message if it is damaged, where there is none."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    # Marked as used before it is read, so that no other run evicts it meanwhile.
    with suppress(OSError):  # the file may be read-only
        os.utime(file)
    try:
        with safe_open(file, "pt") as entry:
            note = json.loads(entry.metadata()["sq"])
        tensors = {tensor: _read_tensor(file, tensor, device) for tensor in kind.names}
        if digest(tensors.values()) != note.pop("digest") or not kind.fits(note):
            raise ValueError("its content is not what was written")
    except (
        OSError,
        RuntimeError,
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        if not file.exists():  # another run has just evicted it: torch raises a RuntimeError
            return None
        say(f"{kind.what}: {file} cannot be used ({one_line(error)}); {kind.making} again")
        return None
    return tensors, note


def _read_tensor(file: Path, name: str, device: torch.device) -> Tensor:
    """Return a copy of one tensor of `file`.

    The library's own tensor is mapped to the file: if that were cut, or removed on a network drive,
    using it would end the process. Opening the file for each tensor frees its pages, so that at
    most one tensor is in memory twice.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as entry:
        return entry.get_tensor(name).to(device, copy=True)


def _write(file: Path, kind: Kind, tensors: Tensors, note: Note, limit: int) -> None:
    """Write an entry, unless it exceeds `limit` bytes, and evict others to make room for it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > limit:
        return
    tensors_digest = digest(tensors[tensor] for tensor in kind.names)
    metadata = {"sq": json.dumps(note | {"digest": tensors_digest})}
    contiguous = {tensor: value.contiguous() for tensor, value in tensors.items()}
    try:
        with files.temporary_beside(file) as part:
            save_file(contiguous, part, metadata)
            if part.stat().st_size > limit:  # with its header
                return
            part.replace(file)
    except (OSError, SafetensorError) as error:
        say(
            f"{kind.what}: cannot be stored in {file.parent} ({one_line(error)}); "
            "the run goes on without"
        )
    else:
        evict(file.parent, file, kind.what, limit)


def evict(folder: Path, newest: Path, what: str, limit: int) -> None:
    """Remove what killed runs left, and the least recently used files until `limit` bytes are left.

    Parameters
    ----------
    folder : of entries; states of unfinished work, in its subfolder, count as well
    newest : the file that was just written, the last to be removed
    what : `newest` is, for messages
    """
    try:
        for used, _, part in _files(folder, ".*.part"):
            if time.time() - used > ABANDONED:
                part.unlink(missing_ok=True)
        entries = _files(folder, "*.safetensors")
        # the newest first, then by time of use
        entries.sort(key=lambda entry: (entry[2] == newest, entry[0]), reverse=True)
        total = 0
        for _, size, entry in entries:
            total += size
            if total > limit:
                entry.unlink(missing_ok=True)
    except OSError as error:
        say(f"{what}: cannot make room in {folder} ({one_line(error)}); it may exceed cache_gib")


def _files(folder: Path, pattern: str) -> list[tuple[float, int, Path]]:
    """Return time of use, bytes and path of the files that match `pattern`."""
    matches = []
    for file in [*folder.glob(pattern), *(folder / UNFINISHED).glob(pattern)]:
        with suppress(FileNotFoundError):  # another run has just removed it
            stat = file.stat()
            matches.append((stat.st_mtime, stat.st_size, file))
    return matches
