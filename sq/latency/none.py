"""No latency: nothing is timed."""

from __future__ import annotations

from typing import Any

from sq.export.finished_run import Finished


def measure(run: Finished) -> dict[str, Any]:
    """Time nothing."""
    return {}
