"""Compare the run times of functions, interleaved so that a slow phase of the machine hits all."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping

import numpy as np

from sq.core.progress import track


def race(
    entrants: Mapping[str, Callable[[], object]], rounds: int, warmup: int, what: str
) -> dict[str, np.ndarray]:
    """Return the milliseconds (rounds,) that each entrant took in each round.

    Each entrant runs once a round. The order of a round is random, but its first entrant is never
    the last one of the round before: an entrant that runs twice in a row finds its data in the
    cache and is faster.

    Parameters
    ----------
    warmup : rounds before the timed ones
    what : the label of the progress bar
    """
    milliseconds = {name: np.empty(rounds) for name in entrants}
    draw, order = random.Random(0), list(entrants)
    gc_was_enabled = gc.isenabled()
    gc.disable()
    try:
        for number in track(range(-warmup, rounds), what):
            order = _shuffled(order, draw)
            for name in order:
                start = time.perf_counter_ns()
                entrants[name]()
                nanoseconds = time.perf_counter_ns() - start
                if number >= 0:  # not a warm-up round
                    milliseconds[name][number] = nanoseconds / 1e6
    finally:
        if gc_was_enabled:
            gc.enable()
    return milliseconds


def _shuffled(order: list[str], draw: random.Random) -> list[str]:
    """Return `order` shuffled, with another entrant than its last one first."""
    *candidates, _ = order
    if not candidates:
        return order
    first = draw.choice(candidates)
    rest = [name for name in order if name != first]
    return [first, *draw.sample(rest, len(rest))]


def spread(values: np.ndarray) -> dict[str, float]:
    """Return the median and both quartiles of `values`."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}
