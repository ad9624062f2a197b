"""Two networks on the same images: what the difference in right answers is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = 0.95


def drop_interval(full: Tensor, quantized: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of how much larger the share of right answers is at full precision.

    Half an image is added to each of the four counts (both right, one, the other, neither), which
    keeps the interval honest where hardly any answer changes: plain bootstrap calls it [0, 0] where
    none does.

    Parameters
    ----------
    full, quantized : (B,) bool, whether each image is answered rightly

    Returns
    -------
    low, high : as shares, in [-1, 1]

    Source
    ------
    Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions,
    Statistics in Medicine 24, 729-740: the Wald interval after adding 1/2 to each cell.
    """
    from scipy.special import ndtri

    n = len(full) + 2
    lost, won = int((full & ~quantized).sum()) + 0.5, int((~full & quantized).sum()) + 0.5
    middle = (lost - won) / n
    half = float(ndtri((1 + LEVEL) / 2)) * (((lost + won) - (lost - won) ** 2 / n) ** 0.5) / n
    return max(middle - half, -1.0), min(middle + half, 1.0)


def p_value(full: Tensor, quantized: Tensor) -> float:
    """Return how likely a difference this large is if both networks are equally good: McNemar's exact test.

    Parameters
    ----------
    full, quantized : (B,) bool, whether each image is answered rightly
    """
    from scipy.special import bdtr  # scipy.stats takes a second to import

    lost, won = int((full & ~quantized).sum()), int((~full & quantized).sum())
    return min(2 * float(bdtr(min(lost, won), lost + won, 0.5)), 1.0)


def packed(right: Tensor) -> str:
    """Return (B,) bool as hexadecimal digits, four images each, for a record."""
    import numpy as np

    return np.packbits(right.cpu().numpy()).tobytes().hex()


def gain(ours: list[str], theirs: list[str], images: int) -> tuple[float, float, float]:
    """Return how much larger our share of right answers is, and its 95 % interval.

    Seeds are averaged for each image first, and images are what is drawn: the interval is of other
    images, by the normal distribution, with the images' own spread and that which half an image on
    either side would add.

    Parameters
    ----------
    ours, theirs : for each seed, `packed` answers to the same `images`
    """
    import numpy as np
    from scipy.special import ndtri

    def shares(all_: list[str]) -> np.ndarray:
        bits = [
            np.unpackbits(np.frombuffer(bytes.fromhex(own), np.uint8), count=images) for own in all_
        ]
        return np.mean(bits, 0)

    apart = shares(ours) - shares(theirs)
    n = images + 2
    middle = float(apart.sum()) / n
    spread = float((np.square(apart).sum() + 1) / n - middle**2)
    half = float(ndtri((1 + LEVEL) / 2)) * (spread / n) ** 0.5
    return float(apart.mean()), middle - half, middle + half
