"""Networks as ONNX: integers that are ours, outputs that are close, in a file that onnxruntime alone can run."""

import grids
import onnx
import pytest
import shared_exports
import torch
from cli_helpers import call, error_line, records
from learned_problems import problem_of
from onnx import TensorProto, numpy_helper
from torch import nn

from sq.config import requirements
from sq.core import processor
from sq.errors import SqError
from sq.export import onnx as own
from sq.export import onnx_export, onnx_qdq, onnx_session
from sq.export.finished_run import FinishedRun
from sq.grid.level_grid import LevelGrid
from sq.grid.uniform_grid import UniformGrid, per_tensor
from sq.network import geometry, residual_adds
from sq.network.copies import copied
from sq.quantizer import layerwise
from sq.solver import rtn
from sq.types.problem import Model

RUNS = {
    "4 bits": (["bits=4"], 60),
    "2 bits": (["bits=2", "grid.symmetric=true"], 60),
    "6 bits": (["bits=6", "fold=true"], 60),
    "mixed": (["allocation=ilp", "bits=3.5", "sensitivity.bits=[2,3,4,8]"], 60),
    "levels": (["bits=4", "grid=post"], 60),
    "inputs of 8 bits": (["activation=mse", "activation.bits=8", "bits=4"], 30),
    "inputs of 4 bits": (["activation=minmax", "activation.bits=4", "grid=apot", "ends=8bit"], 20),
    "operands of additions": (
        ["activation=mse", "activation.observe.adds=true", "bits=4", "fold=true"],
        30,
    ),
    "ends in full precision": (["ends=keep", "bits=3", "correction=bias"], 60),
}


@pytest.fixture(autouse=True)
def exporter(monkeypatch):
    monkeypatch.setattr(onnx_export, "exported", shared_exports.exported)


def exported(folder, *words):
    done = call(folder, "export=onnx", *words)
    assert done.returncode == 0, done.stderr
    (made,) = records(folder)
    return made, folder / "outputs" / made["export"]["file"]


def test_shared_exports_are_those_of_the_exporter(resnet):
    x = torch.zeros(2, 1, 8, 8)
    shared_exports.exported(resnet.net, x)
    networks = len(shared_exports.EXPORTS)
    other = copied(resnet.net)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.5)
    wanted = shared_exports.EXPORTER(other, x)
    shared = shared_exports.exported(other, x)
    # Not byte by byte: the exporter numbers values on from one export to the next.
    assert [node.op_type for node in shared.graph.node] == [
        node.op_type for node in wanted.graph.node
    ]
    names = other.state_dict().keys()
    numbers, right = (
        {
            tensor.name: numpy_helper.to_array(tensor).tolist()
            for tensor in model.graph.initializer
            if tensor.name in names
        }
        for model in (shared, wanted)
    )
    assert numbers
    assert numbers == right
    assert len(shared_exports.EXPORTS) == networks


@pytest.mark.parametrize(("words", "decibels"), RUNS.values(), ids=RUNS)
def test_the_file_computes_what_the_record_says(words, decibels, tmp_path):
    made, file = exported(tmp_path, *words)
    said = made["export"]
    assert said["bytes"] == file.stat().st_size
    assert said["outputs_snr_db"] > decibels
    assert said["figures"]["top1"] == pytest.approx(made["results"]["top1"], abs=0.34)  # two images
    assert said["agreement"]["same_top1"] > 99.4
    content = file.read_bytes()
    assert not any(word in content for word in (b"pkg.torch", b"site-packages", b".py")), (
        "no notes of the exporter"
    )
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.key, entry.value) for entry in model.metadata_props} >= {("sq.key", made["key"])}
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for layer in made["layers"]:
        stored = kinds[f"{layer['name']}.weight.codes"]
        assert (stored in (TensorProto.INT4, TensorProto.UINT4)) == (
            layer["bits"] <= 4 and "grid=post" not in words
        )
        assert f"{layer['name']}.weight" not in kinds
    steps = [node.op_type for node in model.graph.node]
    assert ("QuantizeLinear" in steps) == any("activation=" in word for word in words)
    largest = max(layer["weights"] for layer in made["layers"])
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert max(len(t.raw_data) // 4 for t in floats) < largest / 10, "no weight is left as numbers"


def test_onnxruntime_takes_any_number_of_images(tmp_path):
    _, file = exported(tmp_path)
    session = onnx_session.Session(file.read_bytes())
    for count in (1, 3):
        assert session(torch.rand(count, 1, 8, 8)).shape == (count, 10)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["bits=9"], "holds codes of up to 8 bits: set bits, activation.bits"),
        (["activation=mse", "activation.bits=9"], "holds codes of up to 8 bits"),
        (
            ["allocation=ilp", "bits=4", "sensitivity.bits=[2,4,9]"],
            "where bits are mixed, sensitivity.bits to 8 or less",
        ),
        (["grid=post", "bits=8"], "7 with grid=pot or post"),
        (["quantizer=asq_ptq", "activation=mse"], "cannot hold steps that adapt to the sample"),
    ],
)
def test_what_the_format_cannot_hold_is_said_before_anything_runs(words, cause, tmp_path):
    line = error_line(call(tmp_path, "export=onnx", *words))
    assert cause in line
    assert "export=packed" in line


def test_what_only_the_grids_show_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_qdq, "MAX_BITS", 3)
    done = call(tmp_path, "export=onnx", "bits=4")
    assert (
        "stem.0 has codes of more than 3 bits, which ONNX cannot hold: use export=packed"
        in done.stderr
    )
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_the_extra_before_anything_runs(
    package, tmp_path, monkeypatch
):
    found = requirements.find_spec
    monkeypatch.setattr(
        requirements, "find_spec", lambda name: None if name == package else found(name)
    )
    line = error_line(call(tmp_path, "export=onnx"))
    assert f"{package} is not installed" in line
    assert 'python -m pip install -e ".[export]"' in line
    (made,) = records(tmp_path)
    assert "seconds" not in made, "nothing was run"


def test_a_file_with_other_codes_is_not_left(tmp_path, monkeypatch):
    read = onnx_qdq.codes_in
    monkeypatch.setattr(onnx_qdq, "codes_in", lambda *own: read(*own) + 1)
    done = call(tmp_path, "export=onnx")
    assert "were not read back as they were written" in done.stderr
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.parametrize("factor", [1.001, 3.0])
def test_a_file_with_another_scale_says_whose(factor, tmp_path, monkeypatch):
    put = onnx_qdq.put_weight

    def wrong(made, layer, codes, grid, *more):
        put(
            made,
            layer,
            codes,
            grid.scaled(torch.tensor(1.0 if layer != "blocks.1.body.0.0" else factor)),
            *more,
        )

    monkeypatch.setattr(onnx_qdq, "put_weight", wrong)
    done = call(tmp_path, "export=onnx")
    assert "the weight of blocks.1.body.0.0 is not ours in the file" in done.stderr
    assert list(tmp_path.rglob("*.onnx*")) == []


@pytest.mark.parametrize("layer", ["stem.0", "blocks.1.body.0.0"])
def test_a_file_that_is_fed_something_else_says_where(layer, tmp_path, monkeypatch):
    put = onnx_qdq.put_input

    def wrong(made, name, grid, calls):
        factor = 100.0 if name == layer else 1.0
        put(made, name, UniformGrid(grid.scale * factor, grid.low, grid.high, grid.levels), calls)

    monkeypatch.setattr(onnx_qdq, "put_input", wrong)
    done = call(tmp_path, "export=onnx", "activation=mse", "activation.bits=4")
    assert (
        f"it begins at the input of {layer}, although weights are ours; use export=packed"
        in done.stderr
    )
    assert list(tmp_path.rglob("*.onnx*")) == []


def test_outputs_that_are_no_numbers_are_far():
    assert (
        not onnx_session.snr(torch.ones(2), torch.tensor([1.0, torch.nan])) >= onnx_session.MIN_SNR
    )
    assert onnx_session.snr(torch.ones(2), torch.ones(2)) >= onnx_session.MIN_SNR


class Small(nn.Module):
    """Layers of few weights, one of which is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1, groups=2)
        self.line, self.last = nn.Linear(4, 4), nn.Linear(32, 3)

    def forward(self, x):
        y = self.second(self.second(self.first(x)))
        return self.last(self.line(y).relu().flatten(1))


@pytest.mark.parametrize("kind", ["uniform", "pot"])
def test_small_layers_and_such_that_are_called_twice(kind, tmp_path):
    torch.manual_seed(0)
    net = Small().eval()
    given = problem_of(
        Model(net, geometry.find(net)[0], (3, 4, 4), "", None),
        torch.randn(16, 3, 4, 4),
        4,
        8,
        fit=grids.fit(kind),
    )
    made = layerwise.quantize(given, solve=rtn.solve, damp=0.01)
    done = FinishedRun(
        {"outputs": str(tmp_path), "name": "small"},
        given.model,
        given,
        made,
        None,
        lambda net: Agrees(),
    )
    said = own.write(done, least_bits=4, unsigned=False)
    assert said["outputs_snr_db"] > 30
    model = onnx.load(tmp_path / said["file"])
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 5


class Tokens(nn.Module):
    """Linear layers of tokens, an embedding, and a sum of feature maps."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.register_buffer("embedding", torch.randn(1, 7, 24))

    def forward(self, x):
        y = self.first(x) + self.embedding
        return self.last((y + self.second(y.relu())).mean(1))


@pytest.mark.parametrize("fed", [None, 8])
@pytest.mark.parametrize("bits", [4, 8])
def test_layers_of_tokens(bits, fed, tmp_path):
    torch.manual_seed(0)
    net = Tokens().eval()
    given = problem_of(
        Model(net, geometry.find(net)[0], (7, 12), "", None), torch.randn(16, 7, 12), bits, fed
    )
    made = layerwise.quantize(given, solve=rtn.solve, damp=0.01)
    if fed:
        residual_adds.attach(made.net, {"add.0.right": per_tensor(-4.0, 4.0, 8, False)})
    config = {"outputs": str(tmp_path), "name": "small"}
    said = own.write(
        FinishedRun(config, given.model, given, made, None, lambda net: Agrees()),
        least_bits=4,
        unsigned=False,
    )
    assert said["outputs_snr_db"] > (30 if fed else 100)


class Agrees:
    def __init__(self):
        self.figures = {"top1": 50.0}

    def against(self, full):
        return {"same_top1": 100.0}


def test_a_shared_weight_is_named(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(48, 2)
    ).eval()
    net[1].weight = net[0].weight
    given = problem_of(
        Model(net, geometry.find(net)[0], (3, 4, 4), "", None), torch.randn(8, 3, 4, 4), 4
    )
    made = layerwise.quantize(given, solve=rtn.solve, damp=0.01)
    with pytest.raises(
        SqError, match="0 shares its weight, which ONNX cannot hold: use export=packed"
    ):
        own.write(
            FinishedRun(
                {"outputs": str(tmp_path), "name": "small"}, given.model, given, made, None, None
            ),
            least_bits=4,
            unsigned=False,
        )


LOWS = {"affine": [-3.0, 0.0, -15.0], "symmetric": [-8.0, -8.0, -8.0], "wide": [-30.0, -128.0, 7.0]}


@pytest.mark.parametrize("kind", [*LOWS, "levels"])
def test_integers_decode_to_the_weights(kind):
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (1, 3, 18), generator=draw, dtype=torch.int32)
    scale = torch.rand(1, 3, 1, generator=draw) + 0.1
    if kind == "levels":
        grid = LevelGrid(scale, torch.randn(16, generator=draw).sort().values)
    else:
        low = torch.tensor(LOWS[kind]).view(1, 3, 1)
        grid = UniformGrid(scale, low, low + 15, 16 if kind != "wide" else 64)
    name, shape = "conv", (3, 2, 3, 3)
    given = onnx.helper.make_tensor(f"{name}.weight", TensorProto.FLOAT, shape, [0.0] * 54)
    step = onnx.helper.make_node("Identity", [f"{name}.weight"], ["out"])
    images = onnx.helper.make_tensor_value_info("images", TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    made = onnx.helper.make_graph([step], "g", [images], [out], [given])
    onnx_qdq.put_weight(made, name, codes, grid, shape)
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", own.OPSET)], ir_version=10
    )
    assert torch.equal(
        onnx_session.Session(model.SerializeToString())(torch.zeros(1)),
        grid.decode(codes).view(shape),
    )
    assert torch.equal(onnx_qdq.codes_in(model.graph, name), onnx_qdq.stored(codes, grid, shape))


def saturating():
    """Return a network whose sums of two products are near 2^16, and images of the largest inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.where(torch.rand(net[0].weight.shape) < 0.9, 0.1, -0.1))
    return net, 1 - 0.1 * torch.rand(16, 8, 6, 6)


def write_symmetric(folder, net, x, bits, **knobs):
    model = Model(net, geometry.find(net)[0], tuple(x.shape[1:]), "", None)
    given = problem_of(model, x, bits, 8, fit=grids.fit("uniform", symmetric=True))
    made = layerwise.quantize(given, solve=rtn.solve, damp=0.01)
    done = FinishedRun(
        {"outputs": str(folder), "name": "small"}, model, given, made, None, lambda net: Agrees()
    )
    said = own.write(done, least_bits=4, **knobs)
    return said, onnx.load(folder / said["file"]), made, x


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("bits", [7, 8])
def test_products_of_bytes_are_exact_or_said_not_to_be(bits, unsigned, tmp_path, capsys):
    net, x = saturating()
    said, model, made, x = write_symmetric(tmp_path, net, x, bits, unsigned=unsigned)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert (kinds["0.weight.codes"] == TensorProto.UINT8) is unsigned
    assert said["outputs_snr_db"] > 30, "what the file says is ours on every processor"
    with torch.no_grad():
        default = onnx_session.snr(made.net(x), onnx_session.Session(model.SerializeToString())(x))
    told = capsys.readouterr().err
    if bits == 7 or unsigned:
        assert said["saturating_layers"] == 0
        assert default > 30, "any session computes it exactly"
    else:
        assert said["saturating_layers"] > 0
        assert (default < 30) is (processor.saturates() is True)
        assert ("saturated_snr_db" in said) is (processor.saturates() is not False)
        assert ("export.unsigned=true" in told) is (processor.saturates() is not False)
    assert (said["processor"], said["vnni"]) == (processor.name(), processor.vnni())


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(-64, 63, False), (-65, 62, True), (-10, 64, False), (-1, 65, True)]
)
def test_sums_of_two_products_saturate_above_sixteen_bits(low, high, wanted):
    assert (2 * 255 * max(-low, high) > 2**15 - 1) is wanted
    grid = UniformGrid(
        torch.ones(1, 1, 1),
        torch.full((1, 1, 1), float(low)),
        torch.full((1, 1, 1), float(high)),
        256,
    )
    assert onnx_qdq.saturating(torch.tensor([[[0, high - low]]], dtype=torch.int32), grid) is wanted
