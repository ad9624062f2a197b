"""Single layers as ONNX models: what they compute, and which of them are alike."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sq import layers, onnx_layers, onnx_model
from sq.types import Model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.strided = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.line = nn.Linear(4, 3)

    def forward(self, x):
        y = self.strided(self.second(self.second(self.first(x))))
        return self.line(y.mean((2, 3)))


def net_of():
    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    return Model(net, layers.find(net)[0], (4, 8, 8), "", None)


def run(model, x):
    session = onnx_model.open_session(model.SerializeToString(), 1)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_layers_of_one_geometry_are_timed_once_for_each_call():
    found = onnx_layers.geometries(net_of(), torch.zeros(2, 4, 8, 8))
    told = [(own.shape, [layer.name for layer in own.layers]) for own in found]
    assert told == [
        ((2, 4, 8, 8), ["first", "second", "second"]),
        ((2, 4, 8, 8), ["strided"]),
        ((2, 4), ["line"]),
    ]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_layer_in_full_precision_computes_what_it_does(index):
    own = onnx_layers.geometries(net_of(), torch.zeros(2, 4, 8, 8))[index]
    x = onnx_layers.fed((32, 32), own.shape)
    torch.testing.assert_close(run(own.model((32, 32)), x), own.module(x))


@pytest.mark.parametrize("bits", [4, 8])
def test_floats_in_floats_out_where_inputs_are_in_full_precision(bits):
    own = onnx_layers.geometries(net_of(), torch.zeros(2, 4, 8, 8))[0]
    x = onnx_layers.fed((bits, 32), own.shape)
    codes, grid = onnx_layers.eight(layers.weight(own.module), bits)
    W = grid.decode(codes).view(own.module.weight.shape)
    torch.testing.assert_close(run(own.model((bits, 32)), x), F.conv2d(x, W, own.module.bias, padding=1))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_codes_in_codes_out_where_inputs_are_quantized(index, bits):
    own = onnx_layers.geometries(net_of(), torch.zeros(2, 4, 8, 8))[index]
    x, model = onnx_layers.fed((bits, 8), own.shape), own.model((bits, 8))
    onnx.checker.check_model(model, full_check=True)
    got = run(model, x)
    assert x.dtype == got.dtype == torch.uint8
    codes, grid = onnx_layers.eight(layers.weight(own.module), bits)
    module = own.module.__class__.__new__(own.module.__class__)
    module.__dict__ = own.module.__dict__ | {"_parameters": dict(own.module._parameters)}
    module.weight = nn.Parameter(grid.decode(codes).view(own.module.weight.shape))
    wanted = (module(x / 255) * 255).round().clamp(0, 255)
    assert (got.float() - wanted).abs().max() <= 1, "a rounding may fall on the other side"


def test_integer_kernels_are_found_by_onnxruntime(tmp_path):
    import onnxruntime as ort

    own = onnx_layers.geometries(net_of(), torch.zeros(2, 4, 8, 8))[0]
    how = ort.SessionOptions()
    how.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    how.log_severity_level = 3
    ort.InferenceSession(own.model((8, 8)).SerializeToString(), how, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert [kind for kind in kinds if kind != "Transpose"] == ["QLinearConv"]


def test_eight_bits_are_rounded_to_nearest_on_each_channels_range():
    W = torch.tensor([[[0.5, -1.0, 0.25], [2.0, 0.0, 1.0]]])
    codes, grid = onnx_layers.eight(W)
    assert codes.min() >= 0
    assert codes.max() <= 255
    torch.testing.assert_close(grid.scale, torch.tensor([[[2.0], [4.0]]]) / 255)
    assert (grid.decode(codes) - W).abs().max() <= grid.scale.max()
