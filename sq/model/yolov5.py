"""yolov5: the detectors of ultralytics/yolov5, release 6, whose head predicts offsets from anchor boxes.

They are other networks than ultralytics' own `yolov5nu` (sq/model/ultralytics.py): layers 0 to 23
are the same, the head is not. Parameter names are those of the release: `model.0` to `model.24`.
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

CLASSES, SHAPES = 80, 3  # classes of COCO; anchor boxes per cell
FIELDS = 5 + CLASSES  # of a prediction: x, y, width, height, objectness, classes


class AnchorHead(nn.Module):
    """A 1x1 convolution per map: 3 predictions of 85 fields in every cell."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(c, SHAPES * FIELDS, 1) for c in channels)
        # width, height, in cells
        self.register_buffer("anchors", torch.zeros(len(channels), SHAPES, 2))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map (B, C, H, W) of each stride to (B, N, 85): stride after stride, anchor after anchor, row after row."""
        found = [
            conv(x).unflatten(1, (SHAPES, FIELDS)) for conv, x in zip(self.m, maps, strict=True)
        ]
        return torch.cat([y.permute(0, 1, 3, 4, 2).flatten(1, 3) for y in found], 1)


class YOLOv5(yolo.Routed):
    """The network of one `size`, with the anchor head in place of the one that ultralytics builds."""

    def __init__(self, size: str):
        built = yolo.build("yolov5", size)
        other: Any = built[-1]
        head = AnchorHead([branch[0].conv.in_channels for branch in other.cv2])
        head.f = other.f
        super().__init__(nn.Sequential(*built[:-1], head))


def decode(
    raw: Tensor, *, corners: Tensor, anchors: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor]:
    """Return boxes and scores of raw predictions.

    Parameters
    ----------
    raw : (B, N, 85), before the sigmoid
    corners : (N, 2): column and row of each prediction's cell
    anchors : (N, 2): width and height of its anchor box, pixels
    strides : (N, 1): side of its cell, pixels

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
    p = raw.sigmoid()
    centre = (2 * p[..., :2] - 0.5 + corners) * strides
    half = (2 * p[..., 2:4]) ** 2 * anchors / 2
    return torch.cat([centre - half, centre + half], -1), p[..., 4:5] * p[..., 5:]


def _rows(anchors: Tensor, image: int) -> dict[str, Tensor]:
    """Return what `decode` must know of each of the N predictions, in the order of the head."""
    parts: dict[str, list[Tensor]] = {"corners": [], "anchors": [], "strides": []}
    for stride, shapes in zip(yolo.STRIDES, anchors, strict=True):
        cells = yolo.cells(image, stride)
        parts["corners"].append(cells.repeat(SHAPES, 1))
        parts["anchors"].append((shapes * stride).repeat_interleave(len(cells), 0))
        parts["strides"].append(torch.full((SHAPES * len(cells), 1), float(stride)))
    return {name: torch.cat(part) for name, part in parts.items()}


def load(
    *,
    size: Literal["n", "s", "m", "l", "x"],
    weights: str,
    image: Count,
    expected: Expected,
) -> Model:
    """Load a trained network, ready to evaluate.

    Parameters
    ----------
    size : n(ano), s(mall), m(edium), l(arge), x
    weights : a .safetensors, .pth or .pt state dict; a relative path is looked for here, then in
    $SQ_DATA
    image : side of the square an image is letterboxed to, pixels; a multiple of 32
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
    found, skipped = geometry.find(net)
    head = f"model.{len(net.model) - 1}"
    ends = (found[0].name, *(f"{head}.m.{i}" for i in range(len(yolo.STRIDES))))
    decoder = partial(decode, **_rows(net.get_buffer(f"{head}.anchors").clone(), image))
    prepare = partial(yolo.prepare, size=image)
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
    )
