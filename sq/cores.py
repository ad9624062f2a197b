"""How many CPU cores are this process's own: those of its share, not of the machine."""

from __future__ import annotations

import os


def available() -> int:
    """Return how many cores this process may use: by its affinity, by SLURM, and by OMP_NUM_THREADS if that is set."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = [os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")]
    return max(1, min([own, *(int(number) for number in told if number.isdigit())]))
