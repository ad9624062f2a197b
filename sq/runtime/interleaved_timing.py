"""Timing things against one another: in turns, so that what slows a machine down for a while slows all of them."""

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

    In every round each runs once, in an order drawn anew where there are more than two, of which
    the first was not the last of the round before: what runs twice in a row finds its memory as it
    left it, and is faster for it.

    Parameters
    ----------
    warmup : rounds that do not count, before the others
    what : is timed, for whoever watches
    """
    found = {name: np.empty(rounds) for name in entrants}
    draw, order = random.Random(0), list(entrants)
    collects = gc.isenabled()
    gc.disable()
    try:
        for number in track(range(-warmup, rounds), what):
            order = _shuffled(order, draw)
            for name in order:
                began = time.perf_counter_ns()
                entrants[name]()
                took = time.perf_counter_ns() - began
                if number >= 0:
                    found[name][number] = took / 1e6
    finally:
        if collects:
            gc.enable()
    return found


def _shuffled(order: list[str], draw: random.Random) -> list[str]:
    """Return `order` anew, without its last one first."""
    *others, _ = order
    if not others:
        return order
    first = draw.choice(others)
    rest = [name for name in order if name != first]
    return [first, *draw.sample(rest, len(rest))]


def spread(values: np.ndarray) -> dict[str, float]:
    """Return the median and both quartiles of `values`."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}
