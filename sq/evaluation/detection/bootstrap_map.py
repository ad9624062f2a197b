"""COCO's mean average precision of many resamples of the same images, for a bootstrap over images.

Detections are matched to objects once; a resample only counts the matches.
`sq/evaluation/detection/coco_eval.py` computes the headline figure; on the whole set both are
equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sq.evaluation.detection.nms import Detections
from sq.types.images import Objects

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's IoU thresholds
RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision
MAX_DETECTIONS = 100  # of a class and image

# States of a detection at a threshold.
WRONG, HIT, IGNORED = 0, 1, 2


@dataclass(frozen=True)
class Matches:
    """Which detections match an object, at each threshold.

    D detections of K classes are sorted by class, then by falling score. T thresholds are those of
    `THRESHOLDS`.
    """

    image: np.ndarray  # (D,) of each detection
    first: np.ndarray  # (K + 1,) the first detection of each class, and the end of the last class
    hits: np.ndarray  # (hits, 2) threshold and detection that matches an object; sorted
    ignored: np.ndarray  # (ignored, 2) threshold and detection within a crowd: not counted
    objects: np.ndarray  # (images, K) number of objects, crowds apart


def match(detections: Sequence[Detections], objects: Sequence[Objects], classes: int) -> Matches:
    """Match the detections of each image and class to its objects, at every IoU threshold.

    In order of score, a detection takes the free object that it overlaps most, by the threshold or
    more (the last one of equals). Otherwise it is ignored if its overlap with a crowd, as a share
    of its own area, reaches the threshold.

    Parameters
    ----------
    detections, objects : one of each per image, boxes in pixels of the image as it is stored
    classes : number of classes; both name them 0 .. classes - 1

    Source
    ------
    Lin et al. 2014, Microsoft COCO; https://cocodataset.org/#detection-eval.
    """
    counts = np.zeros((len(objects), classes), dtype=np.int64)
    # One entry for each image and class with detections.
    images: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    states: list[np.ndarray] = []  # (T, detections)
    for i, (detected, truth) in enumerate(zip(detections, objects, strict=True)):
        crowd = truth.crowd.cpu().numpy()
        true_classes = truth.classes.cpu().numpy()
        counts[i] = np.bincount(true_classes[~crowd], minlength=classes)
        detected_classes = detected.classes.cpu().numpy()
        detected_scores = detected.scores.double().cpu().numpy()
        overlap = _overlap(detected.boxes, truth.boxes, crowd)  # (detections, objects)
        for kind in np.unique(detected_classes):
            of_kind = np.flatnonzero(detected_classes == kind)
            by_score = np.argsort(-detected_scores[of_kind], kind="stable")
            best = of_kind[by_score][:MAX_DETECTIONS]
            plain_objects = np.flatnonzero((true_classes == kind) & ~crowd)
            crowds = np.flatnonzero((true_classes == kind) & crowd)
            images.append(np.full(len(best), i))
            kinds.append(np.full(len(best), kind))
            scores.append(detected_scores[best])
            states.append(
                _assign(overlap[best[:, None], plain_objects], overlap[best[:, None], crowds])
            )
    if not images:
        no_pairs = np.zeros((0, 2), dtype=np.int64)
        no_detections = np.zeros(classes + 1, dtype=np.int64)
        return Matches(no_pairs[:, 0], no_detections, no_pairs, no_pairs, counts)
    kind, score = np.concatenate(kinds), np.concatenate(scores)
    order = np.lexsort((-score, kind))  # stable: of equal scores, the first image's comes first
    state = np.concatenate(states, axis=1)[:, order]
    return Matches(
        image=np.concatenate(images)[order],
        first=np.searchsorted(kind[order], np.arange(classes + 1)),
        hits=np.argwhere(state == HIT),
        ignored=np.argwhere(state == IGNORED),
        objects=counts,
    )


def mean_average_precision(matches: Matches, copies: np.ndarray) -> float:
    """Return mAP50-95, from 0 to 1, of a resample in which image i occurs ``copies[i]`` times.

    Copies of an image are side by side. The precision at a recall is the highest at this recall or
    above. Classes without an object in the resample are left out; without any object, mAP is 0.

    Parameters
    ----------
    copies : (images,) whole numbers, 0 or more

    Source
    ------
    Everingham et al. 2010, The PASCAL Visual Object Classes Challenge, section 4.2, at COCO's 101
    recalls.
    """
    objects = copies @ matches.objects  # (K,)
    if not objects.any() or not len(matches.hits):
        return 0.0
    classes = len(objects)
    # Precision is highest right after a hit, so all arrays from here have one element for each hit.
    # A group is a threshold and a class.
    threshold, detection = matches.hits.T
    class_of_detection = np.repeat(np.arange(classes), np.diff(matches.first))
    kind = class_of_detection[detection]
    group = threshold * classes + kind
    group_start = np.searchsorted(group, group)  # the first hit of the group

    weight = copies[matches.image].astype(float)  # (D,)
    hits = _running_sum(weight[detection], group_start)
    seen = np.concatenate(([0.0], weight.cumsum()))  # (D + 1,) before each detection
    class_detections = seen[detection + 1] - seen[matches.first[kind]]
    judged = class_detections - _ignored_before(matches, weight, threshold, detection, kind)
    precision = hits / (judged + np.spacing(1))  # COCO's guard against a division by 0

    # How many of COCO's recalls a hit reaches first.
    recalls = np.searchsorted(RECALLS, hits / np.maximum(objects[kind], 1), side="right")
    is_first = np.arange(len(group)) == group_start
    recalls_before = np.where(is_first, 0, np.roll(recalls, 1))
    area = (_highest_after(precision, group) * (recalls - recalls_before)).sum()
    return float(area / (len(RECALLS) * len(THRESHOLDS) * np.count_nonzero(objects)))


def _running_sum(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return, for each index, the sum of `values` from the index `start` up to and with it."""
    total = np.concatenate(([0.0], values.cumsum()))
    return total[1:] - total[start]


def _ignored_before(
    matches: Matches,
    weight: np.ndarray,
    threshold: np.ndarray,
    detection: np.ndarray,
    kind: np.ndarray,
) -> np.ndarray:
    """Return the weight of the ignored detections of each hit's class before the hit.

    Parameters
    ----------
    weight : (D,) of detections
    threshold, detection, kind : (hits,) of each hit
    """
    ignored_threshold, ignored_detection = matches.ignored.T
    # One sorted key for both, to search for.
    width = len(matches.image) + 1
    key = ignored_threshold * width + ignored_detection
    total = np.concatenate(([0.0], weight[ignored_detection].cumsum()))
    end = np.searchsorted(key, threshold * width + detection)
    start = np.searchsorted(key, threshold * width + matches.first[kind])
    return total[end] - total[start]


def _highest_after(precision: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the highest precision at each hit or at a later one of its group.

    Each group is raised above all later ones, so that one running maximum from the end serves all.
    Precisions are 1 at most, so steps of 2 keep groups apart.
    """
    lift = 2.0 * (group.max() - group)
    highest = np.maximum.accumulate((precision + lift)[::-1])[::-1]
    return highest - lift


def _overlap(detected: Tensor, objects: Tensor, crowd: np.ndarray) -> np.ndarray:
    """Return IoU (D, G) of boxes; for a crowd, the share of the detection that lies in it.

    Widths are computed first, as in COCO's own code: rounding decides at a threshold.

    Parameters
    ----------
    detected, objects : (D, 4) and (G, 4) left, top, right, bottom
    crowd : (G,) bool, of objects
    """
    a = detected.double().cpu().numpy()[:, None]
    b = objects.double().cpu().numpy()[None]
    size_a = a[..., 2:] - a[..., :2]
    size_b = b[..., 2:] - b[..., :2]
    lower_right = np.minimum(size_a + a[..., :2], size_b + b[..., :2])
    upper_left = np.maximum(a[..., :2], b[..., :2])
    intersection = (lower_right - upper_left).clip(min=0).prod(-1)
    area_a, area_b = size_a.prod(-1), size_b.prod(-1)
    union = np.where(crowd, area_a, area_a + area_b - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)


def _assign(overlap: np.ndarray, crowd_overlap: np.ndarray) -> np.ndarray:
    """Return the state (T, D) of each detection at each threshold.

    Parameters
    ----------
    overlap, crowd_overlap : (D, G) of one class's detections, in order of score, with its objects
        and its crowds
    """
    state = np.full((len(THRESHOLDS), len(overlap)), WRONG, dtype=np.int8)
    if crowd_overlap.size:
        state[crowd_overlap.max(1) >= THRESHOLDS[:, None]] = IGNORED
    if not overlap.size:
        return state
    objects = overlap.shape[1]
    free = np.ones((len(THRESHOLDS), objects), dtype=bool)
    thresholds = np.arange(len(THRESHOLDS))
    for d in np.flatnonzero(overlap.max(1) >= THRESHOLDS[0]):
        reached = free & (overlap[d] >= THRESHOLDS[:, None])
        candidates = np.where(reached, overlap[d], -1.0)  # (T, G)
        best = objects - 1 - candidates[:, ::-1].argmax(1)  # the last of equals
        hit = candidates[thresholds, best] > 0
        state[hit, d] = HIT
        free[thresholds[hit], best[hit]] = False
    return state
