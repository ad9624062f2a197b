"""Adapter to the two programs that compute COCO's mAP, which take the same dictionaries."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sq.errors import SqError
from sq.evaluation.detection.nms import Detections
from sq.types.images import Objects

Evaluator = Literal["faster", "pycocotools"]
MAX_DETECTIONS = 100  # of a class and image


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
    detections: Sequence[Detections], objects: Sequence[Objects], classes: int, evaluator: Evaluator
) -> dict[str, float]:
    """Return `map` (mean over IoU 0.50, 0.55 ... 0.95) and `map50` (IoU 0.5), each from 0 to 1.

    It is COCO's headline figure: objects of all sizes count, and of each class and image the 100
    detections of highest score. Classes without an object (crowds apart) are left out of the mean;
    at least one class must have objects.

    Parameters
    ----------
    detections, objects : one of each per image, boxes in pixels of the image as it is stored
    classes : number of classes; both name them 0 .. classes - 1
    evaluator : "faster" is faster-coco-eval; "pycocotools" is the original, about three times
        slower

    Source
    ------
    Lin et al. 2014, Microsoft COCO; https://cocodataset.org/#detection-eval.
    """
    COCO, COCOeval = program(evaluator)
    # Ids start at 1: both programs take the id 0 of a match for no match.
    images = []
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (detected, true) in enumerate(zip(detections, objects, strict=True), 1):
        images.append({"id": image, "height": true.size[0], "width": true.size[1]})
        for annotation, crowd in zip(
            _annotations(image, true.boxes, true.classes), true.crowd.tolist(), strict=True
        ):
            truth.append(annotation | {"iscrowd": int(crowd)})
        for annotation, score in zip(
            _annotations(image, detected.boxes, detected.classes),
            detected.scores.tolist(),
            strict=True,
        ):
            results.append(annotation | {"iscrowd": 0, "score": score})
    shared = {
        "images": images,
        "categories": [{"id": kind, "name": str(kind)} for kind in range(classes)],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):  # both programs print their progress
        run = COCOeval(
            _indexed(COCO, shared, truth), _indexed(COCO, shared, results), iouType="bbox"
        )
        run.params.areaRng = run.params.areaRng[:1]  # the first covers all sizes
        run.params.areaRngLbl = ["all"]
        run.params.maxDets = [MAX_DETECTIONS]
        run.evaluate()
        run.accumulate()
    # (IoU, recall, class, 1, 1); -1 for classes without an object
    precision = np.asarray(run.eval["precision"])
    at_50 = precision[0]
    return {
        "map": float(precision[precision > -1].mean()),
        "map50": float(at_50[at_50 > -1].mean()),
    }


def _indexed(COCO: Any, shared: dict[str, Any], annotations: list[dict[str, Any]]) -> Any:
    """Return a COCO object with these annotations; `loadRes` would not take an empty list."""
    numbered = [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)]
    coco = COCO()
    coco.dataset = {**shared, "annotations": numbered}
    coco.createIndex()
    return coco


def _annotations(image: int, boxes: Tensor, classes: Tensor) -> list[dict[str, Any]]:
    """Return COCO's annotations of the boxes (n, 4) of an image: left, top, width and height."""
    corners = boxes.double().cpu()  # in which differences of float32 numbers are exact
    sizes = corners[:, 2:] - corners[:, :2]
    coco_boxes = torch.cat((corners[:, :2], sizes), 1).tolist()
    annotations = []
    for box, kind in zip(coco_boxes, classes.tolist(), strict=True):
        area = box[2] * box[3]
        annotations.append({"image_id": image, "category_id": kind, "bbox": box, "area": area})
    return annotations
