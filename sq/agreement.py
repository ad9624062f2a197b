"""Agreement: how close the quantized network stays to full precision, labels apart. Measured beside accuracy.

It moves long before accuracy does, and its noise is far smaller than that of a count of right answers.
"""

import math

from torch import Tensor
from torch.nn import functional as F


def measure(outputs: Tensor, reference: Tensor) -> dict[str, float]:
    """Return `logit_snr_db`, `kl` (nats, mean over images) and `same_top1` (percent).

    Parameters
    ----------
    outputs : (B, K) logits of the quantized network
    reference : (B, K) logits of the full-precision network on the same images

    Returns
    -------
    logit_snr_db : 10 log10(||reference||^2 / ||reference - outputs||^2), 300 at most (identical logits)
    kl : KL(softmax(reference) || softmax(outputs))
    same_top1 : share of images on which both name the same class
    """
    outputs, reference = outputs.double(), reference.double()
    noise = float((outputs - reference).square().sum())
    snr = 10 * math.log10(float(reference.square().sum()) / noise) if noise > 0 else 300.0
    kl = F.kl_div(outputs.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="batchmean")
    same = 100 * float((outputs.argmax(1) == reference.argmax(1)).double().mean())
    return {"logit_snr_db": min(snr, 300.0), "kl": float(kl), "same_top1": same}
