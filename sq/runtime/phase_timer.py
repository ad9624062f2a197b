"""Seconds by phase, and peak memory, of one run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its queued work, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Seconds spent in each phase, in the order the phases began."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to phase `name`."""
        synchronize(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def peak_bytes(self) -> dict[str, int]:
        """Return peak memory: of the process, and of the device since the clock was created."""
        unit = 1 if sys.platform == "darwin" else 1024  # bytes: Linux reports KiB
        peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
        if self.device.type == "cuda":
            peak["device"] = torch.cuda.max_memory_allocated(self.device)
        return peak
