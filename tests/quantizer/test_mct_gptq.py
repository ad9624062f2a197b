"""MCT's gradient PTQ: what it refuses, and that the codes of a run are its network's weights, where it is installed."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch

from sq.errors import SqError
from sq.grid.uniform_grid import per_tensor
from sq.hessian import layer_statistics
from sq.model import digits_resnet
from sq.network import batchnorm_folding, geometry, tracing
from sq.quantizer import mct_gptq
from sq.types.images import Calibration
from sq.types.problem import Inputs, Problem

KNOBS = {"iterations": 2, "batch": 8, "draws": 2, "seed": 0}


@pytest.fixture
def problem(digits_train, fit):
    model = digits_resnet.load(weights=None, expected=None)
    batch = Calibration(digits_train.x[:16], digits_train.y[:16], digits_train.ids[:16])
    batchnorm_folding.fold(model.net, batch.x[:1])
    model = tracing.trace(model, batch.x[:1])
    found = layer_statistics.collect(model, batch, batch_size=None, positions=1.0, seed=0)
    names = [layer.name for layer in model.layers]
    inputs = Inputs(dict.fromkeys(names, 8), lambda name, bits: per_tensor(0.0, 1.0, bits, False))
    return Problem(model, batch, found, fit, dict.fromkeys(names, 4), inputs=inputs)


@pytest.fixture
def anything(monkeypatch):
    monkeypatch.setattr(mct_gptq, "_mct", object)


def test_without_the_package(problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_compression_toolkit", None)
    with pytest.raises(SqError, match=r'cannot be imported .*pip install -e "\.\[bench\]"'):
        mct_gptq.quantize(problem, **KNOBS)


@pytest.mark.parametrize(
    "knobs", [{"iterations": 3}, {"iterations": 1}, {"iterations": 2, "batch": 7}]
)
def test_parts_of_passes_are_refused(problem, anything, knobs):
    with pytest.raises(
        SqError, match="whole passes over the 16 calibration images, in batches of one size"
    ):
        mct_gptq.quantize(problem, **KNOBS | knobs)


def test_mixed_widths_are_refused(problem, anything):
    mixed = problem.bits | {problem.model.layers[0].name: 8}
    with pytest.raises(SqError, match=r"weights of 4, 8 bits; .* ends=all, allocation=uniform"):
        mct_gptq.quantize(replace(problem, bits=mixed), **KNOBS)


def test_batchnorm_has_to_be_folded(problem, anything, resnet):
    with pytest.raises(SqError, match="set fold=true"):
        mct_gptq.quantize(replace(problem, model=replace(problem.model, net=resnet.net)), **KNOBS)


@pytest.mark.skipif(
    importlib.util.find_spec("model_compression_toolkit") is None,
    reason="the extra `bench` is not here",
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("iterations", [0, 2])
def test_codes_are_of_the_network_that_is_measured(problem, iterations):
    before = {layer.name: geometry.weight(layer.module).clone() for layer in problem.model.layers}
    made = mct_gptq.quantize(problem, **KNOBS | {"iterations": iterations})
    assert made.report["steps"] == iterations
    assert made.net(problem.batch.x).shape == (16, 10)
    for layer in problem.model.layers:
        own = made.layers[layer.name]
        assert own.codes.shape == (layer.groups, layer.outputs, layer.inputs)
        assert own.codes.min() >= 0
        assert own.codes.max() <= 15
        assert own.report["relative_error"] < 0.5
        assert torch.equal(geometry.weight(layer.module), before[layer.name])
