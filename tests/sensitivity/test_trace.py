import pytest
import torch
from sensitivity_problems import images, labels, problem, tricky
from torch.func import functional_call
from torch.nn import functional as F

from sq.network.rounding_sites import Sites
from sq.network.weight_swap import original_weight
from sq.sensitivity import trace

KNOBS = {"images": 100, "together": 2, "tolerance": 1e-9, "seed": 0}


@pytest.fixture
def own():
    return problem(tricky().double(), images(4).double(), labels(4), bits=8)


def test_cost_is_the_exact_trace_within_its_standard_error(own):
    cost = trace.score(own, bits=[2, 3], input_bits=[], draws=120, **KNOBS)
    sites = Sites(own, "weights", [2, 3])
    for layer in sites.layers:

        def loss(w, layer=layer):
            outputs = functional_call(own.model.net, {f"{layer.name}.weight": w}, (own.batch.x,))
            return F.cross_entropy(outputs, own.batch.y)

        w = original_weight(layer)
        exact = float(torch.autograd.functional.hessian(loss, w).view(w.numel(), -1).trace())
        wanted = exact * float(sites.error(layer, 3, w).square().mean())
        error = cost.errors[layer.name][3]
        assert abs(cost.weights[layer.name][3] - wanted) < 4 * error
        assert layer.name != "head" or error < 0.1 * wanted  # where the loss is convex
    assert cost.about["draws_weights"] == 120


def test_trace_by_inputs_is_the_mean_of_the_images_own(own):
    cost = trace.score(own, bits=[2], input_bits=[3], draws=100, **KNOBS)
    pooled = own.model.net
    with torch.no_grad():
        fed = []
        handle = pooled.head.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
        p = pooled(own.batch.x).softmax(1)
        handle.remove()
    A = pooled.head.weight.detach()
    S = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    exact = torch.einsum("ki,bkl,li->b", A, S, A).mean()
    error = own.inputs.grid("head", 3).nearest(fed[0]) - fed[0]
    assert cost.inputs["head"][3] == pytest.approx(float(exact * error.square().mean()), rel=0.1)
