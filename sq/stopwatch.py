"""Timing things against one another: in turns, so that what slows a machine down for a while slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np

from sq.console import track


def race(entrants: Mapping[str, Callable[[], object]], rounds: int, warmup: int, what: str) -> dict[str, np.ndarray]:
    """Return the milliseconds (rounds,) that each entrant took in each round.

    In every round each runs once; every other round goes through them backwards, so that none always comes after the
    same one.

    Parameters
    ----------
    warmup : rounds that do not count, before the others
    what : is timed, for whoever watches
    """
    found = {name: np.empty(rounds) for name in entrants}
    order = list(entrants)
    collects = gc.isenabled()
    gc.disable()
    try:
        for number in track(range(-warmup, rounds), what):
            for name in order if number % 2 == 0 else reversed(order):
                began = time.perf_counter_ns()
                entrants[name]()
                took = time.perf_counter_ns() - began
                if number >= 0:
                    found[name][number] = took / 1e6
    finally:
        if collects:
            gc.enable()
    return found


def spread(values: np.ndarray) -> dict[str, float]:
    """Return the median and both quartiles of `values`."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}
