"""Agreement: how close the quantized network stays to full precision, labels apart. Measured beside accuracy.

It moves long before accuracy does, and its noise is far smaller than that of a count of right
answers.
"""

import math

from torch import Tensor
from torch.nn import functional as F

LIMIT_DB = 300.0  # of a ratio, where outputs are equal or not finite


def snr_db(outputs: Tensor, reference: Tensor) -> float:
    """Return 10 log10(||reference||^2 / ||reference - outputs||^2): 300 if they are equal, -300 if not finite."""
    outputs, reference = outputs.double(), reference.double()
    noise, signal = float((outputs - reference).square().sum()), float(reference.square().sum())
    if noise == 0:
        return LIMIT_DB
    if not math.isfinite(noise) or signal == 0:
        return -LIMIT_DB
    return max(-LIMIT_DB, min(LIMIT_DB, 10 * math.log10(signal / noise)))


def measure(outputs: Tensor, reference: Tensor) -> dict[str, float]:
    """Return `logit_snr_db`, `kl` (nats, mean over images) and `same_top1` (percent).

    Parameters
    ----------
    outputs : (B, K) logits of the quantized network
    reference : (B, K) logits of the full-precision network on the same images

    Returns
    -------
    logit_snr_db : see `snr_db`
    kl : KL(softmax(reference) || softmax(outputs))
    same_top1 : share of images on which both name the same class
    """
    outputs, reference = outputs.double(), reference.double()
    kl = F.kl_div(
        outputs.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="batchmean"
    )
    same = 100 * float((outputs.argmax(1) == reference.argmax(1)).double().mean())
    return {"logit_snr_db": snr_db(outputs, reference), "kl": float(kl), "same_top1": same}
