"""No latency: nothing is timed."""

from __future__ import annotations

from typing import Any

from sq.export.finished_run import FinishedRun


def measure(run: FinishedRun) -> dict[str, Any]:
    """Time nothing."""
    return {}
