"""Where data and foreign weights lie: configs name them as on any machine, $SQ_DATA says where they are on this one.

A path of one machine in a config would give the same run another key, and a stranger's folders to
the record.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from sq.errors import SqError

_alone: ContextVar[bool] = ContextVar("architecture alone", default=False)


@contextmanager
def architecture_alone() -> Iterator[None]:
    """Let networks be built without their checkpoints, which need not be there, while the context lasts."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def without_weights() -> bool:
    """Tell whether networks are built without their checkpoints now."""
    return _alone.get()


def find(path: str, setting: str) -> Path:
    """Return where `path` lies: absolute or there in the working directory, it is taken as it is, else in $SQ_DATA.

    Parameters
    ----------
    path : a file or folder
    setting : that it comes from, for messages

    Raises
    ------
    SqError : it is in none of these places
    """
    if without_weights():
        return Path(path)
    given = Path(path).expanduser()
    if given.exists():
        return given
    if given.is_absolute():
        raise SqError(f"{setting}={path}: there is no such file or folder: correct {setting}")
    if not (base := os.environ.get("SQ_DATA")):
        raise SqError(
            f"{setting}={path}: not in the working directory, and SQ_DATA is not set: "
            f"set SQ_DATA to the folder that holds weights/, cifar10/, imagenet/ and coco/, or give {setting}"
        )
    found = Path(base).expanduser() / given
    if not found.exists():
        raise SqError(
            f"{setting}={path}: neither in the working directory nor in SQ_DATA={base}: "
            f"set SQ_DATA to the folder that holds weights/, cifar10/, imagenet/ and coco/, or correct {setting}"
        )
    return found
