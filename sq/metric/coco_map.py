"""COCO mean average precision of a detector, and the paired bootstrap interval of its drop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sq.config.constraints import Count, Share
from sq.errors import SqError
from sq.evaluation import agreement
from sq.evaluation.detection import bootstrap_map, coco_eval, nms
from sq.evaluation.detection.nms import Detections
from sq.evaluation.evaluate import Measured
from sq.model import letterbox
from sq.types.images import Batch, Objects
from sq.types.problem import Model

SNR_IMAGES = 8  # images whose raw outputs are compared: of all images they would be too large
SHOWN_SCORE = 0.25  # boxes above this score are usually shown, and are counted here


@dataclass(frozen=True)
class Detected:
    """The detections of a network in the evaluation images, and their mAP."""

    figures: dict[str, float]  # map, map50
    detections: list[Detections]  # of each image, in pixels of the image as it is stored
    objects: list[Objects]  # of each image, by its labels
    ids: list[str]
    raw: Tensor  # outputs of the network for the first images
    classes: int
    resamples: int

    def against(self, full: Measured) -> dict[str, Any]:
        """Return the differences of this, a quantized network, from full precision.

        Both were measured on the same images.

        Returns
        -------
        drop : mAP of full precision less that of this network
        drop_low, drop_high : the 95 % interval of the drop, by the percentile bootstrap over
            images. Both networks are measured on the same drawn images; draws are the same in every
            run
        logit_snr_db : 10 log10(||reference||^2 / ||reference - outputs||^2) over the raw outputs of
            the first 8 images; 300 for equal outputs, -300 where they are not finite
        boxes, boxes_full : boxes with a score above 0.25, mean over images, of this network and in
            full precision

        Source
        ------
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
        """
        if not isinstance(full, Detected) or full.ids != self.ids:
            raise ValueError("full precision was measured by another metric or on other images")
        images = len(self.ids)
        matches = bootstrap_map.match(self.detections, self.objects, self.classes)
        full_matches = bootstrap_map.match(full.detections, full.objects, self.classes)
        # A fixed seed: intervals of two runs differ by their detections alone.
        draws = np.random.default_rng(0).integers(images, size=(self.resamples, images))
        drops = []
        for draw in draws:
            copies = np.bincount(draw, minlength=images)  # how often each image was drawn
            full_map = bootstrap_map.mean_average_precision(full_matches, copies)
            drops.append(full_map - bootstrap_map.mean_average_precision(matches, copies))
        low, high = np.percentile(drops, [2.5, 97.5])
        return {
            "drop": full.figures["map"] - self.figures["map"],
            "drop_low": float(low),
            "drop_high": float(high),
            "logit_snr_db": agreement.snr_db(self.raw, full.raw),
            "boxes": _boxes_per_image(self.detections),
            "boxes_full": _boxes_per_image(full.detections),
        }

    def answers(self) -> None:
        """Return nothing: a detector's prediction for an image is not right or wrong."""


def measure(  # noqa: PLR0913  # two are given, five are settings
    model: Model,
    seen: Iterable[tuple[Tensor, Batch]],
    *,
    confidence: Share,
    iou: Share,
    limit: Count,
    evaluator: Literal["faster", "pycocotools"],
    resamples: Count,
) -> Detected:
    """Measure mAP at IoU 0.50-0.95 (`map`) and at 0.5 (`map50`), from 0 to 1.

    Parameters
    ----------
    seen : raw outputs of the network (B, N, ...) and their batch, whose `y` are objects
    confidence : a box is a candidate for each class whose score exceeds this, from 0 to 1
    iou : a candidate is dropped if it overlaps a better one of its class by more than this
    limit : most boxes kept of an image; of these COCO counts 100 of each class
    evaluator : the program that computes both figures; "pycocotools" is the original, "faster" the
        same in C++
    resamples : draws of the bootstrap

    Raises
    ------
    SqError : the model is no detector; the images have labels in place of objects, or no objects;
        an object is of a class that the network does not know; the evaluator is not installed

    Source
    ------
    Lin et al. 2014, Microsoft COCO: Common Objects in Context;
    https://cocodataset.org/#detection-eval.
    """
    if model.decode is None:
        raise SqError(
            "metric=coco_map: the model is no detector: choose a detector, or metric=top1"
        )
    coco_eval.program(evaluator)  # refuses now, not after all images, if it is not installed
    detections: list[Detections] = []
    objects: list[Objects] = []
    ids: list[str] = []
    first_outputs: list[Tensor] = []
    classes = 0
    for raw, batch in seen:
        if isinstance(batch.y, Tensor):
            raise SqError(
                "metric=coco_map: the dataset has one label an image: "
                "choose one of objects, dataset=coco"
            )
        if len(ids) < SNR_IMAGES:
            first_outputs.append(raw[: SNR_IMAGES - len(ids)].clone())
        boxes, scores = model.decode(raw)
        classes = scores.shape[-1]
        for image_boxes, image_scores, true in zip(boxes, scores, batch.y, strict=True):
            best = nms.detect(
                image_boxes, image_scores, confidence=confidence, iou=iou, limit=limit
            )
            stored = letterbox.undo(best.boxes, true.size, model.input[1])
            detections.append(Detections(stored, best.scores, best.classes))
        objects += batch.y
        ids += batch.ids
    _check(objects, ids, classes)
    figures = coco_eval.evaluate(detections, objects, classes, evaluator)
    raw_outputs = torch.cat(first_outputs)
    return Detected(figures, detections, objects, ids, raw_outputs, classes, resamples)


def _check(objects: Sequence[Objects], ids: Sequence[str], classes: int) -> None:
    """Refuse images without objects (crowds apart), or objects of classes the network lacks."""
    if all(true.crowd.all() for true in objects):
        raise SqError(
            f"metric=coco_map: none of the {len(ids)} images holds an object: "
            "check the dataset's labels"
        )
    for name, true in zip(ids, objects, strict=True):
        if len(true.classes) == 0:
            continue
        highest = int(true.classes.max())
        if highest >= classes:
            raise SqError(
                f"metric=coco_map: {name} holds an object of class {highest}, "
                f"the network knows 0 to {classes - 1}: "
                "choose a dataset and a model of the same classes"
            )


def _boxes_per_image(detections: Sequence[Detections]) -> float:
    """Return the number of boxes that are usually shown, mean over images."""
    boxes = 0
    for image in detections:
        boxes += int((image.scores > SHOWN_SCORE).sum())
    return boxes / len(detections)
