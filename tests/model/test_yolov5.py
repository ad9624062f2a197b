import hashlib
import importlib.util
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from cli_helpers import compose
from PIL import Image
from torchvision.ops import batched_nms, box_iou

from sq.config.instantiate import build, check
from sq.errors import SqError
from sq.model import yolo, yolov5
from sq.model.letterbox import undo
from sq.model.yolov5 import YOLOv5
from sq.network import geometry

# not importorskip: that would import it with its side effects
if importlib.util.find_spec("ultralytics") is None:
    pytest.skip("ultralytics is not installed", allow_module_level=True)

# README of ultralytics/yolov5, release 6: millions of parameters, mAP50-95 on val2017.
PAPER = {
    "n": (1.9, 28.0),
    "s": (7.2, 37.4),
    "m": (21.2, 45.4),
    "l": (46.5, 49.0),
    "x": (86.7, 50.7),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    net = YOLOv5("n")
    net.model[24].anchors.copy_(torch.rand(3, 3, 2) * 10)
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def small(checkpoint):
    return yolov5.load(size="n", weights=str(checkpoint), image=64, expected=None)


@pytest.fixture(scope="module")
def trained(needs_data):
    return build(compose("model=yolov5n")[0]["model"], "model")()


@pytest.mark.parametrize("size", ["n", "s", "m"])
def test_sizes_are_those_of_the_release(size):
    net = YOLOv5(size)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(PAPER[size][0], abs=0.05)
    assert all(m.eps == 1e-3 for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert not any(getattr(m, "inplace", False) for m in net.modules())
    # Also that of the one layer that newer ultralytics builds without: the first convolution of
    # SPPF.
    convolutions = [m for m in net.modules() if type(m).__name__ == "Conv"]
    assert all(isinstance(m.act, torch.nn.SiLU) for m in convolutions)


@pytest.mark.parametrize("size", PAPER)
def test_configs_are_those_of_the_release(size):
    part = compose(f"model=yolov5{size}")[0]["model"]
    check(part, "model")
    assert part["size"] == size
    assert part["expected"]["coco"] == pytest.approx({"map": PAPER[size][1] / 100, "within": 0.005})


def test_what_the_model_says_of_itself(small):
    assert small.input == (3, 64, 64)
    assert small.skipped == []
    assert small.expected == {}
    convolutions = [name for name, m in small.net.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert [layer.name for layer in small.layers] == convolutions
    assert len(convolutions) == 60
    assert small.ends == ("model.0.conv", "model.24.m.0", "model.24.m.1", "model.24.m.2")
    assert set(small.ends) <= set(convolutions)
    assert not small.net.training
    x = pickle.loads(pickle.dumps(small.prepare))(Image.new("RGB", (128, 64)), False)
    assert x.shape == (3, 64, 64)
    assert not x[:, 16:48].any()


def test_every_layer_is_called_and_none_changes_its_input(small):
    called, changed = [], []

    def watch(name):
        def before(module, args):
            versions[name] = (args[0], args[0]._version) if torch.is_tensor(args[0]) else None

        def after(module, args, output):
            called.append(name)
            if versions[name] and versions[name][0]._version != versions[name][1]:
                changed.append(name)

        return before, after

    versions, handles = {}, []
    for name, module in small.net.named_modules():
        if not list(module.children()):
            before, after = watch(name)
            handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after),
            ]
    with torch.no_grad():
        small.net(torch.rand(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert {layer.name for layer in small.layers} <= set(called)
    assert changed == []


def test_predictions_of_every_cell(small):
    with torch.no_grad():
        raw = small.net(torch.rand(2, 3, 64, 64))
    assert raw.shape == (2, 3 * (64 + 16 + 4), 85)
    boxes, scores = small.decode(raw)
    assert boxes.shape == (2, 252, 4)
    assert scores.shape == (2, 252, 80)


def test_decode_is_the_formula_cell_by_cell(small):
    # From the maps of the head's convolutions themselves, so that the order of the rows is checked
    # too.
    maps, head = [], small.net.model[24]
    handles = [conv.register_forward_hook(lambda m, i, out: maps.append(out)) for conv in head.m]
    with torch.no_grad():
        raw = small.net(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for handle in handles:
        handle.remove()
    # random weights give almost zero
    noise = torch.randn(raw.shape[1:], generator=torch.Generator().manual_seed(1))
    boxes, scores = small.decode(raw + noise)
    row = 0
    for level, stride in enumerate((8, 16, 32)):
        side = 64 // stride
        for anchor in range(3):
            width, height = (head.anchors[level, anchor] * stride).tolist()
            for y in range(side):
                for x in range(side):
                    t = maps[level][0, 85 * anchor : 85 * (anchor + 1), y, x] + noise[row]
                    s = [1 / (1 + math.exp(-v)) for v in t.tolist()]
                    cx, cy = (2 * s[0] - 0.5 + x) * stride, (2 * s[1] - 0.5 + y) * stride
                    w, h = (2 * s[2]) ** 2 * width, (2 * s[3]) ** 2 * height
                    wanted = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                    assert boxes[0, row].tolist() == pytest.approx(wanted, abs=1e-3)
                    assert scores[0, row].tolist() == pytest.approx(
                        [s[4] * c for c in s[5:]], abs=1e-5
                    )
                    row += 1
    assert row == boxes.shape[1]


# With the trained network.


def test_checkpoint_fills_the_network_exactly(trained):
    path = Path(os.environ["SQ_DATA"]) / "weights" / "coco_yolov5n.pth"
    stored = torch.load(path, weights_only=True)
    own = trained.net.state_dict()
    assert {n for n in own if not n.endswith("num_batches_tracked")} == {
        n for n in stored if not n.endswith("num_batches_tracked")
    }
    assert all(
        torch.equal(own[name], tensor.to(own[name].dtype)) for name, tensor in stored.items()
    )
    assert trained.checkpoint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(p.numel() for p in trained.net.parameters()) == 1_872_157
    assert trained.expected["coco_sample"] == {"map": 0.337, "within": 0.01}
    assert geometry.find(trained.net) == (trained.layers, [])
    with torch.no_grad():
        assert trained.net(torch.zeros(1, 3, 640, 640)).shape == (1, 25200, 85)


def test_anchors_are_the_published_ones(trained):
    # In pixels: data/hyps of YOLOv5, "P5 anchors".
    anchors = trained.net.model[24].anchors * torch.tensor(yolo.STRIDES).view(3, 1, 1)
    assert anchors.flatten(1).tolist() == [
        [10, 13, 16, 30, 33, 23],
        [30, 61, 62, 45, 59, 119],
        [116, 90, 156, 198, 373, 326],
    ]


@pytest.mark.parametrize("place", [1, 3, 5])
def test_largest_objects_of_real_images_are_found(trained, place):
    root = Path(os.environ["SQ_DATA"]) / "coco"
    path = sorted((root / "images" / "val").glob("*.jpg"))[place]
    with Image.open(path) as image:
        image.load()
    shape = (image.height, image.width)
    with torch.no_grad():
        boxes, scores = trained.decode(trained.net(trained.prepare(image, False)[None]))
    best, kinds = scores[0].max(1)
    sure = best > 0.25
    boxes, best, kinds = undo(boxes[0, sure], shape, 640), best[sure], kinds[sure]
    keep = batched_nms(boxes, best, kinds, 0.6)
    boxes, kinds = boxes[keep], kinds[keep]
    labelled = root / "labels" / "val" / f"{path.stem}.txt"
    labels = torch.tensor(
        [[float(v) for v in line.split()] for line in labelled.read_text().splitlines()]
    )
    centre, half = labels[:, 1:3], labels[:, 3:] / 2
    wanted = torch.cat([centre - half, centre + half], 1) * torch.tensor(
        [shape[1], shape[0]]
    ).repeat(2)
    largest = int((labels[:, 3] * labels[:, 4]).argmax())
    same = kinds == labels[largest, 0]
    assert same.any()
    assert box_iou(boxes[same], wanted[largest : largest + 1]).max() > 0.7


# What a user may get wrong.


@pytest.mark.parametrize("image", [650, 16, 100])
def test_side_that_strides_do_not_divide(checkpoint, image):
    with pytest.raises(
        SqError, match=rf"model\.image={image}: should be a multiple of 32: take \d+, or \d+"
    ):
        yolov5.load(size="n", weights=str(checkpoint), image=image, expected=None)


def test_weights_that_are_not_there(monkeypatch):
    monkeypatch.delenv("SQ_DATA", raising=False)
    with pytest.raises(
        SqError, match=r"model\.weights=weights/coco_yolov5s\.pth: not in the working directory"
    ):
        yolov5.load(size="s", weights="weights/coco_yolov5s.pth", image=640, expected=None)


def test_weights_of_another_size(checkpoint):
    with pytest.raises(SqError, match=r"another network than YOLOv5: .* of another shape"):
        yolov5.load(size="s", weights=str(checkpoint), image=640, expected=None)
