"""Significance of the accuracy difference between two networks on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = 0.95


def drop_interval(full: Tensor, quantized: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of the drop in accuracy from full precision.

    Half an image is added to each of the four counts (both correct, one, the other, neither). This
    keeps the interval valid if hardly any prediction changes: plain bootstrap gives [0, 0] if none
    does.

    Parameters
    ----------
    full, quantized : (B,) bool, whether each image is classified correctly

    Returns
    -------
    low, high : as shares, in [-1, 1]

    Source
    ------
    Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions,
    Statistics in Medicine 24, 729-740: the Wald interval after adding 1/2 to each cell.
    """
    from scipy.special import ndtri

    lost, won = _changed(full, quantized)
    lost_adjusted, won_adjusted = lost + 0.5, won + 0.5
    difference = lost_adjusted - won_adjusted
    n = len(full) + 2  # four cells with half an image each
    center = difference / n
    spread = ((lost_adjusted + won_adjusted) - difference**2 / n) ** 0.5
    half_width = float(ndtri((1 + LEVEL) / 2)) * spread / n
    return max(center - half_width, -1.0), min(center + half_width, 1.0)


def p_value(full: Tensor, quantized: Tensor) -> float:
    """Return the p-value of McNemar's exact test: both networks are equally good.

    Parameters
    ----------
    full, quantized : (B,) bool, whether each image is classified correctly
    """
    from scipy.special import bdtr  # importing scipy.stats takes a second

    lost, won = _changed(full, quantized)
    return min(2 * float(bdtr(min(lost, won), lost + won, 0.5)), 1.0)


def _changed(full: Tensor, quantized: Tensor) -> tuple[int, int]:
    """Return how many images only full precision, and only the other, classifies correctly."""
    return int((full & ~quantized).sum()), int((~full & quantized).sum())


def packed(correct: Tensor) -> str:
    """Return (B,) bool as hexadecimal digits, four images each, for a record."""
    import numpy as np

    return np.packbits(correct.cpu().numpy()).tobytes().hex()


def gain(ours: list[str], theirs: list[str], images: int) -> tuple[float, float, float]:
    """Return how much higher our accuracy is, and the 95 % interval, all as shares.

    Seeds are averaged for each image first. The interval is for a draw of other images, by the
    normal distribution, with the images' own spread and that of half an image on either side.

    Parameters
    ----------
    ours, theirs : for each seed, `packed` results for the same `images`
    """
    import numpy as np
    from scipy.special import ndtri

    def mean_over_seeds(packed_results: list[str]) -> np.ndarray:
        """Return (images,) the share of seeds that classify each image correctly."""
        correct = []
        for digits in packed_results:
            packed_bytes = np.frombuffer(bytes.fromhex(digits), np.uint8)
            correct.append(np.unpackbits(packed_bytes, count=images))
        return np.mean(correct, 0)

    differences = mean_over_seeds(ours) - mean_over_seeds(theirs)
    n = images + 2  # an image is added, half of it on either side
    center = float(differences.sum()) / n
    variance = float((np.square(differences).sum() + 1) / n - center**2)
    half_width = float(ndtri((1 + LEVEL) / 2)) * (variance / n) ** 0.5
    return float(differences.mean()), center - half_width, center + half_width
