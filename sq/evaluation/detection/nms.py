"""Non-maximum suppression: from a detector's scores to the boxes it detects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sq.config.constraints import Count, Share
from sq.runtime import torch_setup

# At most so many boxes enter the suppression, which bounds its time. No network with useful
# confidences has as many.
MAX_CANDIDATES = 30_000


@dataclass(frozen=True)
class Detections:
    """The detections of one image, the highest score first."""

    boxes: Tensor  # (n, 4) float32: left, top, right, bottom, in pixels
    scores: Tensor  # (n,)
    classes: Tensor  # (n,) int64


def detect(
    boxes: Tensor, scores: Tensor, *, confidence: float, iou: Share, limit: Count
) -> Detections:
    """Return the boxes of one image that survive non-maximum suppression within their class.

    A box is a candidate for every class whose score exceeds `confidence`, not only for its best
    class. Boxes or scores that quantization has made NaN or infinite are no candidates. Of equal
    scores, the first comes first.

    Parameters
    ----------
    boxes : (N, 4) left, top, right, bottom
    scores : (N, K) of each class, from 0 to 1
    confidence : candidates have a score above this
    iou : candidates that overlap a better one of their class by more than this are dropped
    limit : boxes kept at most

    Source
    ------
    Bodla et al. 2017, Soft-NMS, section 3: the greedy suppression it starts from.
    """
    torch_setup.import_torchvision()
    from torchvision.ops import batched_nms

    finite = scores.isfinite() & boxes.isfinite().all(1, keepdim=True)
    candidates = (scores > confidence) & finite  # (N, K)
    index, classes = candidates.nonzero(as_tuple=True)
    by_score = scores[index, classes].argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    index, classes = index[by_score], classes[by_score]
    candidate_scores = scores[index, classes]
    survivors = batched_nms(boxes[index], candidate_scores, classes, iou)
    # Candidates are sorted by score, so sorting the survivors' numbers sorts them too, with ties in
    # the same order.
    survivors = torch.sort(survivors).values[:limit]
    return Detections(
        boxes[index[survivors]].float(), candidate_scores[survivors], classes[survivors]
    )
