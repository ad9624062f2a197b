"""Rank correlations of predicted and measured values, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

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
    counts = np.zeros((RESAMPLES, len(x)))  # how often a resample has each pair
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], draws), 1)
    result: dict[str, float] = {}
    for name, statistic, of_resamples in (
        ("spearman", spearman, spearman_of_resamples),
        ("kendall", kendall, kendall_of_resamples),
    ):
        result[name] = statistic(x, y)
        # A resample with a constant list gives NaN, and is left out.
        percentiles = [50 - LEVEL / 2, 50 + LEVEL / 2]
        low, high = np.nanpercentile(of_resamples(x, y, counts), percentiles)
        result[f"{name}_low"] = float(low)
        result[f"{name}_high"] = float(high)
    return result


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


def spearman_of_resamples(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return `spearman` of each resample, (R,).

    Parameters
    ----------
    x, y : (n,) each
    counts : (R, n), how often each resample has each pair. All sums are of multiples of 1/4, which
        float64 holds exactly, so results are those of `spearman` to the bit
    """
    a, b = _centred_ranks(x, counts), _centred_ranks(y, counts)  # (R, n)
    return _normalized((counts * a * b).sum(1), (counts * a * a).sum(1), (counts * b * b).sum(1))


def _centred_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rank of each value among those of each resample, less the mean rank, (R, n)."""
    below = (values[:, None] < values[None, :]).astype(float)  # [j, i]: value j is below value i
    equal = (values[:, None] == values[None, :]).astype(float)
    ranks = counts @ below + (counts @ equal + 1) / 2
    return np.asarray(ranks - (len(values) + 1) / 2)


def kendall_of_resamples(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return `kendall` of each resample, (R,); parameters as in `spearman_of_resamples`."""
    a = np.sign(x[:, None] - x[None, :])  # (n, n), over all ordered pairs
    b = np.sign(y[:, None] - y[None, :])

    def total(signs: np.ndarray) -> np.ndarray:
        return np.asarray(((counts @ signs) * counts).sum(1) / 2)

    return _normalized(total(a * b), total(a * a), total(b * b))


def _normalized(product: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    scale = np.sqrt(first * second)
    return np.divide(product, scale, out=np.full_like(product, np.nan), where=scale > 0)
