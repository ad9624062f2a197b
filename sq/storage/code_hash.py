"""The code of sq and its plugins, as a hash: what is kept between runs must not outlive the code that computed it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from sq.core import plugins

FOLDER = Path(__file__).resolve().parents[1]


def digest() -> str:
    """Return a hash of every Python file of the package, and of the plugins that are allowed, as 16 hex digits."""
    packages = sorted(plugins.allowed())
    if not packages:
        return _own()
    return hashlib.sha256(
        repr([_own(), *((p, plugins.digest(p)) for p in packages)]).encode()
    ).hexdigest()[:16]


@functools.cache  # what was read first is what runs
def _own() -> str:
    sha = hashlib.sha256()
    for file in sorted(FOLDER.rglob("*.py")):
        sha.update(f"{file.relative_to(FOLDER)}\0".encode() + file.read_bytes())
    return sha.hexdigest()[:16]
