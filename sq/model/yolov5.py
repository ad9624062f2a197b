"""yolov5: the detectors of ultralytics/yolov5, release 6, which predict offsets from anchor boxes.

They differ from `yolov5nu` of the package ultralytics (sq/model/ultralytics.py) in the head; layers
0 to 23 are the same. Parameter names are those of the release: `model.0` to `model.24`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sq.config.constraints import Count, Expected
from sq.config.data_paths import find
from sq.model import yolo
from sq.model.state_dict import load_into
from sq.network import geometry
from sq.types.problem import Model

CLASSES = 80  # of COCO
ANCHORS = 3  # anchor boxes per cell
FIELDS = 5 + CLASSES  # of a prediction: x, y, width, height, objectness, classes


class AnchorHead(nn.Module):
    """A 1x1 convolution per map: 3 predictions of 85 fields in every cell."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(c, ANCHORS * FIELDS, 1) for c in channels)
        # width and height, in cells
        self.register_buffer("anchors", torch.zeros(len(channels), ANCHORS, 2))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map (B, C, H, W) of each stride to (B, N, 85), ordered by stride, anchor and row."""
        predictions: list[Tensor] = []
        for conv, x in zip(self.m, maps, strict=True):
            y = conv(x).unflatten(1, (ANCHORS, FIELDS))  # (B, anchors, fields, H, W)
            predictions.append(y.permute(0, 1, 3, 4, 2).flatten(1, 3))
        return torch.cat(predictions, 1)


class YOLOv5(yolo.Routed):
    """The network of one `size`, with an anchor head instead of the head of ultralytics."""

    def __init__(self, size: str):
        layers = yolo.build("yolov5", size)
        built_head: Any = layers[-1]
        head = AnchorHead([branch[0].conv.in_channels for branch in built_head.cv2])
        head.f = built_head.f
        super().__init__(nn.Sequential(*layers[:-1], head))


def decode(
    raw: Tensor, *, corners: Tensor, anchors: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor]:
    """Return boxes and scores of raw predictions.

    Parameters
    ----------
    raw : (B, N, 85), before the sigmoid
    corners : (N, 2): column and row of the cell of each prediction
    anchors : (N, 2): width and height of the anchor box, pixels
    strides : (N, 1): side of the cell, pixels

    Returns
    -------
    boxes : (B, N, 4): left, top, right, bottom, in pixels of the network's input
    scores : (B, N, 80): objectness times class probability

    Source
    ------
    docs.ultralytics.com/yolov5/tutorials/architecture_description, "Eliminate Grid Sensitivity":
    b_x = 2 s(t_x) - 0.5 + c_x, b_w = p_w (2 s(t_w))^2, with s the sigmoid, c the cell, p the anchor
    box.
    """
    p = raw.sigmoid()  # x, y, width, height, objectness, classes
    centre = (2 * p[..., :2] - 0.5 + corners) * strides
    half = (2 * p[..., 2:4]) ** 2 * anchors / 2
    return torch.cat([centre - half, centre + half], -1), p[..., 4:5] * p[..., 5:]


def _rows(anchors: Tensor, image: int) -> dict[str, Tensor]:
    """Return the arguments of `decode` for each of the N predictions, in the order of the head."""
    parts: dict[str, list[Tensor]] = {"corners": [], "anchors": [], "strides": []}
    for stride, shapes in zip(yolo.STRIDES, anchors, strict=True):
        cells = yolo.cells(image, stride)
        parts["corners"].append(cells.repeat(ANCHORS, 1))
        parts["anchors"].append((shapes * stride).repeat_interleave(len(cells), 0))
        parts["strides"].append(torch.full((ANCHORS * len(cells), 1), float(stride)))
    return {name: torch.cat(part) for name, part in parts.items()}


def load(
    *,
    size: Literal["n", "s", "m", "l", "x"],
    weights: str,
    image: Count,
    expected: Expected,
) -> Model:
    """Load a trained network in eval mode.

    Parameters
    ----------
    size : n(ano), s(mall), m(edium), l(arge), x
    weights : a .safetensors, .pth or .pt state dict; a relative path is looked for here, then in
        $SQ_DATA
    image : side of the letterboxed square, pixels; a multiple of 32
    expected : full-precision figures, by the name of the image set

    Raises
    ------
    SqError : ultralytics is missing; the file is missing, damaged, more than tensors, or of another
        network

    Source
    ------
    Jocher et al., YOLOv5 v6.0, doi 10.5281/zenodo.5563715.
    """
    yolo.check_side(image)
    path = find(weights, "model.weights")
    net = YOLOv5(size).eval()
    checkpoint = load_into(net, path)
    layers, skipped = geometry.find(net)
    head = f"model.{len(net.model) - 1}"
    first_and_last = (layers[0].name, *(f"{head}.m.{i}" for i in range(len(yolo.STRIDES))))
    decoder = partial(decode, **_rows(net.get_buffer(f"{head}.anchors").clone(), image))
    prepare = partial(yolo.prepare, size=image)
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
    )
