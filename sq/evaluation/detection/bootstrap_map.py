"""COCO's mean average precision for many samples of the same images: match once, then only count.

What a bootstrap over images needs. `sq/evaluation/detection/coco_eval.py` gives the headline
figure; on whole sets both are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sq.evaluation.detection.nms import Detections
from sq.types.images import Objects

OVERLAPS = np.linspace(0.5, 0.95, 10)  # COCO's IoU thresholds
RECALLS = np.linspace(0, 1, 101)  # and the recalls at which it reads precision
MOST = 100  # detections of a class and image that count


@dataclass(frozen=True)
class Matches:
    """Which detections found an object. Detections are sorted by class, then score; T is the 10 IoU thresholds."""

    image: np.ndarray  # (D,) of each detection
    first: np.ndarray  # (K + 1,) where each class's detections start, and the end of the last
    hits: np.ndarray  # (M, 2) of threshold, detection: it matched an object; sorted
    ignored: np.ndarray  # (J, 2) the same, for those in a crowd: neither right nor wrong
    objects: np.ndarray  # (images, K) how many there are, crowds apart


def match(found: Sequence[Detections], objects: Sequence[Objects], classes: int) -> Matches:
    """Match the detections of each image and class to its objects, at every IoU threshold.

    In order of score, a detection takes the free object it overlaps most, if by the threshold or
    more (of equals the last); failing that, it is ignored where its overlap with a crowd, as a
    share of its own area, reaches it.

    Parameters
    ----------
    found, objects : one of each an image, boxes in pixels of the image as it is stored
    classes : how many there are; both name them 0 .. classes - 1

    Source
    ------
    Lin et al. 2014, Microsoft COCO; https://cocodataset.org/#detection-eval.
    """
    images, kinds, scores, states = [], [], [], []
    counts = np.zeros((len(objects), classes), dtype=np.int64)
    for i, (guess, true) in enumerate(zip(found, objects, strict=True)):
        crowd, real = true.crowd.cpu().numpy(), true.classes.cpu().numpy()
        counts[i] = np.bincount(real[~crowd], minlength=classes)
        score, kind = guess.scores.double().cpu().numpy(), guess.classes.cpu().numpy()
        overlap = _overlap(guess.boxes, true.boxes, crowd)
        for k in np.unique(kind):
            own = np.flatnonzero(kind == k)
            own = own[np.argsort(-score[own], kind="stable")][:MOST]
            images.append(np.full(len(own), i))
            kinds.append(np.full(len(own), k))
            scores.append(score[own])
            plain, many = (np.flatnonzero((real == k) & (crowd == c)) for c in (False, True))
            states.append(_take(overlap[own[:, None], plain], overlap[own[:, None], many]))
    if not images:
        nothing = np.zeros((0, 2), dtype=np.int64)
        return Matches(
            nothing[:, 0], np.zeros(classes + 1, dtype=np.int64), nothing, nothing, counts
        )
    kind, score = np.concatenate(kinds), np.concatenate(scores)
    order = np.lexsort((-score, kind))  # stable: of equal scores, the first image's comes first
    state = np.concatenate(states, axis=1)[:, order]
    first = np.searchsorted(kind[order], np.arange(classes + 1))
    return Matches(
        np.concatenate(images)[order],
        first,
        np.argwhere(state == 1),
        np.argwhere(state == 2),
        counts,
    )


def mean(matches: Matches, copies: np.ndarray) -> float:
    """Return mAP50-95, from 0 to 1, of a sample in which image i occurs ``copies[i]`` times, copies side by side.

    Precision at a recall is the highest at this recall or any above. Classes without an object in
    the sample are left out; a sample without any has mAP 0.

    Parameters
    ----------
    copies : (images,) whole numbers, 0 or more

    Source
    ------
    Everingham et al. 2010, The PASCAL Visual Object Classes Challenge, section 4.2, at COCO's 101
    recalls.
    """
    objects = copies @ matches.objects
    if not objects.any() or not len(matches.hits):
        return 0.0
    classes, sizes = len(objects), np.diff(matches.first)
    # Precision is highest just after a hit, so only hits are looked at: `group` is their threshold
    # and class.
    threshold, place = matches.hits.T
    kind = np.repeat(np.arange(classes), sizes)[place]
    group = threshold * classes + kind
    start = np.searchsorted(group, group)
    weight = copies[matches.image].astype(float)
    right = _running(weight[place], start)
    seen = np.concatenate(([0.0], weight.cumsum()))
    judged = (
        seen[place + 1]
        - seen[matches.first[kind]]
        - _ignored_before(matches, weight, threshold, place, kind)
    )
    precision = right / (judged + np.spacing(1))  # as COCO guards against nothing judged
    # recalls up to here
    reached = np.searchsorted(RECALLS, right / np.maximum(objects[kind], 1), side="right")
    new = reached - np.where(np.arange(len(group)) == start, 0, np.roll(reached, 1))
    area = (_highest_after(precision, group) * new).sum()
    return float(area / (len(RECALLS) * len(OVERLAPS) * np.count_nonzero(objects)))


def _running(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return sums of `values` up to each place and with it, from the place `start` on."""
    total = np.concatenate(([0.0], values.cumsum()))
    return total[1:] - total[start]


def _ignored_before(
    matches: Matches, weight: np.ndarray, threshold: np.ndarray, place: np.ndarray, kind: np.ndarray
) -> np.ndarray:
    """Return the weight of what was ignored among the detections of a hit's class up to it."""
    row, column = matches.ignored.T
    width = len(matches.image) + 1
    key, total = row * width + column, np.concatenate(([0.0], weight[column].cumsum()))
    upto, before = (
        np.searchsorted(key, threshold * width + end) for end in (place, matches.first[kind])
    )
    return total[upto] - total[before]


def _highest_after(precision: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the highest precision at each place or later in its group."""
    # lifts each group above all later ones, so that one running maximum does
    lift = 2.0 * (group.max() - group)
    return np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift


def _overlap(found: Tensor, objects: Tensor, crowd: np.ndarray) -> np.ndarray:
    """Return IoU (D, G) of detections and objects; for a crowd, the share of the detection that lies in it.

    Widths come first, as in COCO's own code: at a threshold, rounding decides.
    """
    a, b = found.double().cpu().numpy()[:, None], objects.double().cpu().numpy()[None]
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    corner = np.minimum(size_a + a[..., :2], size_b + b[..., :2])
    shared = (corner - np.maximum(a[..., :2], b[..., :2])).clip(min=0).prod(-1)
    own = size_a.prod(-1)
    union = np.where(crowd, own, own + size_b.prod(-1) - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _take(plain: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return (T, D): 1 where a detection takes an object, 2 where it is ignored, 0 where it is wrong.

    Parameters
    ----------
    plain, crowd : (D, G) overlap of one class's detections, in order of score, with its objects and
    its crowds
    """
    state = np.zeros((len(OVERLAPS), len(plain)), dtype=np.int8)
    if crowd.size:
        state[crowd.max(1) >= OVERLAPS[:, None]] = 2
    if not plain.size:
        return state
    free = np.ones((len(OVERLAPS), plain.shape[1]), dtype=bool)
    rows = np.arange(len(OVERLAPS))
    for d in np.flatnonzero(plain.max(1) >= OVERLAPS[0]):
        value = np.where(free & (plain[d] >= OVERLAPS[:, None]), plain[d], -1.0)
        best = plain.shape[1] - 1 - value[:, ::-1].argmax(1)  # the last of equals
        hit = value[rows, best] > 0
        state[hit, d] = 1
        free[rows[hit], best[hit]] = False
    return state
