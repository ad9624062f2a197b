"""No export: the record is all that a run leaves."""

from __future__ import annotations

from typing import Any

from sq.export.finished_run import Finished


def write(done: Finished) -> dict[str, Any]:
    """Write nothing."""
    return {}
