"""Agreement of a quantized network's outputs with full precision, without labels.

It changes long before accuracy does, and its noise is far smaller than that of accuracy.
"""

import math

from torch import Tensor
from torch.nn import functional as F

LIMIT_DB = 300.0  # for outputs that are equal, and -LIMIT_DB for outputs that are not finite


def snr_db(outputs: Tensor, reference: Tensor) -> float:
    """Return 10 log10(||reference||^2 / ||reference - outputs||^2), within +-300.

    It is 300 for equal outputs, and -300 for outputs that are not finite.
    """
    outputs, reference = outputs.double(), reference.double()
    noise = float((outputs - reference).square().sum())
    signal = float(reference.square().sum())
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
    same_top1 : share of images for which both predict the same class
    """
    outputs, reference = outputs.double(), reference.double()
    log_q, log_p = outputs.log_softmax(1), reference.log_softmax(1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    same_class = outputs.argmax(1) == reference.argmax(1)
    return {
        "logit_snr_db": snr_db(outputs, reference),
        "kl": float(kl),
        "same_top1": 100 * float(same_class.double().mean()),
    }
