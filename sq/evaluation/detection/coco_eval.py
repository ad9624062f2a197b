"""The one adapter to the two programs that compute COCO's mAP, which read the same dictionaries."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sq.errors import SqError
from sq.evaluation.detection.nms import Detections
from sq.types.images import Objects

Evaluator = Literal["faster", "pycocotools"]


def program(evaluator: Evaluator) -> tuple[Any, Any]:
    """Return the classes COCO and COCOeval of `evaluator`.

    Raises
    ------
    SqError : it is not installed
    """
    try:
        if evaluator == "faster":
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    except ImportError as error:
        name = "faster-coco-eval" if evaluator == "faster" else evaluator
        raise SqError(
            f"metric.evaluator={evaluator} needs {name} ({error}): python -m pip install {name}"
        ) from error


def evaluate(
    found: Sequence[Detections], objects: Sequence[Objects], classes: int, evaluator: Evaluator
) -> dict[str, float]:
    """Return `map` (mean over IoU 0.50, 0.55 ... 0.95) and `map50` (IoU 0.5 alone), each from 0 to 1.

    Objects of all sizes count, and of each class and image the 100 detections of highest score:
    COCO's headline figure. Classes without an object (crowds apart) are left out of the mean; there
    must be one with.

    Parameters
    ----------
    found, objects : one of each an image, boxes in pixels of the image as it is stored
    classes : how many there are; both name them 0 .. classes - 1
    evaluator : "faster" is faster-coco-eval; "pycocotools" is the original, some three times slower

    Source
    ------
    Lin et al. 2014, Microsoft COCO; https://cocodataset.org/#detection-eval.
    """
    COCO, COCOeval = program(evaluator)
    images = [{"id": i, "height": o.size[0], "width": o.size[1]} for i, o in enumerate(objects, 1)]
    # Ids start at 1: both programs take the id 0 of a match for no match.
    shared = {
        "images": images,
        "categories": [{"id": k, "name": str(k)} for k in range(classes)],
        "info": {},
    }
    true = [
        _annotation(i, box, k) | {"iscrowd": int(crowd)}
        for i, o in enumerate(objects, 1)
        for box, k, crowd in zip(
            _corner(o.boxes), o.classes.tolist(), o.crowd.tolist(), strict=True
        )
    ]
    guessed = [
        _annotation(i, box, k) | {"iscrowd": 0, "score": score}
        for i, d in enumerate(found, 1)
        for box, k, score in zip(
            _corner(d.boxes), d.classes.tolist(), d.scores.tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # both report their progress there
        sides = []
        for annotations in (true, guessed):
            side = COCO()
            # Not by loadRes, which cannot take an empty list.
            side.dataset = {
                **shared,
                "annotations": [a | {"id": n} for n, a in enumerate(annotations, 1)],
            }
            side.createIndex()
            sides.append(side)
        run = COCOeval(*sides, iouType="bbox")
        run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = (
            run.params.areaRng[:1],
            ["all"],
            [100],
        )
        run.evaluate()
        run.accumulate()
    # (IoU, recall, class, 1, 1); -1 for classes without an object
    precision = np.asarray(run.eval["precision"])
    return {
        name: float(own[own > -1].mean())
        for name, own in (("map", precision), ("map50", precision[0]))
    }


def _corner(boxes: Tensor) -> list[list[float]]:
    """Return `boxes` (n, 4) as left, top, width, height; in double precision, where the differences are exact."""
    boxes = boxes.double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes.tolist()


def _annotation(image: int, box: list[float], klass: int) -> dict[str, Any]:
    return {"image_id": image, "category_id": klass, "bbox": box, "area": box[2] * box[3]}
