"""ultralytics: YOLOv8, YOLO11 and YOLOv5u, which predict distances from the centres of cells.

The network returns the outputs of the head's convolutions. Their decoding, `decode`, is ours.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sq.config.constraints import Count, Expected
from sq.config.data_paths import find
from sq.errors import SqError
from sq.model import ultralytics_hub, yolo
from sq.model.state_dict import load_into
from sq.network import geometry
from sq.types.problem import Model

BINS = 16  # of the distribution of each distance, one stride apart
SIDES = 4  # distances of a box: left, top, right, bottom

Name = Literal[
    "yolov5nu", "yolov5su", "yolov5mu", "yolov5lu", "yolov5xu",
    "yolov8n", "yolov8s", "yolov8m", "yolov8l", "yolov8x",
    "yolo11n", "yolo11s", "yolo11m", "yolo11l", "yolo11x",
]  # fmt: skip


class RawHead(nn.Module):
    """The convolutions of ultralytics' head, without its decoding."""

    def __init__(self, head: Any):
        super().__init__()
        self.f, self.cv2, self.cv3, self.dfl = head.f, head.cv2, head.cv3, head.dfl

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map (B, C, H, W) of each stride to (B, N, 64 + classes), ordered by stride, then row."""
        predictions: list[Tensor] = []
        for box_layers, class_layers, x in zip(self.cv2, self.cv3, maps, strict=True):
            of_map = torch.cat([box_layers(x), class_layers(x)], 1)  # (B, 64 + classes, H, W)
            predictions.append(of_map.flatten(2))
        return torch.cat(predictions, 2).mT


class YOLO(yolo.Routed):
    """The network called `name`, up to its raw predictions."""

    def __init__(self, name: str):
        match = re.fullmatch(r"(yolo(?:v5|v8|11))([nsmlx])u?", name)
        assert match, name
        layers = yolo.build(match[1], match[2])
        super().__init__(nn.Sequential(*layers[:-1], RawHead(layers[-1])))


def decode(raw: Tensor, *, centres: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes and scores of raw predictions.

    Parameters
    ----------
    raw : (B, N, 64 + classes): 16 logits for each of left, top, right, bottom, then those of the
        classes
    centres : (N, 2): column and row of the centre of the cell of each prediction
    strides : (N, 1): side of the cell, pixels

    Returns
    -------
    boxes : (B, N, 4): left, top, right, bottom, in pixels of the network's input
    scores : (B, N, classes): class probabilities

    Source
    ------
    Li et al. 2020, Generalized Focal Loss, arXiv 2006.04388, equation 4 and section 3.2: a distance
    is the mean of a softmax over 0 .. 15 cells.
    """
    probabilities = raw[..., : SIDES * BINS].unflatten(-1, (SIDES, BINS)).softmax(-1)
    distance = probabilities @ torch.arange(BINS, dtype=raw.dtype, device=raw.device)
    boxes = torch.cat([centres - distance[..., :2], centres + distance[..., 2:]], -1) * strides
    return boxes, raw[..., SIDES * BINS :].sigmoid()


def _rows(image: int) -> dict[str, Tensor]:
    """Return the arguments of `decode` for each of the N predictions, in the order of the head."""
    corners: list[Tensor] = []
    strides: list[Tensor] = []
    for stride in yolo.STRIDES:
        cells = yolo.cells(image, stride)
        corners.append(cells)
        strides.append(torch.full((len(cells), 1), float(stride)))
    return {"centres": torch.cat(corners) + 0.5, "strides": torch.cat(strides)}


def load(
    *,
    name: Name,
    weights: str | None,
    image: Count,
    expected: Expected,
) -> Model:
    """Load a trained network in eval mode.

    Parameters
    ----------
    name : in ultralytics
    weights : a .safetensors, .pth or .pt state dict; a relative path is looked for here, then in
        $SQ_DATA. None takes the published ones, from torch's checkpoint folder or the internet
    image : side of the letterboxed square, pixels; a multiple of 32
    expected : full-precision figures, by the name of the image set

    Raises
    ------
    SqError : ultralytics is missing; the file is missing, damaged, more than tensors, or of another
        network

    Source
    ------
    docs.ultralytics.com/models: YOLOv8, YOLO11, YOLOv5 (the anchor-free "u" networks).
    """
    yolo.check_side(image)
    path = None if weights is None else find(weights, "model.weights")
    net = YOLO(name).eval()
    classes: tuple[str, ...] = ()
    if path is None:
        checkpoint, classes = ultralytics_hub.load_published(net, name)
    else:
        checkpoint = load_into(net, path)
    _drop_bins(net.model[-1], path)
    layers, skipped = geometry.find(net)
    head = f"model.{len(net.model) - 1}"
    maps = range(len(yolo.STRIDES))
    first_and_last = (
        layers[0].name,
        *(f"{head}.cv2.{i}.2" for i in maps),
        *(f"{head}.cv3.{i}.2" for i in maps),
    )
    prepare = partial(yolo.prepare, size=image)
    decoder = partial(decode, **_rows(image))
    return Model(
        net,
        layers,
        (3, image, image),
        checkpoint,
        prepare,
        skipped,
        expected or {},
        decoder,
        first_and_last,
        yolo.SPAN,
        classes,
    )


def _drop_bins(head: Any, path: Path | None) -> None:
    """Remove the convolution for the mean over bins: its weights are fixed, and `decode` has it."""
    weight = head.dfl.conv.weight.flatten()
    if not torch.equal(weight, torch.arange(BINS, dtype=weight.dtype)):
        raise SqError(
            f"{path or 'published weights'}: the head's bins are not 0 to {BINS - 1}: bring other "
            "weights"
        )
    del head.dfl
