import hashlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from cli_helpers import compose, error_line, run
from safetensors.torch import save_file

from sq.config.instantiate import build
from sq.dataset import loading
from sq.errors import SqError
from sq.evaluation.evaluate import NetworkEvaluator
from sq.metric import top1
from sq.model import cifar_resnet
from sq.model.cifar_resnet import Block, CifarResNet

# He et al. 2015, table 6: millions of parameters.
PAPER = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}


def load(depth, weights):
    return cifar_resnet.load(
        depth=depth, weights=weights, mean=[0.5] * 3, std=[0.2] * 3, expected=None
    )


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return CifarResNet(20).state_dict()


@pytest.mark.parametrize("depth", PAPER)
def test_size_is_the_papers(depth, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(CifarResNet(depth).state_dict(), path)
    model = load(depth=depth, weights=str(path))
    assert len(model.layers) == depth
    assert {layer.kind for layer in model.layers} == {"3x3", "linear"}
    assert model.skipped == []
    assert model.input == (3, 32, 32)
    assert not model.net.training
    parameters = sum(p.numel() for p in model.net.parameters())
    assert parameters / 1e6 == pytest.approx(PAPER[depth], abs=0.05 if depth == 110 else 0.006)


def test_shapes_of_the_stages():
    net, x = CifarResNet(20).eval(), torch.randn(2, 16, 32, 32)
    assert net.layer1(x).shape == (2, 16, 32, 32)
    assert net.layer2(x).shape == (2, 32, 16, 16)
    assert net.layer3(net.layer2(x)).shape == (2, 64, 8, 8)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_shortcut_takes_every_other_pixel_and_adds_zero_channels():
    x = torch.randn(2, 16, 8, 8)
    y = Block(16, 32, 2).shortcut(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()
    assert Block(16, 16, 1).shortcut(x) is x


@pytest.mark.parametrize(("name", "depth", "right"), [("resnet20", 20, 915), ("resnet32", 32, 928)])
def test_full_precision_top1_is_that_of_the_weights(name, depth, right, cifar10):
    part = compose(f"model={name}")[0]["model"]
    model = build(part, "model")()
    stored = Path(os.environ["SQ_DATA"]) / part["weights"]
    assert model.checkpoint == hashlib.sha256(stored.read_bytes()).hexdigest()
    assert len(model.layers) == depth
    found = (
        NetworkEvaluator(model, top1.measure, cifar10.test, 250, torch.device("cpu"))
        .measure(model.net)
        .figures
    )
    # rounding may turn an image with two best logits alike
    assert found["top1"] == pytest.approx(right / 10, abs=0.2)
    assert model.expected[cifar10.name]["top1"] == right / 10


# Files people share.


def as_it_is(state):
    return state


def wrapped(state):
    return {"state_dict": state, "epoch": 200, "best_prec1": 91.7}


def parallel(state):
    return OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())


def wrapped_and_parallel(state):
    return wrapped(parallel(state))


def half(state):
    return {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def without_counters(state):
    return {
        name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize(
    "shape", [as_it_is, wrapped, parallel, wrapped_and_parallel, half, without_counters]
)
def test_checkpoints_as_they_are_shared(shape, suffix, state, tmp_path):
    path = tmp_path / f"net{suffix}"
    torch.save(shape(state), path)
    model = load(depth=20, weights=str(path))
    assert model.checkpoint == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, tensor in model.net.state_dict().items():
        wanted = state[name].half().float() if shape is half else state[name]
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name


def test_safetensors_serve_too(state, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(parallel(state), path)
    model = load(depth=20, weights=str(path))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.net.state_dict().items())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncated(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path, state):
    path.write_bytes(b"")


def a_page(path, state):
    path.write_text("<html>not found</html>")


def a_folder(path, state):
    path.mkdir()


def whole_network(path, state):
    torch.save(CifarResNet(20), path)


def code(path, state):
    torch.save({"state_dict": state, "trap": Trap(path.with_name("sprung"))}, path)


def bare_pickle(path, state):
    path.write_bytes(pickle.dumps(Trap(path.with_name("sprung")), protocol=2))


def a_list(path, state):
    torch.save(list(state.values()), path)


def numbers(path, state):
    torch.save({**state, "epoch": 200}, path)


def no_tensors(path, state):
    torch.save({}, path)


def deeper(path, state):
    torch.save(CifarResNet(32).state_dict(), path)


def shallower(path, state):
    torch.save({name: t for name, t in state.items() if not name.startswith("layer3.2")}, path)


def broken(path, state):
    torch.save({**state, "linear.bias": torch.full((10,), float("nan"))}, path)


def other_classes(path, state):
    torch.save({**state, "linear.bias": torch.zeros(100)}, path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (truncated, "not a whole PyTorch checkpoint"),
        (empty, r"not a whole PyTorch checkpoint: it is empty \(0 bytes\)"),
        (a_page, "not a whole PyTorch checkpoint: it is a page of HTML"),
        (a_folder, "no weights file"),
        (
            whole_network,
            r"more than tensors \(sq\.model\.cifar_resnet\.CifarResNet\).*state_dict\(\)",
        ),
        (code, r"more than tensors \(\w+\.mkdir\), .*could run foreign code"),
        (bare_pickle, r"more than tensors \(\w+\.mkdir\)"),
        (a_list, "holds no state dict"),
        (numbers, "holds no state dict"),
        (no_tensors, "another network than CifarResNet: .* missing"),
        (deeper, r"another network.*not in the network \(layer1\.3"),
        (shallower, r"another network.*missing \(layer3\.2"),
        (other_classes, r"another network.*linear\.bias \(100,\)"),
        (broken, r"NaN or infinity in linear\.bias"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_checkpoint_is_named(tmp_path, state, write, says):
    path = tmp_path / "net.pth"
    write(path, state)
    with pytest.raises(SqError, match=says) as caught:
        load(depth=20, weights=str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists(), "code in a checkpoint was run"


def test_file_of_another_kind(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("")
    with pytest.raises(
        SqError, match=r"net\.onnx: weights are read from \.safetensors, \.pth, \.pt, \.ckpt, "
    ):
        load(depth=20, weights=str(path))


@pytest.mark.parametrize("depth", [18, 0, "20", None])
def test_depth_that_there_is_not(depth):
    part = compose("model=resnet20")[0]["model"] | {"depth": depth}
    got = "null" if depth is None else depth
    with pytest.raises(SqError, match=rf"model\.depth={got}: should be 20, 32, 44, 56 or 110"):
        build(part, "model")


@pytest.mark.parametrize(
    "knobs",
    [
        {"std": [0.2, 0.0, 0.2]},
        {"std": [0.2]},
        {"mean": [0.1] * 4},
        {"mean": 0.5},
        {"mean": ["a"] * 3},
    ],
)
def test_normalisation_that_makes_no_sense(knobs):
    part = compose("model=resnet20")[0]["model"] | knobs
    with pytest.raises(SqError, match=rf"model\.{next(iter(knobs))}="):
        build(part, "model")


@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_real_images_are_near_what_the_network_normalises_to(name, cifar10):
    model = build(compose(f"model={name}")[0]["model"], "model")()
    x = loading.load(cifar10.train, range(0, 4000, 10), model.prepare, "images").x
    # CIFAR's own statistics differ from ImageNet's, which these weights were trained with.
    assert x.mean((0, 2, 3)).abs().max() < 0.3
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.2


# From the command line.


@pytest.mark.one_arithmetic("a message of a process, without a number")
def test_data_folder_that_is_not_named_is_one_line(tmp_path):
    done = run(tmp_path, "model=resnet20", "dataset=cifar10", SQ_DATA="")
    line = error_line(done)
    assert done.returncode == 1
    assert "model.weights=weights/cifar10_resnet20.pth" in line
    assert "set SQ_DATA to the folder that holds weights/, cifar10/, imagenet/ and coco/" in line


@pytest.mark.one_arithmetic("a message of a process, without a number")
def test_images_of_another_network_are_one_line(tmp_path, needs_data):
    data = str(Path(os.environ["SQ_DATA"]).resolve())
    line = error_line(run(tmp_path, "model=resnet20", "dataset=digits", SQ_DATA=data))
    assert "the image is 8x8 L, the network takes 32x32 RGB: choose a dataset of its kind" in line
