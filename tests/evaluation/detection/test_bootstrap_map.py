"""mAP by counting matches, against pycocotools, faster-coco-eval and, for samples, truly repeated images."""

import time

import numpy as np
import pytest
import torch
from tolerances import relative

from sq.dataset import coco
from sq.evaluation.detection import bootstrap_map, coco_eval
from sq.evaluation.detection.nms import Detections
from sq.types.images import Objects

CLASSES = 6


def noisy(random, true, classes, spread=0.1, wrong=8):
    """Jittered copies of the objects, some twice, some of another class, and boxes of nothing."""
    height, width = true.size
    place = (
        torch.randint(len(true.classes), (int(1.6 * len(true.classes)),), generator=random)
        if len(true.boxes)
        else []
    )
    boxes, kinds = true.boxes[place], true.classes[place]
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + spread * sides * torch.randn(boxes.shape, generator=random)
    boxes = torch.cat((boxes, made_boxes(random, wrong, height, width)))
    kinds = torch.cat((kinds, torch.randint(classes, (wrong,), generator=random)))
    other = torch.rand(len(kinds), generator=random) < 0.1
    kinds = torch.where(other, torch.randint(classes, kinds.shape, generator=random), kinds)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
    return Detections(boxes, torch.rand(len(kinds), generator=random), kinds)


def made_boxes(random, n, height, width):
    corner = torch.rand(n, 2, generator=random) * torch.tensor([width, height]) * 0.7
    return torch.cat((corner, corner + 5 + 60 * torch.rand(n, 2, generator=random)), dim=1)


def made_up(seed, images=12, classes=CLASSES, crowds=0.15):
    """Objects with crowds, images without objects, images without detections, a class without objects."""
    random = torch.Generator().manual_seed(seed)
    objects, found = [], []
    for i in range(images):
        n = 0 if i % 6 == 1 else int(torch.randint(1, 15, (1,), generator=random))
        true = Objects(
            made_boxes(random, n, 200, 300),
            torch.randint(classes - 1, (n,), generator=random),
            torch.rand(n, generator=random) < crowds,
            (200, 300),
        )
        objects.append(true)
        guess = noisy(random, true, classes)
        found.append(Detections(*(t[:0] for t in vars(guess).values())) if i % 7 == 5 else guess)
    return found, objects


def rounded(found):
    """The same with scores and boxes on coarse steps: ties of both."""
    return [Detections(d.boxes.round(), (5 * d.scores).round() / 5, d.classes) for d in found]


# of means of precisions, 1 at most, over 10 overlaps, 101 recalls and 80 classes at most
ROUNDING = relative(10 * 101 * 80, torch.float64)


def ours(found, objects, copies=None, classes=CLASSES):
    ones = np.ones(len(objects), dtype=int)
    return bootstrap_map.mean_average_precision(
        bootstrap_map.match(found, objects, classes), ones if copies is None else copies
    )


def reference(found, objects, classes=CLASSES, evaluator="pycocotools"):
    return coco_eval.evaluate(found, objects, classes, evaluator)["map"]


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed):
    found, objects = made_up(seed)
    figure = reference(found, objects)
    assert 0.05 < figure < 0.9
    assert ours(found, objects) == pytest.approx(figure, abs=ROUNDING)


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_with_ties_and_boxes_on_whole_pixels(seed):
    found, objects = made_up(seed)
    objects = [Objects(o.boxes.round(), o.classes, o.crowd, o.size) for o in objects]
    assert ours(rounded(found), objects) == pytest.approx(
        reference(rounded(found), objects), abs=ROUNDING
    )


def test_overlaps_that_equal_a_threshold_count():
    # Widths 10 of 20, 11 of 20 ... 19 of 20: IoU is a threshold each time, or a rounding away from
    # it.
    objects = [
        Objects(torch.tensor([[0.0, 0, 20, 7]]), torch.tensor([0]), torch.tensor([False]), (50, 50))
    ] * 10
    found = [
        Detections(
            torch.tensor([[0.0, 0, 10 + i, 7]]), torch.tensor([0.9 - i / 100]), torch.tensor([0])
        )
        for i in range(10)
    ]
    assert ours(found, objects) == pytest.approx(reference(found, objects), abs=ROUNDING)


def test_of_objects_overlapped_equally_the_last_is_taken():
    # The first detection lies halfway between both objects; the second needs the first of them.
    boxes = torch.tensor([[0.0, 0, 20, 10], [8, 0, 28, 10]])
    true = Objects(boxes, torch.zeros(2).long(), torch.zeros(2).bool(), (50, 50))
    found = [
        Detections(
            torch.tensor([[4.0, 0, 24, 10], [0, 0, 20, 10]]), torch.tensor([0.9, 0.8]), true.classes
        )
    ]
    assert ours(found, [true]) == pytest.approx(reference(found, [true]), abs=ROUNDING)
    free = (51 * 0.5) / 101  # above an IoU of 2/3 only the second is right
    assert ours(found, [true]) == pytest.approx((4 * 1 + 6 * free) / 10)


def test_only_the_best_hundred_of_a_class_and_image_count():
    random = torch.Generator().manual_seed(0)
    true = Objects(
        made_boxes(random, 150, 200, 300),
        torch.zeros(150).long(),
        torch.zeros(150).bool(),
        (200, 300),
    )
    found = [Detections(true.boxes, torch.rand(150, generator=random), true.classes)]
    assert ours(found, [true]) == pytest.approx(reference(found, [true]), abs=ROUNDING)
    # recalls 0, 0.01 ... 0.66 of the 100 in 150
    assert ours(found, [true]) == pytest.approx(67 / 101)


def test_no_detections_at_all_is_zero():
    found, objects = made_up(0)
    nothing = [Detections(*(t[:0] for t in vars(d).values())) for d in found]
    assert ours(nothing, objects) == 0
    assert reference(nothing, objects) == 0
    assert reference(nothing, objects, evaluator="faster") == 0


def test_sample_without_objects_is_zero():
    found, objects = made_up(0)
    assert len(objects[1].boxes) == 0
    assert ours(found, objects, np.eye(len(objects), dtype=int)[1]) == 0


@pytest.mark.parametrize("seed", range(6))
def test_copies_equal_images_that_are_truly_there_so_many_times(seed):
    found, objects = made_up(seed)
    copies = np.random.default_rng(seed).integers(0, 4, size=len(objects))
    repeated = [
        [own for own, n in zip(side, copies, strict=True) for _ in range(n)]
        for side in (found, objects)
    ]
    assert ours(found, objects, copies) == pytest.approx(reference(*repeated), abs=ROUNDING)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_both_evaluators_agree(seed, ties):
    found, objects = made_up(seed)
    found = rounded(found) if ties else found
    one, other = (coco_eval.evaluate(found, objects, CLASSES, e) for e in ("faster", "pycocotools"))
    assert one == pytest.approx(other, abs=ROUNDING)
    assert one["map50"] > one["map"] > 0


def test_figures_are_those_of_cocos_own_summary(capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, objects = made_up(1)
    figures = coco_eval.evaluate(found, objects, CLASSES, "pycocotools")
    assert capsys.readouterr().out == ""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "height": 200, "width": 300} for i in range(len(objects))],
        "categories": [{"id": k} for k in range(CLASSES)],
        "annotations": [],
    }
    rows = []
    for i, (d, o) in enumerate(zip(found, objects, strict=True)):
        for box, k, crowd in zip(o.boxes.double(), o.classes, o.crowd, strict=True):
            left, top, right, bottom = box.tolist()
            own = {
                "image_id": i,
                "category_id": int(k),
                "bbox": [left, top, right - left, bottom - top],
            }
            own |= {
                "id": len(truth.dataset["annotations"]) + 1,
                "iscrowd": int(crowd),
                "area": 1000,
            }
            truth.dataset["annotations"].append(own)
        for box, k, score in zip(d.boxes.double(), d.classes, d.scores, strict=True):
            rows.append([i, *box[:2], *(box[2:] - box[:2]), float(score), int(k)])
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(np.array(rows, dtype=float)), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert figures == pytest.approx({"map": run.stats[0], "map50": run.stats[1]}, abs=ROUNDING)


def real(seed=0, spread=0.1):
    data = coco.load(
        name="coco_sample",
        root="coco",
        train="train",
        test="val",
        annotations="coco.yaml",
        skip_corrupt=False,
    )
    random = torch.Generator().manual_seed(seed)
    return [noisy(random, o, 80, spread) for o in data.test.y], data.test.y


def test_equals_pycocotools_on_real_objects(needs_data):
    found, objects = real()
    figures = [coco_eval.evaluate(found, objects, 80, e)["map"] for e in ("pycocotools", "faster")]
    assert 0.1 < figures[0] < 0.9
    assert figures[1] == pytest.approx(figures[0], abs=ROUNDING)
    assert ours(found, objects, classes=80) == pytest.approx(figures[0], abs=ROUNDING)


def test_repeated_real_images(needs_data):
    found, objects = real(1)
    copies = np.random.default_rng(0).integers(0, 3, size=len(objects))
    repeated = [
        [own for own, n in zip(side, copies, strict=True) for _ in range(n)]
        for side in (found, objects)
    ]
    assert ours(found, objects, copies, 80) == pytest.approx(
        reference(*repeated, classes=80), abs=ROUNDING
    )


def test_five_hundred_samples_are_quick(needs_data):
    found, objects = real()
    matches = bootstrap_map.match(found, objects, 80)
    start = time.perf_counter()
    figures = [
        bootstrap_map.mean_average_precision(
            matches, np.bincount(np.arange(128) // (1 + i % 3), minlength=128)
        )
        for i in range(500)
    ]
    assert time.perf_counter() - start < 10
    assert len(set(figures)) == 3
