"""The code of sq itself, as a hash: what is kept between runs must not outlive the code that computed it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@functools.cache  # what was read first is what runs
def digest() -> str:
    """Return a hash of every Python file of the package, as 16 hex digits."""
    sha = hashlib.sha256()
    for file in sorted(FOLDER.rglob("*.py")):
        sha.update(f"{file.relative_to(FOLDER)}\0".encode() + file.read_bytes())
    return sha.hexdigest()[:16]
