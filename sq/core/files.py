"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from sq.errors import SqError


@contextlib.contextmanager
def temporary_beside(file: Path, suffix: str = ".part") -> Iterator[Path]:
    """Yield a path beside `file` that no other process uses; remove it at the end.

    Parameters
    ----------
    suffix : of the temporary file, for writers that choose a format by it
    """
    # A random name: processes in different containers can have the same process id.
    part = file.with_name(f".{file.stem}.{uuid.uuid4().hex}{suffix}")
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):  # the failure to write is the one to report
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(file: Path, suffix: str = ".part") -> Iterator[Path]:
    """Yield a temporary path that is renamed to `file` if the block succeeds.

    An earlier `file` stays as it was if the block fails; see `temporary_beside` for `suffix`.
    """
    with temporary_beside(file, suffix) as part:
        yield part
        part.replace(file)


def write_to_disk(file: Path, content: bytes) -> None:
    """Write `content` to `file` and wait for the disk: an error may show only then."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_text(file: Path, text: str, setting: str = "results") -> None:
    """Write `text` to `file`, whole or not at all; an earlier file survives a failure.

    Parameters
    ----------
    setting : that names the folder, for messages

    Raises
    ------
    SqError : the folder cannot be written, or the disk is full
    """
    write_bytes(file, text.encode(), setting)


def write_bytes(file: Path, content: bytes, setting: str = "results") -> None:
    """Write `content` to `file`, whole or not at all; see `write_text`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            write_to_disk(part, content)
    except OSError as error:
        raise SqError(
            f"cannot write {file}: {error.strerror}; free space or correct {setting}=, "
            "and run again"
        ) from error
