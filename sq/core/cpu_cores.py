"""How many CPU cores are this process's own: those of its share, not of the machine."""

from __future__ import annotations

import os


def own() -> int:
    """Return how many cores are this process's, by its affinity and by SLURM."""
    found = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return _least(found, "SLURM_CPUS_PER_TASK")


def available() -> int:
    """Return how many of them its computations may use: OMP_NUM_THREADS, if that is set, may be less than all."""
    return _least(own(), "OMP_NUM_THREADS")


def _least(number: int, variable: str) -> int:
    told = os.environ.get(variable, "")
    return max(1, min(number, int(told))) if told.isdigit() else number
