"""No trials: only the bits that the allocation chose are measured."""

from __future__ import annotations

from typing import Any


def measure(trial: Any) -> dict[str, Any]:
    """Return nothing."""
    return {}
