"""Losses of the sensitivity metrics, in nats: cross-entropy with labels, and KL divergence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from sq.errors import SqError
from sq.types.images import Batch

UNLABELLED = -1  # in place of a label
# for messages
METRICS_WITHOUT_LABELS = (
    "interaction (sensitivity.variant=pairs), kl, mask_kl, measured (sensitivity.loss=kl), "
    "label_free, weight_mse or output_error"
)


def labels(batch: Batch, images: int, metric: str) -> Tensor:
    """Return the labels (B,) of the first `images` of a batch, on the device of its images.

    Parameters
    ----------
    metric : the sensitivity that needs them, for the message, with settings of its own after it

    Raises
    ------
    SqError : the images are a detector's, or some have no label
    """
    if isinstance(batch.y, list):
        raise SqError(
            f"sensitivity={metric} needs one class an image, and these images hold objects (a "
            "detector's): choose label_free, weight_mse or output_error"
        )
    y = batch.y[:images]
    missing = int((y == UNLABELLED).sum())
    if missing:
        choose = f"choose {METRICS_WITHOUT_LABELS}, which need none"
        raise SqError(
            f"sensitivity={metric} needs labels, and {missing} of {len(y)} calibration images have "
            f"none: {choose}, or labelled images",
            call=f"sensitivity={metric} needs labels, which a call has none of: {choose}",
        )
    return y.to(batch.x.device)


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Return -log p(y) of each image, (B,) float64, for logits (B, K) and labels `y` (B,)."""
    check_logits(outputs)
    # in float64, since differences of losses are small
    return F.cross_entropy(outputs.double(), y, reduction="none")


def kl(outputs: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(reference) || softmax(outputs)), (B,) float64, for logits (B, K)."""
    check_logits(outputs)
    log_q = outputs.double().log_softmax(1)
    log_p = reference.double().log_softmax(1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)


def kl_of_change(outputs: Tensor, reference: Tensor, positions: slice) -> Tensor:
    """Return `kl`, as `sq.network.single_layer_changes.measure` calls it."""
    return kl(outputs, reference)


def cross_entropy_increase(y: Tensor) -> Callable[[Tensor, Tensor, slice], Tensor]:
    """Return a figure for `sq.network.single_layer_changes.measure`: the increase of cross-entropy.

    Parameters
    ----------
    y : (B,) labels of all images
    """

    def increase(outputs: Tensor, reference: Tensor, positions: slice) -> Tensor:
        return cross_entropy(outputs, y[positions]) - cross_entropy(reference, y[positions])

    return increase


def check_logits(outputs: Tensor) -> None:
    """Raise an `SqError` unless `outputs` are logits (B, K)."""
    if outputs.ndim != 2:
        raise SqError(
            f"the network returns {tuple(outputs.shape)}, not logits (images, classes), so it has "
            "no cross-entropy or KL divergence: choose sensitivity=label_free, weight_mse or "
            "output_error"
        )
