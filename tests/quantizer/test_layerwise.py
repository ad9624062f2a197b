import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from tolerances import assert_within, relative, unit
from torch import nn

from sq.errors import SqError
from sq.hessian import layer_statistics
from sq.network import geometry
from sq.quantizer import layerwise
from sq.solver import gptq, obq, rtn
from sq.types.images import Calibration
from sq.types.problem import LayerStatistics, Model, Problem, Statistics


def natural(W, H, grid):
    return gptq.solve(W, H, grid, order="natural", block=64)


def problem(fit, net, hessians=None, bits=3):
    found, _ = geometry.find(net)
    model = Model(net.eval(), found, (2, 6, 6), "", None)
    x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    batch = Calibration(x, torch.zeros(8).long(), [str(i) for i in range(8)])
    if hessians is None:
        measured = layer_statistics.collect(model, batch, batch_size=8, positions=1.0, seed=0)
    else:
        measured = Statistics({name: LayerStatistics(H, 1) for name, H in hessians.items()}, 8)
    return Problem(model, batch, measured, fit, {layer.name: bits for layer in found})


@pytest.fixture
def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4))


@pytest.mark.parametrize("solve", [natural, rtn.solve])
def test_network_holds_what_the_codes_decode_to(fit, conv_net, solve):
    given = problem(fit, conv_net)
    before = {name: t.clone() for name, t in conv_net.state_dict().items()}
    done = layerwise.quantize(given, solve=solve, damp=0.01)
    assert all(torch.equal(before[name], t) for name, t in conv_net.state_dict().items())
    assert list(done.layers) == ["0", "3", "5"]
    after = done.net.state_dict()
    for name, layer in done.layers.items():
        W = geometry.weight(done.net.get_submodule(name))
        assert torch.equal(W, layer.grid.decode(layer.codes))
        H = layerwise.damped(given.statistics.layers[name].hessian, 0.01).float()
        own = geometry.weight(conv_net.get_submodule(name))
        assert torch.equal(layer.codes, solve(own, H, fit(own, 3)))
        error = layer_statistics.relative_error(own, W, given.statistics.layers[name].hessian)
        assert layer.report["relative_error"] == pytest.approx(error)
        assert (
            layer.report["damp_used"],
            layer.report["damp_retries"],
            layer.report["dead_inputs"],
        ) == (0.01, 0, 0)
    untouched = [name for name in before if name not in ("0.weight", "3.weight", "5.weight")]
    assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_each_layer_has_its_own_bits(fit, conv_net):
    given = problem(fit, conv_net)
    given.bits.update({"0": 2, "3": 5, "5": 8})
    done = layerwise.quantize(given, solve=natural, damp=0.01)
    assert {name: layer.grid.levels for name, layer in done.layers.items()} == {
        "0": 4,
        "3": 32,
        "5": 256,
    }


def test_digest_tells_codes_apart(fit, conv_net):
    given = problem(fit, conv_net)
    one, same = (layerwise.quantize(given, solve=natural, damp=0.01) for _ in range(2))
    other = layerwise.quantize(given, solve=rtn.solve, damp=0.01)
    assert one.digest() == same.digest() != other.digest()


def test_singular_hessian_climbs_the_ladder(fit, linear):
    given = problem(fit, linear, {"0": torch.ones(1, 6, 6, dtype=torch.float64)})
    report = layerwise.quantize(given, solve=natural, damp=0.0).layers["0"].report
    assert report["damp_retries"] >= 1
    assert report["damp_used"] == pytest.approx(1e-8 * 10 ** (report["damp_retries"] - 1))
    # the first rung that carries: the one below does not
    ones = torch.ones(1, 6, 6)
    torch.linalg.cholesky(ones + report["damp_used"] * torch.eye(6))
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(ones + report["damp_used"] / 10 * torch.eye(6))


@pytest.mark.parametrize(
    ("damp", "wanted"),
    [
        (0.0, [0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]),
        (0.03, [0.03, 0.3, 1]),
        (0.6, [0.6, 1]),
        (1.0, [1.0]),
    ],
)
def test_ladder_ends_in_an_error_that_names_the_layer(fit, linear, damp, wanted):
    given = problem(fit, linear, {"0": torch.eye(6, dtype=torch.float64).unsqueeze(0) * 4})
    given.model.net[0].double()
    tried = []

    def never(W, H, grid):
        tried.append(float(H[0, 0, 0]) / 4 - 1)
        raise torch.linalg.LinAlgError

    with pytest.raises(SqError, match=r"layer 0\b.*damping 1\b"):
        layerwise.quantize(given, solve=never, damp=damp)
    assert tried == pytest.approx(wanted, abs=unit(torch.float64) * 4)  # 1 + damping less 1


def test_damping_used_is_reported(fit, linear):
    given = problem(fit, linear, {"0": torch.eye(6, dtype=torch.float64).unsqueeze(0)})

    def picky(W, H, grid):
        if H[0, 0, 0] < 1.04:
            raise torch.linalg.LinAlgError
        return rtn.solve(W, H, grid)

    report = layerwise.quantize(given, solve=picky, damp=0.001).layers["0"].report
    assert report["damp_used"] == pytest.approx(0.1)
    assert report["damp_retries"] == 2


def test_other_errors_are_not_retried(fit, linear):
    calls = []

    def broken(W, H, grid):
        calls.append(1)
        raise KeyError("mine")

    given = problem(fit, linear, {"0": torch.eye(6).double().unsqueeze(0)})
    with pytest.raises(KeyError, match="mine"):
        layerwise.quantize(given, solve=broken, damp=0.01)
    assert calls == [1]


@pytest.mark.parametrize("damp", [-0.01, 1.01, float("nan"), float("inf")])
def test_damp_out_of_range(fit, linear, damp):
    given = problem(fit, linear, {"0": torch.eye(6).double().unsqueeze(0)})
    with pytest.raises(SqError, match=r"quantizer\.damp="):
        layerwise.quantize(given, solve=rtn.solve, damp=damp)


def test_damped_by_hand():
    H = torch.zeros(3, 3, 3, dtype=torch.float64)
    H[0] = torch.tensor([[2.0, 1, 0], [1, 4, 1], [0, 1, 6]])  # mean 4
    H[1, :2, :2] = torch.tensor([[2.0, 1], [1, 4]])  # a dead input; mean of the live ones 3
    copy = H.clone()
    wanted = H.clone()
    wanted[0] += 0.4 * torch.eye(3, dtype=H.dtype)
    wanted[1] += torch.diag(torch.tensor([0.3, 0.3, 3.0], dtype=H.dtype))
    wanted[2] = torch.eye(3)  # nothing alive
    damped = layerwise.damped(H, 0.1)
    assert_within(damped, wanted, relative(5, torch.float64) * wanted)
    assert torch.equal(H, copy)
    assert torch.equal(layerwise.damped(H, 0.0)[0], H[0])


def test_layer_without_any_live_input_is_rounded_to_nearest(fit, linear):
    given = problem(fit, linear, {"0": torch.zeros(1, 6, 6, dtype=torch.float64)})
    layer = layerwise.quantize(given, solve=natural, damp=0.01).layers["0"]
    W = geometry.weight(linear[0])
    assert torch.equal(layer.codes, layer.grid.encode(W))
    assert layer.report["dead_inputs"] == 6
    assert layer.report["relative_error"] == 0


def test_results_repeat_on_the_embedded_network(fit, digits_train, resnet):
    batch = Calibration(digits_train.x[:64], digits_train.y[:64], digits_train.ids[:64])
    measured = layer_statistics.collect(resnet, batch, batch_size=64, positions=1.0, seed=0)
    given = Problem(resnet, batch, measured, fit, {layer.name: 3 for layer in resnet.layers})
    first, again = (layerwise.quantize(given, solve=natural, damp=0.01) for _ in range(2))
    nearest = layerwise.quantize(given, solve=rtn.solve, damp=0.01)
    assert first.digest() == again.digest()
    for name, layer in first.layers.items():
        assert layer.report["relative_error"] <= nearest.layers[name].report["relative_error"], name


@pytest.mark.parametrize(
    "solve", [natural, partial(obq.solve, outliers=True, memory_gib=1.0, block=8)]
)
def test_codes_do_not_depend_on_how_many_layers_are_solved_at_a_time(
    fit, digits_train, resnet, solve
):
    batch = Calibration(digits_train.x[:32], digits_train.y[:32], digits_train.ids[:32])
    measured = layer_statistics.collect(resnet, batch, batch_size=32, positions=1.0, seed=0)
    narrow = [layer for layer in resnet.layers if layer.inputs < 100]
    net = replace(resnet, layers=narrow)
    given = Problem(net, batch, measured, fit, {layer.name: 3 for layer in narrow})
    before, found = torch.get_num_threads(), {}
    try:
        for workers in (1, 2, 3):
            torch.set_num_threads(workers)
            done = layerwise.quantize(given, solve=solve, damp=0.01)
            assert list(done.layers) == [layer.name for layer in narrow]
            found[workers] = {
                name: (own.report["codes"], own.report["relative_error"])
                for name, own in done.layers.items()
            }
            assert all(own.report["solve_cpu_seconds"] > 0 for own in done.layers.values())
    finally:
        torch.set_num_threads(before)
    assert found[1] == found[2] == found[3]


def test_cpu_seconds_are_those_of_the_layer_alone(fit, conv_net):
    def waits(W, H, grid):
        time.sleep(0.2)
        return rtn.solve(W, H, grid)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        done = layerwise.quantize(problem(fit, conv_net), solve=waits, damp=0.01)
    finally:
        torch.set_num_threads(before)
    for layer in done.layers.values():
        assert layer.report["solve_seconds"] >= 0.2
        assert layer.report["solve_cpu_seconds"] < 0.1
