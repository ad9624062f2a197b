"""Room in a folder of entries and unfinished states: what was used least recently gives way."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from sq.core.progress import say
from sq.errors import one_line

UNFINISHED = "unfinished"  # the folder in it where states of long work are
ABANDONED = 3600.0  # seconds after which a file half written belongs to a run that was killed


def make(folder: Path, newest: Path, what: str, limit: int) -> None:
    """Remove what killed runs left, and the least recently used files beyond `limit` bytes with `newest`.

    Parameters
    ----------
    folder : of entries; states of unfinished work, below it, count as well
    what : `newest` is, for messages
    """
    try:
        for used, _, left in _files(folder, ".*.part"):
            if time.time() - used > ABANDONED:
                left.unlink(missing_ok=True)
        total = 0
        found = _files(folder, "*.safetensors")
        for _, size, entry in sorted(found, key=lambda f: (f[2] == newest, f[0]), reverse=True):
            total += size
            if total > limit:
                entry.unlink(missing_ok=True)
    except OSError as error:
        say(f"{what}: cannot make room in {folder} ({one_line(error)}); it may exceed cache_gib")


def _files(folder: Path, pattern: str) -> list[tuple[float, int, Path]]:
    """Return time of use, bytes and path of files; other runs may be removing some of them meanwhile."""
    found = []
    for file in [*folder.glob(pattern), *(folder / UNFINISHED).glob(pattern)]:
        with suppress(FileNotFoundError):
            now = file.stat()
            found.append((now.st_mtime, now.st_size, file))
    return found
