"""Single layers as ONNX models: what they compute, what stands next to them, and which of them are alike."""

import onnx
import pytest
import shared_exports
import torch
from learned_problems import problem_of
from tolerances import assert_near, of_layers
from torch import nn
from torch.nn import functional as F

from sq.errors import SqError
from sq.export import onnx_export, onnx_session
from sq.export.onnx_export import Neighbours, Parts
from sq.grid.uniform_grid import per_tensor
from sq.latency import integer_regions, layer_timing
from sq.network import geometry
from sq.types.problem import Model

BETWEEN = Neighbours(codes_in=True, codes_out=True)
ALONE = Neighbours(codes_in=False, codes_out=False)


@pytest.fixture(autouse=True)
def exporter(monkeypatch):
    monkeypatch.setattr(onnx_export, "exported", shared_exports.exported)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.strided = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.line = nn.Linear(4, 3)

    def forward(self, x):
        y = self.strided(self.second(F.relu6(self.second(self.first(x).relu()))).sigmoid())
        return self.line(self.reflecting(y).mean((2, 3)))


def net_of():
    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    return Model(net, geometry.find(net)[0], (4, 8, 8), "", None)


def alike(model, beside=BETWEEN):
    return layer_timing.geometries(
        model, torch.zeros(2, 4, 8, 8), {layer.name: beside for layer in model.layers}
    )


def run(model, x):
    """Return what a model says: sums of bytes are exact on processors without VNNI as well."""
    return onnx_session.Session(model.SerializeToString(), onnx_session.EXACT_SUMS)(x)


def test_layers_that_are_called_alike_are_timed_once():
    found = alike(net_of())
    told = [(own.shape, [layer.name for layer in own.layers]) for own in found]
    assert told == [
        ((2, 4, 8, 8), ["first", "second", "second"]),
        ((2, 4, 8, 8), ["strided"]),
        ((2, 4, 4, 4), ["reflecting"]),
        ((2, 4), ["line"]),
    ]


def test_layers_with_other_neighbours_padding_or_in_full_precision_are_apart():
    model = net_of()
    others = {"first": BETWEEN, "second": ALONE}
    found = layer_timing.geometries(model, torch.zeros(2, 4, 8, 8), others)
    assert [[layer.name for layer in own.layers] for own in found][:2] == [
        ["first"],
        ["second", "second"],
    ]
    plain, reflecting = (
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode) for mode in ("zeros", "reflect")
    )
    net = nn.Sequential(plain, reflecting)
    model = Model(net, geometry.find(net)[0], (4, 8, 8), "", None)
    assert len(layer_timing.geometries(model, torch.zeros(1, 4, 8, 8), {})) == 2


def test_what_stands_next_to_layers():
    model = net_of()
    frame = onnx_export.frame(model.net, model, model.layers, torch.rand(2, 4, 8, 8))
    weights = {
        layer.name: layer_timing.nearest_symmetric(geometry.weight(layer.module), 8)
        for layer in model.layers
    }
    grid = per_tensor(-1.0, 1.0, 8, False)
    graph = frame.quantized(Parts(weights, dict.fromkeys(weights, grid))).graph
    assert integer_regions.find(graph, weights) == {
        "first": Neighbours(codes_in=False, codes_out=True),  # fed images; a ReLU after it
        "second": Neighbours(codes_in=True, codes_out=False),  # a sigmoid after its second call
        "strided": Neighbours(codes_in=False, codes_out=False),  # padding stands after it
        "reflecting": Neighbours(codes_in=False, codes_out=False),
        "line": Neighbours(codes_in=False, codes_out=False),
    }


@pytest.mark.parametrize("index", range(4))
def test_a_layer_in_full_precision_computes_what_it_does(index):
    own = alike(net_of())[index]
    x = own.example_input(32)
    assert_near(run(own.model(None, 32), x), own.module(x), of_layers(own.module, x.dtype))


@pytest.mark.parametrize("bits", [4, 8])
def test_floats_in_floats_out_where_inputs_are_in_full_precision(bits):
    own = alike(net_of())[0]
    x = own.example_input(32)
    codes, grid = layer_timing.nearest_symmetric(geometry.weight(own.module), bits)
    W = grid.decode(codes).view(own.module.weight.shape)
    torch.testing.assert_close(
        run(own.model((codes, grid), 32), x), F.conv2d(x, W, own.module.bias, padding=1)
    )


@pytest.mark.parametrize(
    "beside", [BETWEEN, ALONE, Neighbours(True, False), Neighbours(False, True)], ids=str
)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("index", range(4))
def test_codes_where_codes_are(index, bits, beside):
    own = alike(net_of(), beside)[index]
    codes, grid = layer_timing.nearest_symmetric(geometry.weight(own.module), bits)
    x, model = own.example_input(8), own.model((codes, grid), 8)
    onnx.checker.check_model(model, full_check=True)
    got = run(model, x)
    assert (x.dtype == torch.uint8) == beside.codes_in
    assert (got.dtype == torch.uint8) == beside.codes_out
    with torch.no_grad():
        before = own.module.weight.clone()
        own.module.weight.copy_(grid.decode(codes).view(before.shape))
        wanted = own.module(x / 255 if beside.codes_in else (x * 255).round() / 255)
        own.module.weight.copy_(before)
    if beside.codes_out:
        assert (got.float() - (wanted * 255).round().clamp(0, 255)).abs().max() <= 1, (
            "halves may fall to either side"
        )
    else:
        torch.testing.assert_close(got, wanted, atol=0.01, rtol=0.01)


@pytest.mark.parametrize(
    ("beside", "kernel"), [(BETWEEN, "QLinearConv"), (ALONE, "Conv")], ids=["between", "alone"]
)
def test_kernels_of_integers_are_where_nothing_stands_between(beside, kernel, tmp_path):
    import onnxruntime as ort

    own = alike(net_of(), beside)[0]
    how = ort.SessionOptions()
    how.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    how.log_severity_level = 3
    model = own.model(layer_timing.nearest_symmetric(geometry.weight(own.module), 8), 8)
    ort.InferenceSession(model.SerializeToString(), how, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert [kind for kind in kinds if "Conv" in kind] == [kernel]


def test_nearest_symmetric_spans_each_channel():
    W = torch.tensor([[[0.5, -1.0, 0.25], [2.0, 0.0, 1.0]]])
    codes, grid = layer_timing.nearest_symmetric(W, 8)
    assert codes.min() >= 0
    assert codes.max() <= 255
    torch.testing.assert_close(grid.scale, torch.tensor([[[2.0], [4.0]]]) / 255)
    assert (grid.decode(codes) - W).abs().max() <= grid.scale.max()


def rows(race, fit=None):
    model = net_of()
    given = problem_of(model, torch.randn(4, 4, 8, 8), 4, **({"fit": fit} if fit else {}))
    return layer_timing.rows(given, alike(model), [2, 4, 8], [4, 8, 32], race)


def test_calls_are_added_up_and_what_is_stored_alike_is_timed_once():
    def race(entrants):
        return {name: torch.full((3,), float(len(entrants))).numpy() for name in entrants}

    found = {(own["layer"], *own["bits"], *own["input_bits"]): own["median"] for own in rows(race)}
    assert len(found) == 5 * 7
    assert found["first", 2, 4, 8] == 7, (
        "full precision, and two widths of weights by three of inputs"
    )
    assert found["second", 2, 4, 4] == found["second", 8, 32] == found["second", 32, 32] == 14, (
        "two calls"
    )


def test_a_layer_that_cannot_be_timed_is_named():
    def race(entrants):
        raise SqError("cannot")

    with pytest.raises(SqError, match=r"first: cannot; latency\.layers=false leaves layers out"):
        rows(race)


def test_inputs_of_less_than_8_bits_are_clipped_in_full_precision():
    own = alike(net_of())[0]
    weight = layer_timing.nearest_symmetric(geometry.weight(own.module), 8)
    kinds = {wide: [node.op_type for node in own.model(weight, wide).graph.node] for wide in (4, 8)}
    assert own.example_input(8).dtype == torch.uint8
    assert own.example_input(4).dtype == torch.float32
    assert "Clip" in kinds[4]
    assert "Clip" not in kinds[8]
