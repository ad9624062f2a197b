"""Two networks on the same images: what the difference in right answers is worth."""

from __future__ import annotations

from torch import Tensor

LEVEL = 0.95


def drop_interval(full: Tensor, quantized: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of how much larger the share of right answers is at full precision.

    Half an image is added to each of the four counts (both right, one, the other, neither), which keeps the
    interval honest where hardly any answer changes: plain bootstrap calls it [0, 0] where none does.

    Parameters
    ----------
    full, quantized : (B,) bool, whether each image is answered rightly

    Returns
    -------
    low, high : as shares, in [-1, 1]

    Source
    ------
    Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions, Statistics in
    Medicine 24, 729-740: the Wald interval after adding 1/2 to each cell.
    """
    from scipy.stats import norm

    n = len(full) + 2
    lost, won = int((full & ~quantized).sum()) + 0.5, int((~full & quantized).sum()) + 0.5
    middle = (lost - won) / n
    half = float(norm.ppf((1 + LEVEL) / 2)) * (((lost + won) - (lost - won) ** 2 / n) ** 0.5) / n
    return max(middle - half, -1.0), min(middle + half, 1.0)


def p_value(full: Tensor, quantized: Tensor) -> float:
    """Return how likely a difference this large is if both networks are equally good: McNemar's exact test.

    Parameters
    ----------
    full, quantized : (B,) bool, whether each image is answered rightly
    """
    from scipy.stats import binomtest

    lost, won = int((full & ~quantized).sum()), int((~full & quantized).sum())
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
