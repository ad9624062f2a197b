"""From a detector's scores to its boxes: the confident ones, the best of those that overlap, the best of all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sq.config.constraints import Count, Share
from sq.runtime import torch_setup

# what enters the suppression at most: a bound on its time, above what any confident net yields
CANDIDATES = 30_000


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, the highest score first."""

    boxes: Tensor  # (n, 4) float32: left, top, right, bottom, in pixels
    scores: Tensor  # (n,)
    classes: Tensor  # (n,) int64


def detect(
    boxes: Tensor, scores: Tensor, *, confidence: float, iou: Share, limit: Count
) -> Detections:
    """Return the boxes of one image that survive non-maximum suppression within their class.

    A box is a candidate for every class whose score exceeds `confidence`, not for its best class
    alone. What quantization has made NaN or infinite is no candidate. Of equal scores, the one that
    comes first is taken first.

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

    allowed = (scores > confidence) & scores.isfinite() & boxes.isfinite().all(1, keepdim=True)
    place, classes = allowed.nonzero(as_tuple=True)
    order = scores[place, classes].argsort(descending=True, stable=True)[:CANDIDATES]
    place, classes = place[order], classes[order]
    best = scores[place, classes]
    # Candidates are sorted, so sorting the survivors' places sorts them by score, ties included.
    kept = torch.sort(batched_nms(boxes[place], best, classes, iou)).values[:limit]
    return Detections(boxes[place[kept]].float(), best[kept], classes[kept])
