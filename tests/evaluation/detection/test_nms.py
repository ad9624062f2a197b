"""Suppression of overlapping boxes, against a slow one."""

import math

import pytest
import torch

from sq.evaluation.detection.nms import MAX_CANDIDATES, detect


def slow(boxes, scores, confidence, iou, limit):
    """One candidate after another, in plain Python: (box's place, class), best first."""
    rows = [
        (float(s), n, k)
        for n, row in enumerate(scores.tolist())
        for k, s in enumerate(row)
        if s > confidence
    ]
    rows.sort(key=lambda row: (-row[0], row[1], row[2]))
    kept = []
    for _, n, k in rows:
        if all(
            k != other or overlap(boxes[n].tolist(), boxes[m].tolist()) <= iou for m, other in kept
        ):
            kept.append((n, k))
    return kept[:limit]


def overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def crowded(seed, n, classes):
    random = torch.Generator().manual_seed(seed)
    corner = 60 * torch.rand(n, 2, generator=random)
    boxes = torch.cat((corner, corner + 10 + 40 * torch.rand(n, 2, generator=random)), dim=1)
    return boxes, torch.rand(n, classes, generator=random)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("confidence", "iou", "limit"), [(0.001, 0.6, 300), (0.5, 0.45, 20), (0.9, 1.0, 5)]
)
def test_equals_the_slow_one(seed, confidence, iou, limit):
    boxes, scores = crowded(seed, 60, 4)
    found = detect(boxes, scores, confidence=confidence, iou=iou, limit=limit)
    kept = slow(boxes, scores, confidence, iou, limit)
    assert found.classes.tolist() == [k for _, k in kept]
    assert torch.equal(found.boxes, boxes[[n for n, _ in kept]])
    assert torch.equal(found.scores, scores[tuple(zip(*kept, strict=True))])


def test_equal_scores_are_taken_in_order():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [30, 30, 40, 40]])
    found = detect(boxes, torch.full((4, 2), 0.5), confidence=0.1, iou=0.6, limit=5)
    assert found.boxes[:, 0].tolist() == [0, 0, 50, 50, 30]
    assert found.classes.tolist() == [0, 1, 0, 1, 0]


def test_many_classes_and_boxes_take_the_other_path_of_torchvision():
    boxes, scores = crowded(3, 700, 3)
    found = detect(boxes, scores, confidence=0.1, iou=0.5, limit=300)
    kept = slow(boxes, scores, 0.1, 0.5, 300)
    assert torch.equal(found.boxes, boxes[[n for n, _ in kept]])


def test_score_at_the_confidence_is_no_candidate():
    found = detect(
        torch.tensor([[0.0, 0, 1, 1]]),
        torch.tensor([[0.5, 0.50001]]),
        confidence=0.5,
        iou=0.6,
        limit=9,
    )
    assert found.classes.tolist() == [1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_left_out(bad):
    boxes = torch.tensor([[0.0, 0, 1, bad], [0, 0, 1, 1], [5, 5, 6, 6]])
    found = detect(boxes, torch.tensor([[0.9], [bad], [0.4]]), confidence=0.1, iou=0.6, limit=9)
    assert found.boxes.tolist() == [[5, 5, 6, 6]]


@pytest.mark.parametrize("n", [0, 3])
def test_no_candidates(n):
    found = detect(torch.rand(n, 4), torch.zeros(n, 80), confidence=0.1, iou=0.6, limit=9)
    assert (found.boxes.shape, found.scores.shape, found.classes.shape) == ((0, 4), (0,), (0,))


def test_the_best_candidates_are_the_ones_looked_at():
    # More boxes than are looked at, far apart; the best come last.
    n = MAX_CANDIDATES + 50
    left = 2.0 * torch.arange(n).view(-1, 1)
    boxes = torch.cat((left, left * 0, left + 1, left * 0 + 1), dim=1)
    found = detect(
        boxes, torch.linspace(0.1, 0.9, n).view(-1, 1), confidence=0.01, iou=0.6, limit=n
    )
    assert len(found.boxes) == MAX_CANDIDATES
    assert torch.equal(found.boxes, boxes.flip(0)[:MAX_CANDIDATES])
