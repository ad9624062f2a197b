"""Statistics on disk: a sweep over methods and bits collects them once.

An entry is named by everything that shapes it: weights, architecture, images, settings, the code that
collects. So it is never stale, and nothing has to be told apart by hand. Whatever goes wrong with the folder
costs time, never a run: statistics are collected then, and a line says so.
"""

from __future__ import annotations

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

from sq import gram, layers, statistics
from sq.console import say
from sq.errors import one_line
from sq.types import LayerStatistics, Model, Split, Statistics, digest

GIB = 2**30
PATIENCE = 5.0  # seconds to wait for another run before saying so
ABANDONED = 3600.0  # seconds after which a file half written belongs to a run that was killed


def collect(
    model: Model, batch: Split, *, folder: str | None, limit_gib: float, origin: Any, **settings: Any
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


def key(model: Model, batch: Split, settings: dict[str, Any], origin: Any) -> str:
    """Return the name of an entry: a hash of all that statistics depend on, to the last bit."""
    state = model.net.state_dict() | dict(model.net.named_buffers())  # some buffers are not part of the state
    if settings["positions"] == 1:
        settings = settings | {"seed": None}  # nothing is drawn
    parts = [
        *(inspect.getsource(module) for module in (statistics, gram, layers)),
        *sorted({_source(type(module)) for module in model.net.modules()}),
        repr(model.net),
        repr([(layer.name, layer.groups, layer.outputs, layer.inputs) for layer in model.layers]),
        repr([*state]),
        digest(state.values()),
        digest([batch.x]),
        json.dumps([settings, origin], sort_keys=True),
        f"{batch.x.device.type} {torch.__version__} {torch.get_num_threads()}",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


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
    try:
        with safe_open(file, "pt", device=str(next(model.net.parameters()).device)) as entry:
            about = json.loads(entry.metadata()["sq"])
            found = Statistics(
                {name: LayerStatistics(entry.get_tensor(name), count) for name, count in about["positions"].items()},
                about["images"],
            )
        if found.digest() != about["digest"] or [*found.layers] != [layer.name for layer in model.layers]:
            raise ValueError("its content is not what was written")
        os.utime(file)  # used just now
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        say(f"statistics: {file} cannot be used ({one_line(error)}); collecting them again")
        return None
    return found


def _write(file: Path, found: Statistics, limit: int) -> None:
    """Write an entry, whole or not at all, and remove the least recently used ones beyond `limit` bytes."""
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
        part.replace(file)
        for left in file.parent.glob(".*.part"):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink(missing_ok=True)
        others = [(e.stat().st_mtime_ns, e.stat().st_size, e) for e in file.parent.glob("*.safetensors") if e != file]
        total = file.stat().st_size
        for _, own, entry in sorted(others, reverse=True):
            total += own
            if total > limit:
                entry.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        say(f"statistics: cannot be kept in {file.parent} ({one_line(error)}); the run goes on without")
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
