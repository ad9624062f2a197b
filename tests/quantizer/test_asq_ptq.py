"""ASQ without training the network: weights stay, and steps of inputs adapt to the sample."""

from dataclasses import replace

import pytest
import torch
from cli_helpers import compose
from learned_problems import problem, quantizer, residual
from torch import nn

from sq.activation import insertion
from sq.config.instantiate import build
from sq.errors import SqError
from sq.evaluation.summarize import summarise
from sq.learning.adaptive_step import Adapter, AdaptiveGrid
from sq.learning.student import Student


def uneven(given):
    """Images whose contrast differs by a factor of 40, which one step for all cannot fit."""
    factors = torch.logspace(-0.8, 0.8, len(given.batch.x)).view(-1, 1, 1, 1)
    return replace(given, batch=replace(given.batch, x=given.batch.x * factors))


def start(given, solver):
    return build(compose(f"quantizer={solver}")[0]["quantizer"], "quantizer")(given)


def mean_error(given, done):
    wanted, made = given.model.net(given.batch.x), done.net(given.batch.x)
    return float(((made - wanted).square().sum(1) / wanted.square().sum(1)).mean())


@pytest.mark.parametrize("solver", ["rtn", "sensiquant", "gptq"])
def test_weights_stay_as_the_solver_has_them(solver):
    given = problem(residual(), activation_bits=4)
    done, before = quantizer("asq_ptq", f"init={solver}")(given), start(given, solver)
    for name, own in done.layers.items():
        assert torch.equal(own.codes, before.layers[name].codes)
        assert torch.equal(own.grid.scale, before.layers[name].grid.scale)
        assert torch.equal(
            done.net.get_submodule(name).weight, before.net.get_submodule(name).weight
        )
        assert torch.equal(
            done.net.get_submodule(name).bias, given.model.net.get_submodule(name).bias
        )


def test_without_steps_the_network_is_the_solvers():
    given = problem(residual(), activation_bits=4)
    x = given.batch.x
    with torch.no_grad():
        assert torch.equal(
            quantizer("asq_ptq", "learn.iterations=0")(given).net(x),
            start(given, "sensiquant").net(x),
        )


def test_steps_that_adapt_fit_images_that_one_step_cannot():
    given = uneven(problem(residual(), bits=8, activation_bits=3))
    words = ["learn.iterations=300", "learn.batch=32", "learn.rates.input=0.01"]
    with torch.no_grad():
        still = mean_error(given, quantizer("asq_ptq", *words, "learn.rates.adapter=0.0")(given))
        done = quantizer("asq_ptq", *words, "learn.rates.adapter=0.03")(given)
        assert mean_error(given, done) < 0.8 * still


def test_blocks_and_layers_take_adapters_too():
    given = problem(residual(), activation_bits=3)
    done = quantizer("adaround", "learn.rates.adapter=0.01", "learn.keep=none")(given)
    fed = Student(given, lambda _: start(given, "rtn"), 0.1, 0).inputs
    before = {name: own.adapter.state_dict() for name, own in fed.items()}
    moved = [
        name
        for name, own in adapters(done.net).items()
        if any(not torch.equal(p, before[name][at]) for at, p in own.state_dict().items())
    ]
    assert moved == list(before)


def adapters(net):
    """Return the adapter of each layer's input, of the hooks that quantize it."""
    return {
        name: grid.adapter
        for name, grid in insertion.attached(net).items()
        if isinstance(grid, AdaptiveGrid)
    }


def test_channels_of_linear_layers_are_on_the_last_axis():
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    own = Adapter(8, 0, axis=-1)
    with torch.no_grad():
        own.last.weight.fill_(0.3)
        assert torch.allclose(own(tokens), own(tokens.mean(1)))
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(16, 5), nn.Flatten(), nn.Linear(20, 3)
    ).eval()
    given = problem(net, activation_bits=4)
    fed = Student(given, lambda _: start(given, "rtn"), 0.1, 0).inputs
    assert [own.adapter.axis for own in fed.values()] == [1, -1, -1]
    assert fed["2"].adapter.squeeze.in_features == 16, "of 4 rows"
    assert torch.isfinite(quantizer("asq_ptq")(given).net(given.batch.x)).all()


def test_inputs_in_full_precision_are_refused_before_anything_is_solved(monkeypatch):
    monkeypatch.setattr("sq.quantizer.eptq.begin", lambda *_, **__: pytest.fail("solved"))
    with pytest.raises(
        SqError,
        match="adaptive steps need quantized inputs, and here inputs stay in full precision: set activation=",
    ):
        quantizer("asq_ptq")(problem(residual()))


def test_adapters_are_counted_in_bytes():
    given = problem(residual(), activation_bits=4)
    sizes = {
        name: summarise(given.model, given, make(given))["results"]
        for name, make in {
            "with": quantizer("asq_ptq", "learn.iterations=1"),
            "without": quantizer("asq_ptq", "learn.iterations=1", "learn.rates.adapter=0.0"),
        }.items()
    }
    # Inputs of 2 and 4 channels have a single layer, one of 64 a hidden one of 16.
    wanted = 4 * ((2 + 1) + 4 * (4 + 1) + (64 * 16 + 16) + (16 + 1))
    assert (
        sizes["with"]["adapter_bytes"]
        == sizes["with"]["bytes"] - sizes["without"]["bytes"]
        == wanted
    )
    assert "adapter_bytes" not in sizes["without"]
