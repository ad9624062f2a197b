"""Rank correlations of predicted and measured values, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000  # of the bootstrap; its own error is about a fiftieth of the interval then
LEVEL = 95.0  # % of resamples within the interval


def correlation(
    predicted: Sequence[float], measured: Sequence[float], seed: int
) -> dict[str, float]:
    """Return Spearman's rho and Kendall's tau-b of two lists, each with its 95 % interval.

    Intervals are percentiles of a bootstrap over the pairs. Equal values share their mean rank. A
    list without two different values has no order: then the result is empty.

    Parameters
    ----------
    predicted, measured : of one length, 3 or more
    seed : of the resamples
    """
    x = np.asarray(predicted, dtype=float)
    y = np.asarray(measured, dtype=float)
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return {}
    draws = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    result: dict[str, float] = {}
    for name, statistic in (("spearman", spearman), ("kendall", kendall)):
        low, high = _interval(statistic, x, y, draws)
        result[name] = statistic(x, y)
        result[f"{name}_low"] = low
        result[f"{name}_high"] = high
    return result


def _interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    draws: np.ndarray,
) -> tuple[float, float]:
    """Return the percentile interval of `statistic` over resamples of the pairs.

    A resample with a constant list gives NaN, and is left out.
    """
    values = np.array([statistic(x[draw], y[draw]) for draw in draws])
    low, high = np.nanpercentile(values, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(low), float(high)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of ranks, NaN if either list is constant."""
    from scipy.stats import rankdata  # importing scipy.stats takes a second

    mean_rank = (len(x) + 1) / 2
    return _normalized_product(rankdata(x) - mean_rank, rankdata(y) - mean_rank)


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Return tau-b, NaN if either list is constant.

    It is the number of concordant pairs less that of discordant ones, over the pairs without a tie.
    """
    first, second = np.triu_indices(len(x), 1)  # all pairs
    return _normalized_product(np.sign(x[first] - x[second]), np.sign(y[first] - y[second]))


def _normalized_product(a: np.ndarray, b: np.ndarray) -> float:
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")
