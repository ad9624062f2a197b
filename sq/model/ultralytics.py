"""ultralytics: YOLOv8, YOLO11 and YOLOv5u, whose head predicts distances from the centre of each cell.

The network stops before the head's decoding: what it returns are convolutions' outputs, and
`decode` is ours.
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
SIDES = 4

Name = Literal[
    "yolov5nu", "yolov5su", "yolov5mu", "yolov5lu", "yolov5xu",
    "yolov8n", "yolov8s", "yolov8m", "yolov8l", "yolov8x",
    "yolo11n", "yolo11s", "yolo11m", "yolo11l", "yolo11x",
]  # fmt: skip


class RawHead(nn.Module):
    """The convolutions of ultralytics' head, and none of its decoding."""

    def __init__(self, head: Any):
        super().__init__()
        self.f, self.cv2, self.cv3, self.dfl = head.f, head.cv2, head.cv3, head.dfl

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map (B, C, H, W) of each stride to (B, N, 64 + classes): stride after stride, row after row."""
        found = [
            torch.cat([box(x), kind(x)], 1).flatten(2)
            for box, kind, x in zip(self.cv2, self.cv3, maps, strict=True)
        ]
        return torch.cat(found, 2).mT


class YOLO(yolo.Routed):
    """The network called `name`, up to its raw predictions."""

    def __init__(self, name: str):
        match = re.fullmatch(r"(yolo(?:v5|v8|11))([nsmlx])u?", name)
        assert match, name
        built = yolo.build(match[1], match[2])
        super().__init__(nn.Sequential(*built[:-1], RawHead(built[-1])))


def decode(raw: Tensor, *, centres: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes and scores of raw predictions.

    Parameters
    ----------
    raw : (B, N, 64 + classes): 16 logits for each of left, top, right, bottom, then the classes'
    logits
    centres : (N, 2): column and row of the centre of each prediction's cell
    strides : (N, 1): side of its cell, pixels

    Returns
    -------
    boxes : (B, N, 4): left, top, right, bottom, in pixels of the network's input
    scores : (B, N, classes): class probabilities

    Source
    ------
    Li et al. 2020, Generalized Focal Loss, arXiv 2006.04388, equation 4 and section 3.2: a distance
    is the mean of a softmax over 0 .. 15 cells.
    """
    share = raw[..., : SIDES * BINS].unflatten(-1, (SIDES, BINS)).softmax(-1)
    distance = share @ torch.arange(BINS, dtype=raw.dtype, device=raw.device)
    boxes = torch.cat([centres - distance[..., :2], centres + distance[..., 2:]], -1) * strides
    return boxes, raw[..., SIDES * BINS :].sigmoid()


def _rows(image: int) -> dict[str, Tensor]:
    """Return what `decode` must know of each of the N predictions, in the order of the head."""
    cells = [yolo.cells(image, stride) for stride in yolo.STRIDES]
    strides = [
        torch.full((len(c), 1), float(stride))
        for c, stride in zip(cells, yolo.STRIDES, strict=True)
    ]
    return {"centres": torch.cat(cells) + 0.5, "strides": torch.cat(strides)}


def load(
    *,
    name: Name,
    weights: str | None,
    image: Count,
    expected: Expected,
) -> Model:
    """Load a trained network, ready to evaluate.

    Parameters
    ----------
    name : as ultralytics calls it
    weights : a .safetensors, .pth or .pt state dict; a relative path is looked for here, then in
    $SQ_DATA.
        None takes what ultralytics publishes, from torch's folder of checkpoints or the internet.
    image : side of the square an image is letterboxed to, pixels; a multiple of 32
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
    checkpoint, classes = (
        ultralytics_hub.load_published(net, name) if path is None else (load_into(net, path), ())
    )
    _drop_bins(net.model[-1], path)
    found, skipped = geometry.find(net)
    last = [
        f"model.{len(net.model) - 1}.{kind}.{i}.2"
        for kind in ("cv2", "cv3")
        for i in range(len(yolo.STRIDES))
    ]
    prepare, decoder = partial(yolo.prepare, size=image), partial(decode, **_rows(image))
    ends = (found[0].name, *last)
    return Model(
        net,
        found,
        (3, image, image),
        checkpoint,
        prepare,
        skipped,
        expected or {},
        decoder,
        ends,
        yolo.SPAN,
        classes,
    )


def _drop_bins(head: Any, path: Path | None) -> None:
    """Take out the convolution that checkpoints carry for the mean over bins: fixed to 0 .. 15, it is in `decode`."""
    weight = head.dfl.conv.weight.flatten()
    if not torch.equal(weight, torch.arange(BINS, dtype=weight.dtype)):
        raise SqError(
            f"{path or 'published weights'}: the head's bins are not 0 to {BINS - 1}: bring other weights"
        )
    del head.dfl
