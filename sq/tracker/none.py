"""No tracker: runs leave their records only."""

from collections.abc import Callable
from typing import Any


class Tracker:
    """Tracks nothing."""

    def close(self, record: dict[str, Any]) -> None:
        """Do nothing."""


def open(record: dict[str, Any]) -> Tracker:
    """Return a tracker that tracks nothing."""
    return Tracker()


def summarise(draw: Callable[[], Any]) -> None:
    """Do nothing; the page of the experiment is not drawn."""
