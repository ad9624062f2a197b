"""Find data and weights: configs name them by relative paths, which $SQ_DATA resolves.

An absolute path in a config would give the same run another key on each machine, and put a user's
folders into the record.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from sq.errors import SqError

_architecture_alone: ContextVar[bool] = ContextVar("architecture alone", default=False)
CONTENT = "weights/, cifar10/, imagenet/ and coco/"  # of the folder SQ_DATA


@contextmanager
def architecture_alone() -> Iterator[None]:
    """Let networks be built without their checkpoints, which need not exist, for the block."""
    token = _architecture_alone.set(True)
    try:
        yield
    finally:
        _architecture_alone.reset(token)


def without_weights() -> bool:
    """Tell whether networks are now built without their checkpoints."""
    return _architecture_alone.get()


def find(path: str, setting: str) -> Path:
    """Return `path` if it exists, from the working directory, else the path in $SQ_DATA.

    Parameters
    ----------
    path : of a file or folder
    setting : that has the path, for messages

    Raises
    ------
    SqError : it is in neither place
    """
    if without_weights():
        return Path(path)
    local = Path(path).expanduser()
    if local.exists():
        return local
    if local.is_absolute():
        raise SqError(f"{setting}={path}: there is no such file or folder: correct {setting}")
    base = os.environ.get("SQ_DATA")
    if not base:
        raise SqError(
            f"{setting}={path}: not in the working directory, and SQ_DATA is not set: "
            f"set SQ_DATA to the folder that holds {CONTENT}, or give {setting}"
        )
    shared = Path(base).expanduser() / local
    if not shared.exists():
        raise SqError(
            f"{setting}={path}: neither in the working directory nor in SQ_DATA={base}: "
            f"set SQ_DATA to the folder that holds {CONTENT}, or correct {setting}"
        )
    return shared
