"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from sq.errors import SqError


def write_text(file: Path, text: str, setting: str = "results") -> None:
    """Write `text` to `file`, whole or not at all; what was there survives a failure.

    Parameters
    ----------
    setting : that the folder comes from, for messages

    Raises
    ------
    SqError : the folder cannot be written, or the disk is full
    """
    write_bytes(file, text.encode(), setting)


def write_bytes(file: Path, content: bytes, setting: str = "results") -> None:
    """Write `content` to `file`; see `write_text`."""
    # process ids of containers are alike
    part = file.with_name(f".{file.stem}.{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        raise SqError(
            f"cannot write {file}: {error.strerror}; free space or correct {setting}=, and run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the failure to write is the one to tell
            part.unlink(missing_ok=True)
