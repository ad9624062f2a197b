"""No export: a run leaves only its record."""

from __future__ import annotations

from typing import Any

from sq.export.finished_run import FinishedRun


def write(run: FinishedRun) -> dict[str, Any]:
    """Write nothing."""
    return {}
