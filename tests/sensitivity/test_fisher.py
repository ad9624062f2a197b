import pytest
import torch
from torch.nn import functional as F

from sq.network.rounding_sites import Sites
from sq.network.weight_swap import original_weight
from sq.sensitivity import fisher


def test_cost_is_that_of_a_loop_over_images(tricky_problem):
    own, net = tricky_problem, tricky_problem.model.net
    cost = fisher.score(own, bits=[2, 3], input_bits=[], images=5)
    sites = Sites(own, "weights", [2, 3])
    squares = {layer.name: torch.zeros_like(original_weight(layer)) for layer in sites.layers}
    for i in range(5):
        loss = F.cross_entropy(net(own.batch.x[i : i + 1]), own.batch.y[i : i + 1])
        gradients = torch.autograd.grad(loss, [layer.module.weight for layer in sites.layers])
        for layer, g in zip(sites.layers, gradients, strict=True):
            squares[layer.name] += g.square() / 5
    for layer, bits in sites.choices():
        wanted = (
            float(
                (
                    squares[layer.name] * sites.error(layer, bits, original_weight(layer)).square()
                ).sum()
            )
            / 2
        )
        assert cost.weights[layer.name][bits] == pytest.approx(wanted, rel=1e-4)
    mean = torch.autograd.grad(
        F.cross_entropy(net(own.batch.x[:5]), own.batch.y[:5]), net.head.weight
    )[0]
    assert float(squares["head"].sum()) > 2 * float(mean.square().sum()), (
        "the square of the mean would do as well"
    )


def test_size_of_what_goes_together_changes_nothing(tricky_problem, monkeypatch):
    once = fisher.score(tricky_problem, bits=[2], input_bits=[2], images=6)
    monkeypatch.setattr("sq.network.per_sample_gradients.GRADIENT_ELEMENTS", 1)
    again = fisher.score(tricky_problem, bits=[2], input_bits=[2], images=6)
    for name, row in once.weights.items():
        assert again.weights[name][2] == pytest.approx(row[2], rel=1e-4)


def test_inputs_are_weighed_by_their_own_gradient(tricky_problem):
    own, net = tricky_problem, tricky_problem.model.net
    cost = fisher.score(own, bits=[2], input_bits=[3], images=6)
    fed = {}
    handle = net.head.register_forward_pre_hook(lambda _, args: fed.update(x=args[0]))
    losses = F.cross_entropy(net(own.batch.x), own.batch.y, reduction="sum")
    handle.remove()
    g = torch.autograd.grad(losses, fed["x"])[0]
    d = own.inputs.grid("head", 3).nearest(fed["x"].detach()) - fed["x"].detach()
    assert cost.inputs["head"][3] == pytest.approx(
        float((g * d).square().sum(1).mean()) / 2, rel=1e-4
    )
