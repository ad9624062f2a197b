"""Tune glibc's malloc to reuse freed blocks instead of returning them to the system.

By default glibc maps each large block from the system and unmaps it when it is freed. A forward
pass frees and allocates gigabytes in blocks of a few megabytes, and the system clears each page
again. For 25 images of EfficientNet-Lite0 that is 160,000 page faults and a third of the time of a
pass (0.57 s with, 0.37 s without), and more beside other processes that do the same.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of mallopt(3)


def keep() -> bool:
    """Let malloc reuse freed memory in this process from now on; return whether it can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    accepted = [
        mallopt(M_MMAP_MAX, 0),  # no block is mapped on its own
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1),  # bytes: the heap is practically never trimmed
        mallopt(M_TOP_PAD, 2**26),  # bytes: the heap grows in steps of 64 MiB
    ]
    return all(accepted)
