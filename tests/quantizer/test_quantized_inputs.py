"""Layer after layer on what the quantized layers before it make of the images (calibration.inputs=quantized)."""

import pytest
import torch
from cli_helpers import compose
from torch import nn

from sq.calibration import subset
from sq.config.instantiate import build
from sq.hessian import layer_statistics
from sq.network import tracing
from sq.types.problem import Problem


def outputs_of(net, name, x):
    """Return what a layer gives for every call, without its bias."""
    module, seen = net.get_submodule(name), []
    bias = (
        0
        if module.bias is None
        else module.bias.view(-1, *[1] * (2 if isinstance(module, nn.Conv2d) else 0))
    )
    hook = module.register_forward_hook(lambda module, args, y: seen.append((y - bias).double()))
    with torch.no_grad():
        net(x)
    hook.remove()
    return torch.cat([own.flatten() for own in seen])


def test_errors_reported_are_those_of_the_layers_in_the_quantized_network(digits, resnet):
    config = compose("quantizer=gptq", "bits=3")[0]
    quantize, fit = build(config["quantizer"], "quantizer"), build(config["grid"], "grid")
    before = {name: t.clone() for name, t in resnet.net.state_dict().items()}
    batch = subset.draw(resnet, digits, images=48, seed=0, inputs="quantized")
    model = tracing.trace(resnet, batch.x[:1])
    found = layer_statistics.collect(model, batch, batch_size=None, positions=1.0, seed=0)
    made = quantize(Problem(model, batch, found, fit, {layer.name: 3 for layer in model.layers}))
    for name, layer in made.layers.items():
        wanted, got = (outputs_of(net, name, batch.x) for net in (resnet.net, made.net))
        error = float((wanted - got).square().sum() / wanted.square().sum())
        assert layer.report["relative_error"] == pytest.approx(error, rel=1e-3), name
    assert all(torch.equal(t, before[name]) for name, t in resnet.net.state_dict().items())


def test_quantized_inputs_lower_the_error_of_the_network(digits, resnet):
    config = compose("quantizer=gptq", "bits=3")[0]
    quantize, fit = build(config["quantizer"], "quantizer"), build(config["grid"], "grid")
    made = {}
    for inputs in ("reference", "quantized"):
        batch = subset.draw(resnet, digits, images=128, seed=0, inputs=inputs)
        model = tracing.trace(resnet, batch.x[:1])
        found = layer_statistics.collect(model, batch, batch_size=None, positions=1.0, seed=0)
        problem = Problem(model, batch, found, fit, {layer.name: 3 for layer in model.layers})
        made[inputs] = quantize(problem)
    test = subset.draw(resnet, digits, images=512, seed=9, inputs="reference").x
    with torch.no_grad():
        wanted = resnet.net(test)
        errors = {name: float((q.net(test) - wanted).square().sum()) for name, q in made.items()}
    assert errors["quantized"] < 0.7 * errors["reference"]
    first = made["quantized"].layers["stem.0"], made["reference"].layers["stem.0"]
    assert torch.equal(first[0].codes, first[1].codes), (
        "what the first layer is fed, nothing has changed"
    )
