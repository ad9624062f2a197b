"""Rank correlation with its interval: whether an order that was predicted holds when it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000  # of the bootstrap; its own error is then a fiftieth of the interval
LEVEL = 95.0  # % of resamples inside


def correlation(
    predicted: Sequence[float], measured: Sequence[float], seed: int
) -> dict[str, float]:
    """Return Spearman's rho and Kendall's tau-b of two lists, each with its 95 % interval.

    Intervals are percentiles of a bootstrap over the pairs. Equal values share their mean rank. A
    list without two different values has no order: nothing is returned then.

    Parameters
    ----------
    predicted, measured : of one length, 3 or more
    seed : of the resamples
    """
    x, y = (np.asarray(values, dtype=float) for values in (predicted, measured))
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return {}
    found: dict[str, float] = {}
    draws = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    for name, of in (("spearman", spearman), ("kendall", kendall)):
        found |= _with_interval(name, of, x, y, draws)
    return found


def _with_interval(
    name: str,
    of: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    draws: np.ndarray,
) -> dict[str, float]:
    again = np.array([of(x[own], y[own]) for own in draws])
    low, high = np.nanpercentile(again, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return {name: of(x, y), f"{name}_low": float(low), f"{name}_high": float(high)}


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of ranks, NaN where either list is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Return tau-b: concordant less discordant pairs, over the pairs without a tie; NaN where either is constant."""
    pairs = np.triu_indices(len(x), 1)
    a, b = (np.sign(values[pairs[0]] - values[pairs[1]]) for values in (x, y))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")
