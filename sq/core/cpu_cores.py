"""The number of CPU cores that this process may use, which can be fewer than the machine has."""

from __future__ import annotations

import os


def own() -> int:
    """Return how many cores this process has, by its CPU affinity and by SLURM."""
    return _limited(_by_affinity(), "SLURM_CPUS_PER_TASK")


def available() -> int:
    """Return how many of them computations may use: OMP_NUM_THREADS can allow fewer."""
    return _limited(own(), "OMP_NUM_THREADS")


def _by_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limited(cores: int, variable: str) -> int:
    """Return `cores`, but at most the number in an environment variable, and at least one."""
    limit = os.environ.get(variable, "")
    if not limit.isdigit():
        return cores
    return max(1, min(cores, int(limit)))
