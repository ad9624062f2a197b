"""Statistics on disk: a sweep over methods and bits collects them once.

An entry is named by everything that shapes it: weights, architecture, images, settings, the code that
collects. So it is never stale, and nothing has to be told apart by hand. Whatever goes wrong with the folder
costs time, never a run: statistics are collected then, and a line says so.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sq import gram, images, layers, statistics
from sq.console import say
from sq.errors import one_line
from sq.samples import Batch
from sq.types import LayerStatistics, Model, Statistics, digest

GIB = 2**30
PATIENCE = 5.0  # seconds to wait for another run before saying so
ABANDONED = 3600.0  # seconds after which a file half written belongs to a run that was killed
# Read along with the code itself: an edit while a sweep runs must not name what the old code computes.
CODE = [inspect.getsource(module) for module in (statistics, images, gram, layers)]


def collect(
    model: Model, batch: Batch, *, folder: str | None, limit_gib: float, origin: Any, **settings: Any
) -> tuple[Statistics, bool]:
    """Return the statistics of `statistics.collect(model, batch, **settings)`, and whether `folder` had them.

    Of several runs that want the same ones at the same time, one collects and the others wait.

    Parameters
    ----------
    folder : where entries are kept; None keeps none
    limit_gib : for all entries; the least recently used ones make room. One larger than this is not kept
    origin : the config that `model` was loaded by; what its weights do not show (a setting of `forward`) is there
    """
    if folder is None:
        return statistics.collect(model, batch, **settings), False
    file = Path(folder) / f"{key(model, batch, settings, origin)}.safetensors"
    with _alone(file):
        if (found := _read(file, model)) is not None:
            return found, True
        found = statistics.collect(model, batch, **settings)
        _write(file, found, int(limit_gib * GIB))
    return found, False


def key(model: Model, batch: Batch, settings: dict[str, Any], origin: Any) -> str:
    """Return the name of an entry: a hash of all that statistics depend on, to the last bit."""
    state = model.net.state_dict() | dict(model.net.named_buffers())  # some buffers are not part of the state
    if settings["positions"] == 1:
        settings = settings | {"seed": None}  # nothing is drawn
    parts = [
        *CODE,
        *sorted({_source(type(module)) for module in model.net.modules()}),  # type: ignore[arg-type] # hashable
        repr(model.net),
        repr([module.training for module in model.net.modules()]),
        repr([(layer.name, layer.groups, layer.outputs, layer.inputs) for layer in model.layers]),
        repr([*state]),
        digest(state.values()),
        digest([batch.x]),
        json.dumps([settings, origin], sort_keys=True),
        f"{batch.x.device.type} {torch.__version__} {torch.get_num_threads()}",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@functools.cache  # as `CODE`: what was read first is what runs
def _source(kind: type) -> str:
    """Return the code of a module's class, "" where there is none to read; torch's own goes by its version."""
    if kind.__module__.startswith("torch."):
        return ""
    try:
        return inspect.getsource(inspect.getmodule(kind) or kind)
    except (OSError, TypeError):
        return ""


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other runs from the entry `file` meanwhile; without a lock if the folder cannot have one."""
    from filelock import FileLock, Timeout

    # One of 256 locks, so that they do not pile up as entries come and go.
    lock = FileLock(file.parent / f"{file.name[:2]}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            say(f"statistics: another run is at work in {file.parent}; waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        say(f"statistics: no lock in {file.parent} ({one_line(error)}); going on without")
    try:
        yield
    finally:
        lock.release()


def _read(file: Path, model: Model) -> Statistics | None:
    """Return the entry `file`; None if there is none, or none that is whole, which is said."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    device = next(model.net.parameters()).device
    with suppress(OSError):  # whoever may only read cannot say when
        os.utime(file)  # used just now; said first, so that no other run removes it meanwhile
    try:
        with safe_open(file, "pt") as entry:
            about = json.loads(entry.metadata()["sq"])
        own = {name: LayerStatistics(_tensor(file, name, device), n) for name, n in about["positions"].items()}
        found = Statistics(own, about["images"])
        if found.digest() != about["digest"] or [*found.layers] != [layer.name for layer in model.layers]:
            raise ValueError("its content is not what was written")
    except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        if not file.exists():  # another run has just made room: torch says so by a RuntimeError
            return None
        say(f"statistics: {file} cannot be used ({one_line(error)}); collecting them again")
        return None
    return found


def _tensor(file: Path, name: str, device: torch.device) -> Tensor:
    """Return one tensor of `file`, in memory of its own.

    The library's is mapped to the file: were that cut, or removed on a network drive, using it would end the
    process. Opening the file for each tensor lets go of its pages, so no more than one is held twice.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as entry:
        return entry.get_tensor(name).to(device, copy=True)


def _write(file: Path, found: Statistics, limit: int) -> None:
    """Write an entry, whole or not at all, unless it is larger than `limit` bytes, and make room for it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    size = sum(own.hessian.numel() * own.hessian.element_size() for own in found.layers.values())
    if size > limit:
        return
    positions = {name: own.positions for name, own in found.layers.items()}
    about = {"images": found.images, "positions": positions, "digest": found.digest()}
    part = file.with_name(f".{file.stem}.{os.getpid()}.part")
    try:
        save_file({n: s.hessian.contiguous() for n, s in found.layers.items()}, part, {"sq": json.dumps(about)})
        if part.stat().st_size > limit:  # by its header
            return
        part.replace(file)
    except (OSError, SafetensorError) as error:
        say(f"statistics: cannot be kept in {file.parent} ({one_line(error)}); the run goes on without")
    else:
        _make_room(file, limit)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _make_room(newest: Path, limit: int) -> None:
    """Remove what killed runs left, and the least recently used entries beyond `limit` bytes with `newest`."""
    try:
        for used, _, left in _files(newest.parent, ".*.part"):
            if time.time() - used > ABANDONED:
                left.unlink(missing_ok=True)
        total = 0
        found = _files(newest.parent, "*.safetensors")
        for _, size, entry in sorted(found, key=lambda f: (f[2] == newest, f[0]), reverse=True):
            total += size
            if total > limit:
                entry.unlink(missing_ok=True)
    except OSError as error:
        say(f"statistics: cannot make room in {newest.parent} ({one_line(error)}); it may exceed cache_gib")


def _files(folder: Path, pattern: str) -> list[tuple[float, int, Path]]:
    """Return time of use, bytes and path of files; other runs may be removing some of them meanwhile."""
    found = []
    for file in folder.glob(pattern):
        with suppress(FileNotFoundError):
            now = file.stat()
            found.append((now.st_mtime, now.st_size, file))
    return found
