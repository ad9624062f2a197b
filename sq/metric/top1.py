"""Top-1: the share of images whose highest logit is the label's."""

from torch import Tensor


def measure(outputs: Tensor, reference: Tensor, labels: Tensor) -> dict[str, float]:
    """Return percentages: `top1` of the quantized network, `top1_full` of full precision, and their `drop`.

    Parameters
    ----------
    outputs : (B, K) logits of the quantized network
    reference : (B, K) logits of the full-precision network on the same images
    labels : (B,)
    """
    quantized, full = (100 * float((o.argmax(1) == labels).double().mean()) for o in (outputs, reference))
    return {"top1": quantized, "top1_full": full, "drop": full - quantized}
