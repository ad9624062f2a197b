from dataclasses import replace
from functools import partial

import pytest
import torch
from cli_helpers import CONF
from omegaconf import OmegaConf

from sq.activation import insertion, mse
from sq.grid import uniform
from sq.hessian import layer_statistics
from sq.network import geometry
from sq.sensitivity import output_error
from sq.types.images import Calibration
from sq.types.problem import Model, Problem


@pytest.fixture
def problem():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, groups=2), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1)
    )
    found, skipped = geometry.find(net)
    model = Model(net, found, (2, 5, 5), "", None, skipped)
    batch = Calibration(torch.randn(6, 2, 5, 5), torch.zeros(6).long(), [str(i) for i in range(6)])
    fit = partial(
        uniform.fit, symmetric=False, range="minmax", norm=2.0, steps=2, shrink=0.5, hessian=None
    )
    return Problem(
        model,
        batch,
        layer_statistics.collect(model, batch, batch_size=4, positions=1.0, seed=0),
        fit,
    )


def test_cost_is_the_error_measured_on_the_layer_itself(problem):
    cost = output_error.score(problem, bits=[2, 4], input_bits=[]).weights
    seen = {}
    second = problem.model.net[2]
    second.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        problem.model.net(problem.batch.x)
        exact = second(seen["x"]) - second.bias.view(1, -1, 1, 1)
        W = geometry.weight(second)
        rounded = problem.fit(W, 4).nearest(W).view_as(second.weight)
        error = torch.nn.functional.conv2d(seen["x"], rounded) - exact
    assert cost["2"][4] == pytest.approx(
        float(error.square().sum() / exact.square().sum()), rel=1e-4
    )


def test_every_layer_is_priced_at_every_width_and_more_bits_cost_less(problem):
    cost = output_error.score(problem, bits=[2, 3, 4, 8], input_bits=[]).weights
    assert list(cost) == ["0", "2"]
    for row in cost.values():
        assert list(row) == [2, 3, 4, 8]
        assert row[2] > row[4] > row[8] >= 0


def test_cost_of_inputs_is_the_error_measured_on_the_layer_itself(problem):
    observe = partial(insertion.observe, images=100, batch_size=None, bins=64, adds=False)
    fit = partial(mse.fit, symmetric=False, norm=2.0, steps=8)
    net, x = problem.model.net, problem.batch.x
    own = replace(
        problem, inputs=insertion.quantize(net, ["2"], x, bits=8, observe=observe, fit=fit)
    )
    cost = output_error.score(own, bits=[2], input_bits=[2, 4])
    assert cost.inputs.keys() == {"2"}
    with torch.no_grad():
        fed = net[1](net[0](x))
        exact = torch.nn.functional.conv2d(fed, net[2].weight)
        error = (
            torch.nn.functional.conv2d(own.inputs.grid("2", 4).nearest(fed), net[2].weight) - exact
        )
    assert cost.inputs["2"][4] == pytest.approx(
        float(error.square().sum() / exact.square().sum()), rel=1e-4
    )
    assert cost.inputs["2"][2] > cost.inputs["2"][4]


def test_settings_are_as_they_were():
    """They are part of every record's key: another setting would make records of all runs so far unknown."""
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "sensitivity" / "output_error.yaml"))
    own = {"_target_": "sq.sensitivity.output_error.score", "_partial_": True}
    assert settings == own | {"bits": [2, 3, 4, 5, 6, 8], "input_bits": []}
