"""Results on disk, for other runs: tensors and a note, in a file named by all that they follow from.

So an entry is never stale, and nothing has to be told apart by hand. Whatever goes wrong with the
folder costs time, never a run: what was wanted is made then, and a line says so.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sq.core import plugins
from sq.core.progress import say
from sq.errors import one_line
from sq.storage import eviction
from sq.types.problem import Model, digest

GIB = 2**30
PATIENCE = 5.0  # seconds to wait for another run before saying so

Tensors = dict[str, Tensor]
Note = dict[str, Any]  # what is known beside the tensors, as JSON holds it


@dataclass(frozen=True)
class Kind:
    """What entries of one kind hold, and what they are called in messages."""

    what: str  # "statistics"
    making: str  # "collecting them"
    names: Sequence[str]  # of the tensors, in their order
    # tells whether that is the note of such an entry; may raise
    fits: Callable[[Note], bool] = lambda note: True


@dataclass(frozen=True)
class Store:
    """A folder of entries.

    Parameters
    ----------
    folder : where entries are kept; None keeps none
    limit_gib : for all entries; the least recently used ones make room. One larger than this is not
    kept
    origin : the config that a network was loaded by; what its weights do not show (a setting of
    `forward`) is there
    """

    folder: str | None
    limit_gib: float
    origin: Any = None

    def kept(
        self, key: str, kind: Kind, make: Callable[[], tuple[Tensors, Note]], device: torch.device
    ) -> tuple[Tensors, Note, bool]:
        """Return what `make` returns, from the entry `key` if there is one, and whether there was.

        Of several runs that want the same entry at the same time, one makes it and the others wait.

        Parameters
        ----------
        key : see `name`
        make : returns tensors with the names of `kind`, in that order, and a note
        device : where tensors that were kept are put
        """
        if self.folder is None:
            return *make(), False
        file = Path(self.folder) / f"{key}.safetensors"
        with _alone(file, kind):
            if (found := _read(file, kind, device)) is not None:
                return *found, True
            made = make()
            _write(file, kind, made, int(self.limit_gib * GIB))
        return *made, False


NOWHERE = Store(None, 1.0)  # keeps nothing


def name(parts: Iterable[str]) -> str:
    """Return the name of an entry: a hash of `parts`, all that it follows from."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def describe(model: Model) -> tuple[list[str], list[str]]:
    """Return all that the outputs of a network depend on, to the last bit: its code, and what it is made of."""
    # some buffers are not part of the state
    state = model.net.state_dict() | dict(model.net.named_buffers())
    kinds = sorted({source(type(module)) for module in model.net.modules()})  # type: ignore[arg-type] # hashable
    code = [*kinds, repr(model.net), repr([module.training for module in model.net.modules()])]
    return code, [repr([*state]), digest(state.values())]


def place(device: torch.device) -> str:
    """Return what rounding depends on."""
    return f"{device.type} {torch.__version__} {torch.get_num_threads()}"


# what was read first is what runs: an edit must not name what the old code computes
@functools.cache
def source(kind: type | Callable[..., Any]) -> str:
    """Return the code of the file a class or function is in; "" where none can be read, or torch's version tells it.

    Of a plugin, whose other files may be part of it, a hash of all its code.
    """
    if kind.__module__.startswith("torch."):
        return ""
    if package := plugins.package_of(f"{kind.__module__}."):
        return f"{kind.__module__}.{kind.__qualname__} of {plugins.digest(package)}"
    try:
        return inspect.getsource(inspect.getmodule(kind) or kind)
    except (OSError, TypeError):
        return ""


@contextmanager
def _alone(file: Path, kind: Kind) -> Iterator[None]:
    """Keep other runs from the entry `file` meanwhile; without a lock if the folder cannot have one."""
    from filelock import FileLock, Timeout

    # One of 256 locks, so that they do not pile up as entries come and go.
    lock = FileLock(file.parent / f"{file.name[:2]}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
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
    """Return the entry `file`; None if there is none, or none that is whole, which is said."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    with suppress(OSError):  # whoever may only read cannot say when
        os.utime(file)  # used just now; said first, so that no other run removes it meanwhile
    try:
        with safe_open(file, "pt") as entry:
            note = json.loads(entry.metadata()["sq"])
        found = {own: _tensor(file, own, device) for own in kind.names}
        if digest(found.values()) != note.pop("digest") or not kind.fits(note):
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
        if not file.exists():  # another run has just made room: torch says so by a RuntimeError
            return None
        say(f"{kind.what}: {file} cannot be used ({one_line(error)}); {kind.making} again")
        return None
    return found, note


def _tensor(file: Path, own: str, device: torch.device) -> Tensor:
    """Return one tensor of `file`, in memory of its own.

    The library's is mapped to the file: were that cut, or removed on a network drive, using it
    would end the process. Opening the file for each tensor lets go of its pages, so no more than
    one is held twice.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as entry:
        return entry.get_tensor(own).to(device, copy=True)


def _write(file: Path, kind: Kind, made: tuple[Tensors, Note], limit: int) -> None:
    """Write an entry, whole or not at all, unless it is larger than `limit` bytes, and make room for it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors, note = made
    if sum(own.numel() * own.element_size() for own in tensors.values()) > limit:
        return
    about = json.dumps(note | {"digest": digest(tensors[own] for own in kind.names)})
    part = file.with_name(f".{file.stem}.{os.getpid()}.part")
    try:
        save_file(
            {own: tensor.contiguous() for own, tensor in tensors.items()}, part, {"sq": about}
        )
        if part.stat().st_size > limit:  # by its header
            return
        part.replace(file)
    except (OSError, SafetensorError) as error:
        say(
            f"{kind.what}: cannot be kept in {file.parent} ({one_line(error)}); the run goes on without"
        )
    else:
        eviction.make(file.parent, file, kind.what, limit)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
