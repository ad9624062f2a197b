"""COCO's mean average precision of a detector, and the paired bootstrap interval of its drop."""

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

KEPT = 8  # images whose raw outputs are kept, for the signal-to-noise ratio: they are large
SHOWN = 0.25  # score above which a detector's boxes are usually shown, and counted here


@dataclass(frozen=True)
class Detected:
    """What a detector found in the evaluation images, with what is to be found."""

    figures: dict[str, float]  # map, map50
    found: list[Detections]  # in pixels of the image as it is stored
    objects: list[Objects]
    ids: list[str]
    raw: Tensor  # outputs of the network for the first images
    classes: int
    resamples: int

    def against(self, full: Measured) -> dict[str, Any]:
        """Return how far this, of a quantized network, is from full precision on the same images.

        Returns
        -------
        drop : mAP of full precision less this one
        drop_low, drop_high : its 95 % interval, by the percentile bootstrap over images: both
        networks are measured
            on the same drawn images. The draws are the same in every run
        logit_snr_db : 10 log10(||reference||^2 / ||reference - outputs||^2) over the raw outputs of
        the first 8
            images; 300 for equal outputs, -300 where they are not finite
        boxes, boxes_full : mean number of boxes an image with a score above 0.25, here and in full
        precision

        Source
        ------
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
        """
        if not isinstance(full, Detected) or full.ids != self.ids:
            raise ValueError("full precision was measured by another metric or on other images")
        n = len(self.ids)
        own, other = (bootstrap_map.match(d.found, d.objects, self.classes) for d in (self, full))
        draws = np.random.default_rng(0).integers(n, size=(self.resamples, n))
        drops = []
        for draw in draws:
            copies = np.bincount(draw, minlength=n)
            drops.append(
                bootstrap_map.mean_average_precision(other, copies)
                - bootstrap_map.mean_average_precision(own, copies)
            )
        low, high = np.percentile(drops, [2.5, 97.5])
        return {
            "drop": full.figures["map"] - self.figures["map"],
            "drop_low": float(low),
            "drop_high": float(high),
            "logit_snr_db": agreement.snr_db(self.raw, full.raw),
            "boxes": _shown(self.found),
            "boxes_full": _shown(full.found),
        }

    def answers(self) -> None:
        """Return nothing: a detector's answer to an image is not right or wrong."""


def measure(  # noqa: PLR0913  # two given, five knobs
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
    seen : raw outputs of the network (B, N, ...) and the batch it was given, whose `y` are objects
    confidence : a box is a candidate for each class whose score exceeds this, from 0 to 1
    iou : a candidate is dropped if it overlaps a better one of its class by more than this
    limit : boxes kept of an image at most; of these COCO counts 100 of each class
    evaluator : the program that computes both figures; "pycocotools" is the original, "faster" the
    same in C++
    resamples : draws of the bootstrap

    Raises
    ------
    SqError : the model is no detector, the images have labels in place of objects or no objects at
    all, or an
        object is of a class that the network does not know; the evaluator is not installed

    Source
    ------
    Lin et al. 2014, Microsoft COCO: Common Objects in Context;
    https://cocodataset.org/#detection-eval.
    """
    if model.decode is None:
        raise SqError(
            "metric=coco_map: the model is no detector: choose a detector, or metric=top1"
        )
    coco_eval.program(evaluator)  # says now, not after all images, that it is not installed
    found: list[Detections] = []
    objects: list[Objects] = []
    ids: list[str] = []
    kept: list[Tensor] = []
    classes = 0
    for raw, batch in seen:
        if isinstance(batch.y, Tensor):
            raise SqError(
                "metric=coco_map: the dataset has one label an image: choose one of objects, dataset=coco"
            )
        if len(ids) < KEPT:
            kept.append(raw[: KEPT - len(ids)].clone())
        boxes, scores = model.decode(raw)
        classes = scores.shape[-1]
        for own, score, true in zip(boxes, scores, batch.y, strict=True):
            best = nms.detect(own, score, confidence=confidence, iou=iou, limit=limit)
            stored = letterbox.undo(best.boxes, true.size, model.input[1])
            found.append(Detections(stored, best.scores, best.classes))
        objects += batch.y
        ids += batch.ids
    _check(objects, ids, classes)
    figures = coco_eval.evaluate(found, objects, classes, evaluator)
    return Detected(figures, found, objects, ids, torch.cat(kept), classes, resamples)


def _check(objects: Sequence[Objects], ids: Sequence[str], classes: int) -> None:
    """Raise an `SqError` unless there are objects, crowds apart, all of classes that the network knows."""
    if not any((~o.crowd).any() for o in objects):
        raise SqError(
            f"metric=coco_map: none of the {len(ids)} images holds an object: check the dataset's labels"
        )
    for name, true in zip(ids, objects, strict=True):
        if len(true.classes) and (most := int(true.classes.max())) >= classes:
            raise SqError(
                f"metric=coco_map: {name} holds an object of class {most}, the network knows 0 to {classes - 1}: "
                "choose a dataset and a model of the same classes"
            )


def _shown(found: Sequence[Detections]) -> float:
    return sum(int((d.scores > SHOWN).sum()) for d in found) / len(found)
