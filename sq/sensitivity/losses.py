"""What a price is measured in: a classifier's loss on labelled images, and how far its answers have moved. In nats."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sq.errors import SqError
from sq.types.images import Batch

UNLABELLED = -1
WITHOUT = (
    "interaction (sensitivity.variant=pairs), kl, mask_kl, measured (sensitivity.loss=kl), label_free, weight_mse or "
    "output_error"
)


def labels(batch: Batch, images: int, metric: str) -> Tensor:
    """Return the labels (B,) of the first `images` of a batch, where its images are.

    Parameters
    ----------
    metric : the sensitivity that needs them, for the message; settings of its own after it

    Raises
    ------
    SqError : the images are a detector's, or some have no label
    """
    if isinstance(batch.y, list):
        raise SqError(
            f"sensitivity={metric} needs one class an image, and these images hold objects (a detector's): choose "
            "label_free, weight_mse or output_error"
        )
    y = batch.y[:images]
    if missing := int((y == UNLABELLED).sum()):
        raise SqError(
            f"sensitivity={metric} needs labels, and {missing} of {len(y)} calibration images have none: choose "
            f"{WITHOUT}, which need none, or labelled images",
            call=f"sensitivity={metric} needs labels, which a call has none of: choose {WITHOUT}, which need none",
        )
    return y.to(batch.x.device)


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Return -log p(y) of each image, (B,) float64, for logits `outputs` (B, K) and labels `y` (B,)."""
    check_logits(outputs)
    return F.cross_entropy(outputs.double(), y, reduction="none")


def kl(outputs: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(reference) || softmax(outputs)) of each image, (B,) float64, for logits (B, K)."""
    check_logits(outputs)
    ours, theirs = outputs.double().log_softmax(1), reference.double().log_softmax(1)
    return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(1)


def check_logits(outputs: Tensor) -> None:
    """Raise an `SqError` unless `outputs` are logits (B, K)."""
    if outputs.ndim != 2:
        raise SqError(
            f"the network returns {tuple(outputs.shape)}, not logits (images, classes), so it has no cross-entropy or "
            "KL divergence: choose sensitivity=label_free, weight_mse or output_error"
        )
