import hashlib
import importlib.util
import pickle
import re

import pytest
import torch
from cli_helpers import compose
from PIL import Image
from torch import nn

from sq.config.instantiate import build, check
from sq.errors import SqError
from sq.model import ultralytics, ultralytics_hub, yolo
from sq.model.ultralytics import YOLO, decode

# not importorskip: that would import it with its side effects
if importlib.util.find_spec("ultralytics") is None:
    pytest.skip("ultralytics is not installed", allow_module_level=True)

# docs.ultralytics.com/models: mAP50-95 on val2017, millions of parameters.
PAPER = {"yolov5nu": (34.3, 2.6), "yolov8n": (37.3, 3.2), "yolo11n": (39.5, 2.6)}
NAMES = list(PAPER)


def whole(name):
    # ultralytics' own network with random weights, and predictions that are not all alike.
    with yolo._quietly():
        from ultralytics.nn.tasks import DetectionModel

        torch.manual_seed(0)
        net = DetectionModel(f"{name.removesuffix('u')}.yaml", verbose=False).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(1, 2)
    for branch in (*net.model[-1].cv2, *net.model[-1].cv3):
        branch[-1].weight.data.mul_(10)
        branch[-1].bias.data.normal_()
    return net


@pytest.fixture(scope="module")
def own():
    return {name: whole(name) for name in NAMES}


@pytest.fixture
def saved(own, tmp_path):
    paths = {name: tmp_path / f"{name}.pth" for name in NAMES}
    for name, path in paths.items():
        torch.save(own[name].state_dict(), path)
    return paths


@pytest.fixture
def published(own, tmp_path, monkeypatch):
    # A network as the hub has it: pickled whole, in half precision, with what training left beside
    # it.
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(folder.parent))
    whole = pickle.loads(pickle.dumps(own["yolov8n"])).half()
    torch.save(
        {"model": whole, "ema": None, "epoch": -1, "train_args": {"imgsz": 640}},
        folder / "yolov8n.pt",
    )
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_ultralytics(name, own, saved):
    model = ultralytics.load(name=name, weights=str(saved[name]), image=128, expected=None)
    x = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        raw = model.net(x)
        wanted = own[name](x)[0].mT  # x, y, width, height, class probabilities
    assert raw.shape == (2, 256 + 64 + 16, 144)
    boxes, scores = model.decode(raw)
    centre, half = wanted[..., :2], wanted[..., 2:4] / 2
    assert wanted[..., 4:].std() > 1e-3
    assert centre.std() > 10
    torch.testing.assert_close(
        boxes, torch.cat([centre - half, centre + half], -1), atol=1e-4, rtol=1e-6
    )
    torch.testing.assert_close(scores, wanted[..., 4:], atol=1e-6, rtol=1e-4)


def test_decode_by_hand():
    # All of the distribution on 1, 2, 3 and 4 cells; halves of it on 0 and 15.
    raw = torch.full((1, 1, 66), -1e4)
    for side, bin in enumerate((1, 2, 3, 4)):
        raw[0, 0, 16 * side + bin] = 0
    raw[0, 0, 64:] = torch.tensor([0.0, 1e4])
    boxes, scores = decode(raw, centres=torch.tensor([[5.5, 9.5]]), strides=torch.tensor([[8.0]]))
    assert boxes[0, 0].tolist() == [36, 60, 68, 108]
    assert scores[0, 0].tolist() == [0.5, 1]
    raw[0, 0, :16] = -1e4
    raw[0, 0, [0, 15]] = 0
    assert (
        decode(raw, centres=torch.tensor([[5.5, 9.5]]), strides=torch.tensor([[8.0]]))[0][0, 0, 0]
        == 44 - 8 * 7.5
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_the_model_says_of_itself(name, own, saved):
    model = ultralytics.load(
        name=name, weights=str(saved[name]), image=64, expected={"coco": {"map": 0.3}}
    )
    assert model.checkpoint == hashlib.sha256(saved[name].read_bytes()).hexdigest()
    assert model.input == (3, 64, 64)
    assert model.expected == {"coco": {"map": 0.3}}
    assert model.skipped == []
    convolutions = [
        n for n, m in own[name].named_modules() if isinstance(m, nn.Conv2d) and ".dfl." not in n
    ]
    assert sorted(layer.name for layer in model.layers) == sorted(convolutions)
    kept = {n: t for n, t in own[name].state_dict().items() if ".dfl." not in n}
    found = model.net.state_dict()
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[n], t) for n, t in kept.items())
    head = len(model.net.model) - 1
    assert model.ends[0] == "model.0.conv"
    assert set(model.ends[1:]) == {
        f"model.{head}.{kind}.{i}.2" for kind in ("cv2", "cv3") for i in range(3)
    }
    assert set(model.ends) <= set(convolutions)
    called = set()
    for layer in model.layers:
        layer.module.register_forward_hook(lambda *_, name=layer.name: called.add(name))
    x = pickle.loads(pickle.dumps(model.prepare))(Image.new("RGB", (60, 30)), True)
    with torch.no_grad():
        model.net(x[None])
    assert called == {layer.name for layer in model.layers}


@pytest.mark.parametrize("name", NAMES)
def test_configs(name):
    part = compose(f"model={name}")[0]["model"]
    check(part, "model")
    assert part["name"] == name
    assert part["weights"] is None
    assert part["expected"]["coco"]["map"] == pytest.approx(PAPER[name][0] / 100)
    assert sum(p.numel() for p in YOLO(name).parameters()) / 1e6 == pytest.approx(
        PAPER[name][1], abs=0.06
    )


# Weights that ultralytics publishes.


def test_published_network_is_read_without_its_code(own, published):
    model = build(compose("model=yolov8n")[0]["model"], "model")()
    stored = published / "yolov8n.pt"
    assert model.checkpoint == hashlib.sha256(stored.read_bytes()).hexdigest()
    wanted = own["yolov8n"].state_dict()
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(tensor, wanted[name].half().to(tensor.dtype)), name
    assert ultralytics_hub.tensors(stored).keys() == wanted.keys()


def test_no_internet_is_one_line(published, monkeypatch):
    monkeypatch.setattr(ultralytics_hub, "RELEASE", "http://127.0.0.1:9/v")
    with pytest.raises(SqError) as caught:
        ultralytics.load(name="yolo11n", weights=None, image=64, expected=None)
    assert "\n" not in str(caught.value)
    assert f"put the file at {published / 'yolo11n.pt'}, or give model.weights=PATH" in str(
        caught.value
    )


# What a user may get wrong.


def test_pickled_network_as_local_weights_is_refused(published):
    with pytest.raises(
        SqError, match=r"more than tensors \(ultralytics\..*\).*could run foreign code"
    ):
        ultralytics.load(
            name="yolov8n", weights=str(published / "yolov8n.pt"), image=64, expected=None
        )


def test_weights_of_another_network(saved):
    with pytest.raises(SqError, match=r"another network than YOLO"):
        ultralytics.load(name="yolo11n", weights=str(saved["yolov8n"]), image=64, expected=None)


def test_bins_that_were_trained(own, tmp_path):
    state = own["yolov8n"].state_dict()
    name = next(n for n in state if ".dfl." in n)
    path = tmp_path / "net.pth"
    torch.save({**state, name: state[name] + 1}, path)
    with pytest.raises(SqError, match=r"net\.pth: .* bins are not 0 to 15"):
        ultralytics.load(name="yolov8n", weights=str(path), image=64, expected=None)


@pytest.mark.parametrize("name", ["yolov5n", "yolov8", "yolo11n-seg", "yolo26n", "../x"])
def test_name_that_there_is_not(name):
    part = compose("model=yolov8n")[0]["model"] | {"name": name}
    with pytest.raises(SqError, match=rf"model\.name={re.escape(name)}: should be 'yolov5nu'"):
        build(part, "model")
