import hashlib
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sq.errors import SqError
from sq.model import digits_resnet


def test_weights_file_is_small(resnet):
    assert digits_resnet.WEIGHTS.stat().st_size <= 1e6
    assert resnet.checkpoint == hashlib.sha256(digits_resnet.WEIGHTS.read_bytes()).hexdigest()


def test_accuracy(resnet, digits_test):
    assert not resnet.net.training
    with torch.no_grad():
        right = (resnet.net(digits_test.x).argmax(1) == digits_test.y).double().mean()
    assert right >= 0.98


def test_every_kind_of_layer_is_there(resnet):
    assert {layer.kind for layer in resnet.layers} == {
        "3x3",
        "1x1",
        "3x3 grouped",
        "3x3 depthwise",
        "linear",
    }
    assert {layer.module.stride for layer in resnet.layers if layer.kind == "3x3"} >= {
        (1, 1),
        (2, 2),
    }
    assert resnet.skipped == []
    assert resnet.input == (1, 8, 8)
    parameters = sum(p.numel() for name, p in resnet.net.named_parameters() if p.ndim > 1)
    assert sum(layer.weights for layer in resnet.layers) == parameters


def test_network_equals_the_file(resnet):
    stored = load_file(digits_resnet.WEIGHTS)
    own = resnet.net.state_dict()
    assert set(stored) == {name for name in own if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(own[name], t.float()) for name, t in stored.items())
    assert all(t.dtype == torch.float32 for t in own.values() if t.is_floating_point())


def test_another_file_can_be_given(tmp_path, resnet):
    path = tmp_path / "mine.safetensors"
    stored = load_file(digits_resnet.WEIGHTS)
    stored["head.bias"] += 1
    save_file(stored, path)
    model = digits_resnet.load(weights=str(path), expected=None)
    assert model.checkpoint == hashlib.sha256(path.read_bytes()).hexdigest() != resnet.checkpoint
    torch.testing.assert_close(model.net.head.bias, resnet.net.head.bias + 1, rtol=0, atol=1e-2)


def truncated(path):
    path.write_bytes(digits_resnet.WEIGHTS.read_bytes()[:-100])


def header_cut(path):
    path.write_bytes(digits_resnet.WEIGHTS.read_bytes()[:20])


def empty(path):
    path.write_bytes(b"")


def not_safetensors(path):
    path.write_text("<html>not found</html>")


def missing(path):
    pass


def a_folder(path):
    path.mkdir()


def foreign(path):
    save_file({"fc.weight": torch.zeros(3, 3)}, path)


def tensor_missing(path):
    stored = load_file(digits_resnet.WEIGHTS)
    del stored["head.bias"]
    save_file(stored, path)


def reshaped(path):
    stored = load_file(digits_resnet.WEIGHTS)
    save_file(stored | {"head.bias": torch.zeros(11)}, path)


def holds(bad):
    def write(path):
        stored = load_file(digits_resnet.WEIGHTS)
        stored["stem.0.weight"][0, 0, 0, 0] = bad
        save_file(stored, path)

    return write


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (truncated, "not a whole safetensors file"),
        (header_cut, "not a whole safetensors file"),
        (empty, "not a whole safetensors file"),
        (not_safetensors, "not a whole safetensors file"),
        (missing, "no weights file"),
        (a_folder, "no weights file"),
        (foreign, r"another network.*fc\.weight"),
        (tensor_missing, r"another network.*1 missing \(head\.bias\)"),
        (reshaped, r"another network.*head\.bias \(11,\)"),
        (holds(float("nan")), r"NaN or infinity in stem\.0\.weight"),
        (holds(float("inf")), r"NaN or infinity in stem\.0\.weight"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_file_is_named(tmp_path, write, says):
    path = tmp_path / "mine.safetensors"
    write(path)
    with pytest.raises(SqError, match=says) as caught:
        digits_resnet.load(weights=str(path), expected=None)
    assert str(path) in str(caught.value)


def test_the_example_trains_a_network_that_can_be_loaded(tmp_path, monkeypatch):
    path = Path(__file__).resolve().parents[2] / "examples" / "train_digits.py"
    example = runpy.run_path(str(path))
    monkeypatch.setitem(example["fit"].__globals__, "EPOCHS", 1)
    file = tmp_path / "digits.safetensors"
    monkeypatch.setattr(sys, "argv", ["train_digits.py", "--out", str(file)])
    example["main"]()
    assert digits_resnet.load(weights=str(file), expected=None).net.head.out_features == 10
